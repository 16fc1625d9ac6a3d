"""The whole DAG in one warm process: DVC decides what is stale, saves and caches; the stages are called as functions.

Of DVC it uses `Repo.reproduce` with its own way to reproduce one stage (`repro_fn`), and puts a function call in the
place of the shell command (`dvc.stage.run.cmd_run`). Neither is documented, so the tested versions are pinned and what
is needed is looked for at the start. dvc.lock is written once an epoch instead of once a stage, since DVC parses and
writes the whole file each time; a run that is killed in between finds its last stages in the run-cache.
"""

import inspect
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deepcluster.errors import RunnerError, UserError
from deepcluster.params import PARAMS_FILE, load_params
from deepcluster.plan import check_schedule
from stages.cluster import cluster
from stages.evaluate import evaluate
from stages.extract import extract
from stages.initialise import initialise
from stages.pca import pca
from stages.prepare import prepare
from stages.report import report
from stages.train import train

STAGES: dict[str, Callable[..., None]] = {
    "stages.prepare": prepare,
    "stages.initialise": initialise,
    "stages.extract": extract,
    "stages.pca": pca,
    "stages.cluster": cluster,
    "stages.train": train,
    "stages.evaluate": evaluate,
    "stages.report": report,
}
TESTED = "3.67"
USE_REPRO = "use `dvc repro` instead; it gives the same result"


def run(targets: Sequence[str] = ()) -> int:
    """Bring `targets` (DVC stages; all, if none are named) up to date; the number of stages that ran.

    Afterwards dvc.lock, the cache and the artifacts are what `dvc repro` would have made. UserError from a stage passes
    through; what was finished before it is saved.
    """
    check_dvc()
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.repo import Repo

    check_schedule(load_params().epochs)
    try:
        with Repo() as repo, _LockedOnceAnEpoch() as locking, _in_process(PARAMS_FILE.read_bytes()):
            return len(repo.reproduce(targets=list(targets) or None, repro_fn=locking.reproduce))
    except ReproductionError as error:
        cause = _cause(error)
        if isinstance(cause, UserError | KeyboardInterrupt):
            raise cause from None
        raise RunnerError(f"{error}: {cause}") from cause
    except DvcException as error:
        raise RunnerError(f"dvc: {error}") from error


def check_dvc() -> None:
    """RunnerError unless this DVC has what the runner needs."""
    import dvc
    import dvc.stage.run
    from dvc.dvcfile import Lockfile, ProjectFile
    from dvc.repo.reproduce import _reproduce
    from dvc.stage import PipelineStage

    if not dvc.__version__.startswith(f"{TESTED}."):
        raise RunnerError(f"dvc {dvc.__version__}: `deepcluster run` is tested with dvc {TESTED} only; {USE_REPRO}")
    needed = {
        "dvc.repo.reproduce._reproduce(repro_fn)": "repro_fn" in inspect.signature(_reproduce).parameters,
        "dvc.stage.run.cmd_run": list(inspect.signature(dvc.stage.run.cmd_run).parameters)[:1] == ["stage"],
        "Lockfile.dump_stages": hasattr(Lockfile, "dump_stages"),
        "ProjectFile._lockfile": hasattr(ProjectFile, "_lockfile"),
        "PipelineStage.reproduce": hasattr(PipelineStage, "reproduce"),
    }
    missing = [name for name, found in needed.items() if not found]
    if missing:
        raise RunnerError(f"dvc {dvc.__version__} lacks {', '.join(missing)}; {USE_REPRO}")


class _LockedOnceAnEpoch:
    """Reproduces stages as DVC does, but keeps their lock entries until an epoch is complete, or the run ends."""

    def __init__(self) -> None:
        self._pending: list[Any] = []

    def __enter__(self) -> "_LockedOnceAnEpoch":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def reproduce(self, stage: Any, **kwargs: Any) -> Any:
        """`repro_fn` of DVC: the stage if it ran (or came from the run-cache), None if nothing had changed."""
        done = stage.reproduce(**kwargs)
        if done:
            self._pending.append(done)
            if not stage.name.startswith(("extract@", "pca@", "cluster@")):
                self._write()
        return done

    def _write(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, []
            pending[0].dvcfile._lockfile.dump_stages(pending)


@contextmanager
def _in_process(params: bytes) -> Iterator[None]:
    """Commands `python -m stages.x` become function calls; a params.yaml that changes meanwhile is refused."""
    import dvc.stage.run as dvc_run

    original, started = dvc_run.cmd_run, time.perf_counter()

    def call(stage: Any, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
        if PARAMS_FILE.read_bytes() != params:
            raise RunnerError(f"{PARAMS_FILE} changed during the run; finished stages are kept: start it again")
        function, arguments = _parse(stage.cmd)
        if dry or function is None:
            original(stage, dry=dry, run_env=run_env)
            return
        print(f"[{_clock(time.perf_counter() - started)}] {stage.addressing}", flush=True)
        with _environment(DVC_STAGE=stage.addressing, DVC_ROOT=str(stage.repo.root_dir)):
            function(**arguments)

    dvc_run.cmd_run = call
    try:
        yield
    finally:
        dvc_run.cmd_run = original


def _parse(command: Any) -> tuple[Callable[..., None] | None, dict[str, Any]]:
    """The stage function and its arguments for `python -m stages.x [--epoch E]`; (None, {}) for any other command."""
    match shlex.split(command) if isinstance(command, str) else []:
        case ["python", "-m", module] if module in STAGES:
            return STAGES[module], {}
        case ["python", "-m", module, "--epoch", epoch] if module in STAGES and epoch.isdigit():
            return STAGES[module], {"epoch": int(epoch)}
        case _:
            return None, {}


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cause(error: BaseException) -> BaseException:
    """The first cause of an error, or the nearest UserError on the way."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
