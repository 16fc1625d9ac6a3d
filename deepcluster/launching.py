"""A stage starts the processes that work on it together, through torch's elastic launcher, on this machine.

How many is nobody's setting: DEEPCLUSTER_PROCESSES, torchrun's PET_NPROC_PER_NODE, else one for each GPU that is
visible. They run `python -m stages.NAME --epoch E` again, find in the environment that they are many, and say nothing
when they fail: this process says it, in one line.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepcluster import distributed
from deepcluster.errors import LostProcessError, UserError

_RUN = "deepcluster-{process}"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torch's launcher looks for what a worker died of
_SECONDS_TO_STOP = "120"  # which a step may take; then they are killed


def wanted() -> int:
    """How many processes a stage of several shall have here: 1 in a process that a launcher started.

    UserError for a number that is none, and for several processes on one GPU.
    """
    if distributed.started_by_a_launcher():
        return 1
    name = next((name for name in ("DEEPCLUSTER_PROCESSES", "PET_NPROC_PER_NODE") if os.environ.get(name)), None)
    device = os.environ.get("DEEPCLUSTER_DEVICE", "")
    if name is None or os.environ[name] in ("gpu", "auto"):
        several = distributed.uses_gpus() and ":" not in device
        return max(1, len(distributed.visible_gpus())) if several else 1
    text = os.environ[name]
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{name}: must be a number from 1 on, or gpu; got {text!r}")
    if int(text) > 1 and ":" in device:
        raise UserError(f"DEEPCLUSTER_DEVICE={device}: is one device, for {name}={text}; leave the number out of it")
    if int(text) > 1 and os.environ.get("PET_NNODES", "1") not in ("1", "1:1"):
        raise UserError("PET_NNODES: several machines need torchrun on each: `torchrun -m stages.train --epoch 3`")
    return int(text)


def launch(stage: str, epoch: int, processes: int) -> None:
    """Run the stage in so many processes of this machine, and wait for all of them.

    UserError as one of them met it; LostProcessError for one that died otherwise: the others are then ended too.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="deepcluster-") as folder, _quiet(), _own_signals(), _settled(processes):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=_RUN.format(process=os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", f"stages.{stage}", "--epoch", str(epoch))
        except ChildFailedError as error:
            raise _cause(f"{stage}@{epoch}", processes, error.failures) from None
        except SignalException as stop:
            if stop.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + stop.sigval) from None


def launched() -> bool:
    """Whether a stage's own process started this one, and says what it fails of."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == _RUN.format(process=os.getppid())


def note_failure(line: str, exit_code: int) -> None:
    """Leave what this process fails of where torch's launcher looks for it, if one started it."""
    if path := os.environ.get(_ERROR_FILE):
        content = {"message": line, "timestamp": 0, "exit_code": exit_code}
        Path(path).write_text(json.dumps(content), encoding="utf-8")


def _cause(stage: str, processes: int, failures: Any) -> UserError:
    """The error that the others follow from: what is a mistake, else the first that was killed, but not by us."""
    told = [each.error_file_data for each in failures.values() if "exit_code" in each.error_file_data]
    if mistakes := [each["message"] for each in told if each["exit_code"] == UserError.exit_code]:
        return UserError(mistakes[0])
    if late := [each["message"] for each in told if distributed.NO_ANSWER in each["message"]]:
        return LostProcessError(late[0])  # who did not answer was killed for it
    killed = {rank: each for rank, each in failures.items() if each.exitcode < 0 and each.exitcode != -signal.SIGTERM}
    if told and not killed:
        return LostProcessError(told[0]["message"])
    own = {rank: each for rank, each in failures.items() if each.exitcode not in (-signal.SIGTERM, distributed.FOLLOWS)}
    rank, failure = next(iter((killed or own or failures).items()))
    how = (
        f"was killed by signal {-failure.exitcode} ({failure.signal_name()})"
        if failure.exitcode < 0
        else f"ended with exit code {failure.exitcode}; what it says stands above"
    )
    return LostProcessError(
        f"{stage}: process {rank} of {processes} {how}; the others were ended and nothing was published"
    )


@contextmanager
def _settled(processes: int) -> Iterator[None]:
    """The environment of the workers: the cores shared out, gloo kept on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    values = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _SECONDS_TO_STOP,
    }
    if sys.platform == "linux":
        values["GLOO_SOCKET_IFNAME"] = "lo"
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in (*added, "TORCHELASTIC_SIGNALS_TO_HANDLE"):  # the last one is set by torch
            os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's launcher logs what we say in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Torch's launcher catches signals, and leaves its handlers behind."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
