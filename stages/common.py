"""What every stage needs around its work: the command line, errors, the schedule's guard, timings, the device."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepcluster import completion, distributed, launching, layout, locking, processes
from deepcluster.determinism import deterministic_torch
from deepcluster.errors import BusyError, DistributedError, RunnerError, UserError, in_ranges
from deepcluster.faults import explained, explaining
from deepcluster.fingerprints import changed_code, check_code, code_at_start
from deepcluster.params import PARAMS_FILE, Params, at_epoch, changed_params, load_params
from deepcluster.params.file import read_text
from deepcluster.plan import check_schedule, rate_ends_elsewhere, scheduled_epochs
from deepcluster.settings import set_params
from deepcluster.threads import settle
from deepcluster.timings import recorded

if TYPE_CHECKING:
    import torch

    from deepcluster.artifacts import Store

Epoch = Annotated[
    int,
    typer.Option(
        "--epoch", "-e", help="Epoch to compute, from 1.", show_default=False, autocompletion=completion.epochs
    ),
]

INTERRUPTED = 130

# What makes a stage need less memory.
LESS_MEMORY = {
    "prepare": "set a smaller data.image_size",
    "initialise": "set a smaller model.arch",
    "extract": "set a smaller extract.batch_size, or DEEPCLUSTER_MEMORY_SHARE=0 to map the images from the disk",
    "pca": "set pca.backend streaming, or fewer pca.components",
    "cluster": "set fewer pca.components, or cluster.points_per_centroid",
    "train": "set a smaller train.batch_size, or DEEPCLUSTER_MEMORY_SHARE=0 to map the images from the disk",
    "evaluate": "set a smaller extract.batch_size, evaluate.probe none or evaluate.retrieval false",
    "report": "set a smaller evaluate.gallery",
}

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-S",
        metavar="KEY=VALUE",
        help="Set a key of params.yaml, and leave it so: e.g. -S cluster.k=50; again for more.",
        show_default=False,
        autocompletion=completion.settings,
    ),
]


def main(command: Callable[..., None]) -> None:
    """Run one stage as a program of its own; one that DVC starts, or a launcher, does not outlive it."""
    worker = distributed.started_by_a_launcher()
    if worker or "DVC_STAGE" in os.environ:
        processes.end_with_parent()
    if not worker and "DVC_STAGE" in os.environ:
        remove_leavings()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(overridable(command))
    run_app(app)


def overridable(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for a command line, with the option -S, which edits params.yaml before any work.

    DVC decides by that file what is stale, so an override that only one process knew would be lost on it.
    """

    @functools.wraps(command)
    def with_option(overrides: list[str] | None = None, **arguments: object) -> None:
        refuse_epoch(arguments.get("epoch"))
        if overrides and distributed.world_size() > 1:
            raise UserError("-S: each of several processes would edit params.yaml; use `deepcluster set` before")
        override(overrides)
        command(**arguments)

    own = inspect.signature(command)
    option = inspect.Parameter("overrides", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Overrides)
    with_option.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
    with_option.__annotations__ = {**command.__annotations__, "overrides": Overrides}
    return with_option


def override(overrides: list[str] | None, *, plans: bool = False) -> None:
    """Set keys of params.yaml and print what changed; unless the command plans next, also what no longer fits."""
    if not overrides:
        return
    changes = set_params(overrides)
    for change in changes:
        print(f"params.yaml: {change}")
    if plans:
        return
    params, keys = load_params(), [change.key for change in changes]
    if "epochs" in keys and len(scheduled_epochs()) != params.epochs:
        print(f"{layout.SCHEDULE} unrolls another number of epochs: run `deepcluster plan` before `dvc repro`")
    if any(key == "epochs" or key.startswith("train.schedule.") for key in keys):
        say_if_rate_ends_elsewhere(params)


def say_if_rate_ends_elsewhere(params: Params) -> None:
    """Print `plan.rate_ends_elsewhere`, if there is anything to say."""
    if note := rate_ends_elsewhere(params):
        print(note)


def run_app(app: typer.Typer) -> None:
    """Run a typer app; a UserError becomes one line on stderr and its exit code, mostly 2; Ctrl-C exit code 130.

    So does what the machine refuses (`deepcluster.faults`): no space, no memory, no right to write. A process that
    another stage's process has started leaves the line to that one.
    """
    settle()  # read when torch and faiss load, which is after this line
    try:
        app()
    except Exception as error:
        known = error if isinstance(error, UserError) else explained(error)
        if known is None:
            raise
        launching.note_failure(str(known), known.exit_code)
        for line in () if launching.launched() else str(known).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(known.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer makes an exit code of Ctrl-C, without a word
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        if not launching.launched() and distributed.rank() == 0:
            print("interrupted; what was published before stays, the same command carries on", file=sys.stderr)
        sys.exit(INTERRUPTED)


def refuse_epoch(epoch: object) -> None:
    """UserError for an epoch that no stage has: below 1, or not in stages/schedule.yaml, where there is that."""
    if not isinstance(epoch, int):
        return
    if epoch < 1:
        raise UserError(f"--epoch: must be >= 1 (epoch 0 is the untrained backbone of `initialise`); got {epoch}")
    there = scheduled_epochs()
    if there and epoch not in there:
        more = f"`deepcluster plan --epochs {epoch}` schedules it"
        raise UserError(f"--epoch: must be one that is scheduled ({in_ranges(there)}); got {epoch}; {more}")


@contextmanager
def stage(name: str, epoch: int | None = None, process: distributed.Process = distributed.ALONE) -> Iterator[Params]:
    """The validated params for one stage's work, as they apply to its epoch; the work is timed.

    With `deterministic` torch takes deterministic algorithms alone.

    Refuses epochs that are not scheduled and, when DVC runs the stage, a schedule that does not fit `epochs`, or a
    package that is not the one in stages/code.yaml: so a stale file stops whichever stage comes first, before it has
    done anything. One process at a time is in a stage: two would publish in turns. Of several that work together (see
    `together`) that is the first. Params that the stage reads and that change while it runs, and its code where that
    has changed since the process read it, are refused at its end: DVC notes those that stand there then.
    """
    refuse_epoch(epoch)
    by_dvc = process.first and "DVC_STAGE" in os.environ
    begun_with = read_text(PARAMS_FILE) if by_dvc else ""
    params = load_params()
    addressed = name if epoch is None else f"{name}@{epoch}"
    if process.count == 1 < distributed.world_size():
        raise DistributedError(f"{addressed}: is the work of one process; start it without torchrun")
    if by_dvc:
        code_at_start(Path.cwd())
        _refuse_beside_others(addressed)
        check_schedule(params.epochs)
        check_code()
    with (
        explaining(addressed, LESS_MEMORY.get(name)),
        locking.only_writer(addressed) if process.first else nullcontext(),
        recorded(name, epoch) if process.first else nullcontext(),
        deterministic_torch(params.deterministic and _uses_torch(name)),
    ):
        yield at_epoch(params, epoch)
        if by_dvc:
            _refuse_changed(name, addressed, begun_with)


def _refuse_changed(name: str, addressed: str, params_before: str) -> None:
    """RunnerError where DVC would note other params or other code than those that made what the stage made."""
    again = "what it made does not count: start it again"
    if keys := changed_params(name, params_before):
        raise RunnerError(
            f"{PARAMS_FILE}: changed while {addressed} ran, in what that stage reads ({', '.join(keys)}); {again}"
        )
    if files := changed_code(name):
        raise RunnerError(f"{', '.join(files)}: changed since this process started, and {addressed} reads it; {again}")


def _refuse_beside_others(stage: str) -> None:
    """BusyError where `deepcluster run` is at work, or where the DVC that started this stage has been killed since."""
    if processes.orphaned(processes.dvc_writers()):
        raise BusyError(f"{stage}: the DVC that started it has ended; nothing was done")
    locking.refuse_beside_run(stage)


def remove_leavings() -> None:
    """Delete what killed processes left in the folders that the pipeline publishes to; what cannot be deleted stays."""
    from deepcluster import artifacts

    shallow = (
        Path(),
        layout.SCHEDULE.parent,
        layout.DATA,
        layout.IMAGES.parent,
        layout.EVALUATION,
        layout.REPORT.parent,
    )
    with suppress(OSError):  # a stage that can write nothing says so itself
        for folder in shallow:
            artifacts.remove_leavings(folder)
        for folder in (layout.EPOCHS, layout.HISTORY):
            artifacts.remove_leavings(folder, depth=1)


def _uses_torch(stage: str) -> bool:
    """Whether the stage computes with torch; the others should not have to import it."""
    return stage in ("extract", "train", "evaluate") or (stage == "pca" and torch_gpu() is not None)


def open_images() -> "Store":
    """The data set's images, which every other artifact is checked against."""
    from deepcluster import artifacts

    return artifacts.open_store(layout.IMAGES, "images", made_by="prepare")


def faiss_gpu(*, deterministic: bool = False) -> bool | None:
    """Whether faiss may use a GPU: not when DEEPCLUSTER_DEVICE says CPU; None leaves it to what faiss finds.

    Nor where the same bytes are demanded each time: on GPUs faiss promises no order of addition.
    """
    return False if deterministic or os.environ.get("DEEPCLUSTER_DEVICE", "").startswith("cpu") else None


def torch_gpu() -> str | None:
    """The CUDA device that torch may use, or None. Torch, slow to import, is asked only where there is a driver."""
    name = os.environ.get("DEEPCLUSTER_DEVICE", "")
    if not (name.startswith("cuda") or (not name and os.path.exists("/proc/driver/nvidia/version"))):
        return None
    found = device()
    return str(found) if found.type == "cuda" else None


def device() -> "torch.device":
    """DEEPCLUSTER_DEVICE, else the GPU if there is one, else the CPU. Never part of params.yaml or dvc.lock."""
    import torch

    name = os.environ.get("DEEPCLUSTER_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"DEEPCLUSTER_DEVICE={name}: not usable here: {str(error).splitlines()[0]}") from None
    return torch.device(name)
