"""Several processes on this machine for a test, forked from it so that torch need not load again, joined by gloo."""

import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed  # loaded once, before the forks
from conftest import CHECKOUT, digests
from test_shards import small

from deepcluster import artifacts, layout, processes
from deepcluster.distributed import Process, joined
from stages.cluster import cluster
from stages.common import main
from stages.extract import extract
from stages.pca import pca


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code (negative: a signal), what it printed, what it was asked for."""

    code: int
    out: str
    err: str
    found: Any = None


_hosts: list[int] = []


def _store_port() -> int:
    """Of a store in a process of its own, as the launcher's is: a fork beside its thread might hang.

    It lives until the next one is asked for, or this process ends.
    """
    while _hosts:
        os.kill(_hosts[0], signal.SIGKILL)
        os.waitpid(_hosts.pop(), 0)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        processes.end_with_parent()
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, f"{store.port}\n".encode())
        while True:
            signal.pause()
    _hosts.append(child)
    os.close(writing)
    with open(reading) as port:
        return int(port.readline())


def environment(count: int) -> list[dict[str, str]]:
    """What torch's launcher gives each process."""
    common = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_store_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "DEEPCLUSTER_DEVICE": "cpu",
        "DEEPCLUSTER_TIMEOUT": "60",
    }
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


SMALL = {"chunk": 64, "shard": 128}  # bytes: of the tests' features each row is a shard, of their components eight


def small_shards(folder: Path) -> str:
    """PYTHONPATH for processes that write chunks and shards of the size SMALL, as `test_shards.small` in this one."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from deepcluster.artifacts import store\n"
        f"store.CHUNK_BYTES, store.SHARD_BYTES = {SMALL['chunk']}, {SMALL['shard']}\n"
    )
    return os.pathsep.join([str(folder), str(CHECKOUT)])


def digests_and_labels_of_one_process() -> tuple[dict[str, str], Any]:
    """Files of features.zarr and labels as this process makes them in chunks and shards of the size SMALL; taken away.

    The images' store stays as it is.
    """
    with small(**SMALL):
        for path, stage in ((layout.features(1), extract), (layout.pca(1), pca), (layout.clusters(1), cluster)):
            artifacts.remove(path)
            stage(1)
    labels_N = artifacts.open_store(layout.clusters(1), "clusters", made_by="cluster@1").read("labels")
    found = digests(Path(), str(layout.features(1)))
    for path in (layout.features(1), layout.pca(1), layout.clusters(1)):
        artifacts.remove(path)
    return found, labels_N


def in_processes(count: int, work: Callable[[Process], Any], folder: Path) -> list[Any]:
    """What `work` returns in each process, which must end well."""

    def run(rank: int) -> Any:
        with joined() as process:
            return work(process)

    ended = forked(run, environment(count), folder)
    assert [each.code for each in ended] == [0] * count, "\n".join(each.err for each in ended)
    return [each.found for each in ended]


def stage_in_processes(
    stage: Callable[..., None],
    count: int,
    folder: Path,
    *,
    before: Callable[[int], None] = lambda rank: None,
    variables: Mapping[str, str] | None = None,
) -> list[Ended]:
    """`python -m stages.X --epoch 1` as torch's launcher runs it; `before` is called in each process, with its rank."""

    def run(rank: int) -> None:
        before(rank)
        sys.argv = [stage.__name__, "--epoch", "1"]
        main(stage)

    return forked(run, [each | dict(variables or {}) for each in environment(count)], folder)


def forked(work: Callable[[int], Any], environments: Sequence[Mapping[str, str]], folder: Path) -> list[Ended]:
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    children = []
    for rank, variables in enumerate(environments):
        child = os.fork()
        if child == 0:
            _child(work, rank, variables, folder)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [_ended(code, folder / str(rank)) for rank, code in enumerate(codes)]


def _ended(code: int, place: Path) -> Ended:
    found = place.with_suffix(".found")
    return Ended(
        code,
        place.with_suffix(".out").read_text(),
        place.with_suffix(".err").read_text(),
        pickle.loads(found.read_bytes()) if found.exists() else None,
    )


def _child(work: Callable[[int], Any], rank: int, variables: Mapping[str, str], folder: Path) -> None:
    code, place = 1, folder / str(rank)
    try:
        for number, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(place.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ |= variables
        faulthandler.dump_traceback_later(300, exit=True, file=sys.stderr)
        torch.set_num_threads(1)
        place.with_suffix(".found").unlink(missing_ok=True)
        place.with_suffix(".found").write_bytes(pickle.dumps(work(rank)))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
