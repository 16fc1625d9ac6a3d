"""How extract and train go on where a killed process stopped."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from deepcluster.distributed import ALONE, Process
from stages.common import device

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.resuming import Progress
    from deepcluster.training import StepResult
    from deepcluster.training_state import TrainingState


def progress_of(
    stage: str,
    epoch: int,
    settings: Mapping[str, Any],
    inputs: "Mapping[str, Path]",
    process: Process = ALONE,
    *,
    once: bool = False,
) -> "Progress":
    """The stage's progress. `settings`: the params that its bytes depend on; `inputs`: the files and folders.

    Of several processes the first keeps it, whatever their number.
    """
    from deepcluster import layout
    from deepcluster.resuming import Key, Progress

    decides = {"params": dict(settings), "code": code(), "versions": _versions(), "machine": _machine()}
    key = Key(decides | {"epoch": epoch}, inputs)
    return Progress(f"{stage}@{epoch}", layout.progress(stage, epoch), key, once=once, keeps=process.first)


def take_steps(
    begin: "Callable[[int], Generator[StepResult]]",
    state: "TrainingState",
    progress: "Progress",
    *,
    steps: int,
    images: int,
    process: Process = ALONE,
) -> "list[StepResult]":
    """All steps of an epoch: those of an interrupted run, whose state is taken up, and those of `begin(steps taken)`.

    Nothing is kept after the last step but one: a compiled backbone that sees the last batch alone, which may be
    smaller, rounds otherwise than one that has seen the others. Several processes take the same steps, and stop after
    the same one when one of them is told to.
    """
    from deepcluster.progress import counted

    arrays = progress.found()
    if process.from_first(arrays is not None) and not process.first:
        arrays = progress.beside()
    results = [] if arrays is None else state.restore(arrays)
    process.wait()  # until all have read what the next keeping replaces
    if results and process.first:
        print(f"{progress.label}: continues at step {len(results):,} of {steps:,}", file=sys.stderr)
    agree = None if process.count == 1 else lambda caught: int(process.largest(caught))

    def taken() -> "Iterator[StepResult]":
        with closing(begin(len(results))) as new:
            for step in new:
                results.append(step)
                if step.step != steps - 1:
                    progress.boundary(lambda: state.arrays(results), agree)
                yield step

    seen = sum(step.images for step in results)
    label = process.label(progress.label)
    with progress.catching():
        done = taken()
        for _ in (
            counted(done, label, images, "images", lambda step: step.images, start=seen) if process.first else done
        ):
            pass
    return results


def noting(blocks: "Generator[NDArray[np.float32]]", progress: "Progress") -> "Iterator[NDArray[np.float32]]":
    """The blocks passed through; after a while, or a signal, it is noted what the rows written so far belong to."""
    with closing(blocks):
        for block in blocks:
            yield block
            progress.boundary(dict)


@functools.cache
def code() -> str:
    """`digest_of_code`, once a process; more than decides the stage's bytes, but certainly that."""
    from deepcluster.fingerprints import digest_of_code

    return digest_of_code()


def _versions() -> dict[str, str]:
    """Of all that computes a kept state: the contrastive losses are pytorch-metric-learning's."""
    import platform
    from importlib.metadata import version

    import numpy
    import torch

    from deepcluster import __version__

    return {
        "deepcluster": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "pytorch-metric-learning": version("pytorch-metric-learning"),
    }


def _machine() -> list[object]:
    """What rounding depends on: device, threads, instruction set; deterministic algorithms alone or not."""
    import platform

    import torch

    found = device()
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else platform.machine()
    exact = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads() if found.type == "cpu" else 0
    return [found.type, name, threads, torch.backends.cpu.get_cpu_capability(), exact]
