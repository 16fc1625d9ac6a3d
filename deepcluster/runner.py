"""The whole DAG in one warm process: DVC decides what is stale, saves and caches; the stages are called as functions.

Of DVC it uses `Repo.reproduce` with its own way to reproduce one stage (`repro_fn`), and puts a function call in the
place of the shell command (`dvc.stage.run.cmd_run`). Neither is documented, so the tested versions are pinned and what
is needed is looked for at the start. dvc.lock is written once an epoch instead of once a stage; a run that is killed in
between finds its last stages in the run-cache.
"""

import inspect
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deepcluster import artifacts, layout
from deepcluster.errors import RunnerError, UserError
from deepcluster.evaluation.epochs import epoch_row
from deepcluster.faults import explained, unwritable
from deepcluster.fingerprints import code_at_start
from deepcluster.lockfile import check_lock, write_entries
from deepcluster.memo import looked_at_once
from deepcluster.mending import alone
from deepcluster.params import PARAMS_FILE, load_params
from deepcluster.plan import check_schedule
from deepcluster.pruned import read_pruned
from deepcluster.pulling import pull as pull_outputs
from stages.cluster import cluster
from stages.common import open_images, remove_leavings
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


class Done(NamedTuple):
    """Numbers of stages: whose command ran, and whose outputs came from DVC's cache or run-cache instead."""

    ran: int
    restored: int


def run(targets: Sequence[str] = (), *, pull: bool = False) -> Done:
    """Bring `targets` (DVC stages; all, if none are named) up to date; how many stages ran or were restored.

    pull: take from DVC's remote what it has, of outputs and of earlier runs.

    Afterwards dvc.lock, the cache and the artifacts are what `dvc repro` would have made. UserError from a stage passes
    through; what was finished before it is saved.
    """
    check_dvc()
    from dvc.exceptions import DvcException, ReproductionError

    code_at_start.cache_clear()
    code_at_start(Path.cwd())
    params = load_params()
    epochs = params.epochs
    check_schedule(epochs)
    check_lock()
    _refuse_changed_weights(params.model.weights)
    last = max([_epoch(target) for target in targets] or [epochs]) or epochs
    remove_leavings()
    try:
        with (
            looked_at_once(),
            alone() as repo,
            _LockedOnceAnEpoch(EpochTable(last), targets, pulling=pull) as locking,
            _in_process(PARAMS_FILE.read_bytes()) as called,
        ):
            if pull:
                locking.pull(repo)
            repo.reproduce(targets=list(targets) or None, repro_fn=locking.reproduce)
            return Done(len(called), locking.done - len(called))
    except ReproductionError as error:
        cause = _cause(error)
        if isinstance(cause, UserError | KeyboardInterrupt):
            raise cause from None
        raise explained(cause) or unwritable(layout.DATA) or RunnerError(f"{error}: {cause}") from cause
    except DvcException as error:
        raise explained(error) or RunnerError(f"dvc: {' '.join(str(error).split())}") from error


def check_dvc() -> None:
    """RunnerError unless this DVC has what the runner needs."""
    import dvc
    import dvc.stage.run
    from dvc.dvcfile import Lockfile, ProjectFile
    from dvc.repo import Repo, lock_repo
    from dvc.repo.reproduce import _reproduce
    from dvc.stage import PipelineStage, serialize
    from dvc.utils.serialize import dumps_yaml

    if not dvc.__version__.startswith(f"{TESTED}."):
        raise RunnerError(f"dvc {dvc.__version__}: `deepcluster run` is tested with dvc {TESTED} only; {USE_REPRO}")
    needed = {
        "dvc.repo.reproduce._reproduce(repro_fn)": "repro_fn" in inspect.signature(_reproduce).parameters,
        "dvc.stage.run.cmd_run": list(inspect.signature(dvc.stage.run.cmd_run).parameters)[:1] == ["stage"],
        "dvc.repo.lock_repo": callable(lock_repo),
        "Repo(_wait_for_lock)": "_wait_for_lock" in inspect.signature(Repo).parameters,
        "Lockfile.dump_stages": hasattr(Lockfile, "dump_stages"),
        "dvc.stage.serialize.to_lockfile": callable(getattr(serialize, "to_lockfile", None)),
        "dvc.utils.serialize.dumps_yaml": callable(dumps_yaml),
        "ProjectFile._lockfile": hasattr(ProjectFile, "_lockfile"),
        "PipelineStage.reproduce": hasattr(PipelineStage, "reproduce"),
    }
    missing = [name for name, found in needed.items() if not found]
    if missing:
        raise RunnerError(f"dvc {dvc.__version__} lacks {', '.join(missing)}; {USE_REPRO}")


def _refuse_changed_weights(path: str | None) -> None:
    """RunnerError if the file that `model.weights` names is not what epoch 0 was made of: DVC knows its name only."""
    before = artifacts.checkpoint_params(layout.checkpoint(0))
    now = artifacts.weights_sha256(Path(path).expanduser()) if path else None
    if now and before.get("weights") == path and now != before.get("weights_sha256"):
        raise RunnerError(
            f"model.weights: {path} has changed since `initialise` read it, which DVC does not see; run "
            "`dvc repro -s -f initialise` first"
        )


class _LockedOnceAnEpoch:
    """Reproduces stages as DVC does, but keeps their lock entries until an epoch is complete, or the run ends.

    Pruned feature dumps are left alone until a stage that must run reads one, or `targets` name its stage.
    """

    def __init__(self, table: "EpochTable", targets: Sequence[str], *, pulling: bool) -> None:
        self.done = 0
        self._pending: list[Any] = []
        self._table = table
        self._wanted = set(targets)
        self._pulling = pulling
        self._pruned = read_pruned()
        self._left: dict[str, tuple[Any, dict[str, Any]]] = {}  # stages without their pruned dump, by its path

    def __enter__(self) -> "_LockedOnceAnEpoch":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def pull(self, repo: Any) -> None:
        """Bring what the remote has of the stages to run into the cache, but for what was pruned."""
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        chosen = collect_stages(repo, self._wanted or ["dvc.yaml"])
        planned = plan_repro(get_active_graph(repo.index.graph), chosen)
        outputs = [out for stage in planned for out in stage.outs if out not in self._gone(stage)]
        print(f"{pull_outputs(repo, outputs)} files pulled", flush=True)

    def reproduce(self, stage: Any, **kwargs: Any) -> Any:
        """`repro_fn` of DVC: the stage if it ran (or came from the run-cache), None if nothing had changed."""
        if gone := self._gone(stage):
            if not _changed_but_for(stage, gone):
                self._left |= {out.fs_path: (stage, kwargs) for out in stage.outs if out in gone}
                return None
            if self._restore(stage, kwargs):
                return None
            for item in gone:
                if item.fs_path in self._left:
                    producer, its = self._left.pop(item.fs_path)
                    self._reproduce(producer, **its)
        return self._reproduce(stage, **kwargs)

    def _gone(self, stage: Any) -> list[Any]:
        """Of a stage's outputs and dependencies those that were pruned, as dvc.lock names them, and are not back."""
        if not self._pruned:
            return []
        asked_for = {stage.name, stage.name.partition("@")[0]} & self._wanted
        return [
            item
            for item in (*(() if asked_for else stage.outs), *stage.deps)
            if item.hash_info
            and self._pruned.get(item.def_path) == item.hash_info.value
            and not item.exists
            and item.changed_cache()  # of a dependency always true
        ]

    def _reproduce(self, stage: Any, **kwargs: Any) -> Any:
        if not _changed_but_for(stage, []):  # before DVC does, since it rewrites its list of readers for each
            return None
        if stage.name.startswith("extract@"):
            self._table.begin()
        if self._pulling:
            if self._restore(stage, kwargs):
                return None
            kwargs["pull"] = stage.changed(True, kwargs.get("upstream"))  # of other stages all that there is has come
        done = stage.reproduce(**kwargs)
        if done:
            self.done += 1
            self._pending.append(done)
            if not stage.name.startswith(("extract@", "pca@", "cluster@")):
                self._write()
            if stage.name.startswith("train@"):
                print(self._table.row(_epoch(stage.name)), flush=True)
        return done

    def _restore(self, stage: Any, kwargs: dict[str, Any]) -> bool:
        restored = _restored(stage, kwargs.get("upstream"))
        self.done += restored
        return restored

    def _write(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, []
            write_entries(pending[0].dvcfile._lockfile, pending)
            _let_go(pending)


def _changed_but_for(stage: Any, gone: Sequence[Any]) -> bool:
    """DVC's `Stage.changed`, were the outputs and dependencies `gone` there."""
    if stage.frozen or stage.is_callback or stage.always_changed:
        return True
    return stage.changed_stage() or any(item.status() for item in (*stage.deps, *stage.outs) if item not in gone)


def _restored(stage: Any, upstream: Any) -> bool:
    """Whether nothing had changed, and what was missing in the workspace is there again, from the cache."""
    from dvc.exceptions import CheckoutError

    missing = [out for out in stage.outs if not out.exists]
    if not missing or stage.changed(True, upstream) or any(out.changed_cache() for out in missing):
        return False
    try:
        for out in missing:
            out.checkout()
    except CheckoutError:
        return False
    return True


def _let_go(stages: Sequence[Any]) -> None:
    """Drop what DVC keeps to its end of every output and dependency of stages that are recorded, 0.35 MB an epoch.

    Listings of folders: those of outputs are in the cache, where what needs one again reads it; of dependencies only
    the hash is used. Hashes and values of params: dvc.lock has them, and later stages hash their own inputs.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta
    from dvc_objects.fs import MemoryFileSystem

    for stage in stages:
        for item in (*stage.outs, *stage.deps):
            item.obj, item.hash_info, item.meta = None, HashInfo(), Meta()
    staged = MemoryFileSystem().fs  # where DVC lays each listing to hash it, and leaves it
    staged.store.clear()
    staged.pseudo_dirs[:] = [""]


class EpochTable:
    """A header and a row of the epoch table whenever an epoch is complete, with its time and what is left of the run.

    No column needs true labels: a run shows nothing that could tempt anyone to tune on them.
    """

    COLUMNS = ("epoch", "loss", "accuracy", "NMI previous", "smallest", "largest", "effective k", "time", "left")

    def __init__(self, last: int) -> None:
        self._last = last
        self._began = time.perf_counter()
        self._seconds: list[float] = []

    def begin(self) -> None:
        """An epoch begins."""
        self._began = time.perf_counter()

    def row(self, epoch: int) -> str:
        """Of this epoch, whose stages are published; its seconds are those since it began."""
        self._seconds.append(time.perf_counter() - self._began)
        found = epoch_row(epoch, open_images().ids, None)
        left = statistics.median(self._seconds) * (self._last - epoch)
        cells = [
            f"{epoch}/{self._last}",
            f"{found['loss']:.4f}",
            f"{found['pseudo_label_accuracy']:.3f}",
            "-" if found["nmi_previous"] is None else f"{found['nmi_previous']:.3f}",
            f"{found['smallest']:,}",
            f"{found['largest']:,}",
            f"{found['effective_k']:.1f}",
            f"{self._seconds[-1]:.1f} s",
            _clock(left),
        ]
        widths = [max(len(name), 7) for name in self.COLUMNS]
        lines = [self.COLUMNS, cells]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )


def _epoch(stage: str) -> int:
    """3 for train@3; 0 for a stage of no epoch."""
    epoch = stage.rpartition("@")[2]
    return int(epoch) if epoch.isdecimal() else 0


@contextmanager
def _in_process(params: bytes) -> Iterator[list[str]]:
    """Commands `python -m stages.x` become function calls; a params.yaml that changes meanwhile is refused.

    Yields the names of the stages whose command ran, so far.
    """
    import dvc.stage.run as dvc_run

    original, started = dvc_run.cmd_run, time.perf_counter()
    called: list[str] = []

    def call(stage: Any, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
        if PARAMS_FILE.read_bytes() != params:
            raise RunnerError(f"{PARAMS_FILE} changed during the run; finished stages are kept: start it again")
        called.append(stage.addressing)
        function, arguments = _parse(stage.cmd)
        if dry or function is None:
            original(stage, dry=dry, run_env=run_env)
            return
        print(f"[{_clock(time.perf_counter() - started)}] {stage.addressing}", flush=True)
        with _environment(DVC_STAGE=stage.addressing, DVC_ROOT=str(stage.repo.root_dir)):
            function(**arguments)

    dvc_run.cmd_run = call
    try:
        yield called
    finally:
        dvc_run.cmd_run = original


def _parse(command: Any) -> tuple[Callable[..., None] | None, dict[str, Any]]:
    """The stage function and its arguments for `python -m stages.x [--epoch E]`; (None, {}) for any other command."""
    match shlex.split(command) if isinstance(command, str) else []:
        case ["python", "-m", module] if module in STAGES:
            return STAGES[module], {}
        case ["python", "-m", module, "--epoch", epoch] if module in STAGES and epoch.isdecimal():
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
    """m:ss, from an hour on h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
