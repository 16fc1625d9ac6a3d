"""What it costs that extract and train can be continued: Digits, which keep nothing, and how long keeping takes."""

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.data import Source

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Kept:
    """Of one backbone with SGD's momentum: megabytes of its state, seconds to keep it (median), and to read it."""

    name: str
    megabytes: float
    seconds: float
    read_seconds: float


@dataclass(frozen=True)
class Overhead:
    """CPU seconds of a stage with its progress and without, the ratio being the median of the rounds'."""

    name: str
    seconds: float
    without: float
    ratio: float
    lowest: float
    highest: float


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> dict[str, Any]:
    """Both tables."""
    found: dict[str, Any] = {"overhead": overheads(3 if quick else 15)}
    rows = [
        (row.name, *map(results.number, (row.seconds, row.without, row.ratio, row.lowest, row.highest)))
        for row in found["overhead"]
    ]
    print(results.table(("Digits, CPU seconds", "as it is", "nothing kept", "ratio", "lowest", "highest"), rows))
    found["kept"] = [kept(arch) for arch in (("convnet",) if quick else ("convnet", "resnet18", "alexnet"))]
    rows = [(row.name, *map(results.number, (row.megabytes, row.seconds, row.read_seconds))) for row in found["kept"]]
    print("\n" + results.table(("state of train", "MB", "s to keep", "s to read"), rows))
    return found


def overheads(rounds: int) -> list[Overhead]:
    """train@1 and extract@1 of Digits, interleaved; then with everything kept after each step."""
    from stages.extract import extract
    from stages.train import train

    with _digits():
        return [
            _overhead("train", train, rounds),
            _overhead("extract", extract, rounds),
            _overhead("train, kept after every step", train, rounds, DEEPCLUSTER_PROGRESS_SECONDS="0"),
        ]


def _overhead(name: str, stage: Callable[[int], None], rounds: int, **variables: str) -> Overhead:
    own, other = [], []
    for round_ in range(rounds + 1):
        with _environment(variables):
            seconds = _cpu_seconds(stage)
        with _nothing_kept():
            without = _cpu_seconds(stage)
        if round_:  # the first one warms up
            own.append(seconds)
            other.append(without)
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    medians = statistics.median(own), statistics.median(other), statistics.median(ratios)
    return Overhead(name, *medians, min(ratios), max(ratios))


def _cpu_seconds(stage: Callable[[int], None]) -> float:
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        started = time.process_time()
        stage(1)
        return time.process_time() - started


class _Nothing:
    """In the place of a stage's progress."""

    label = "nothing kept"

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def found(self) -> None:
        return None

    def claim(self) -> bool:
        return False

    def boundary(self, arrays: object) -> None:
        pass

    def clear(self) -> None:
        pass

    def catching(self) -> Any:
        return contextlib.nullcontext()


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    import stages.extract
    import stages.train

    modules: tuple[Any, ...] = (stages.extract, stages.train)
    before = [module.progress_of for module in modules]
    for module in modules:
        module.progress_of = lambda *_, **__: _Nothing()
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module.progress_of = original


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    os.environ |= variables
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


@contextlib.contextmanager
def _digits() -> Iterator[None]:
    """A project of Digits with the usual settings as current folder, up to train@1."""
    from stages.cluster import cluster
    from stages.extract import extract
    from stages.initialise import initialise
    from stages.pca import pca
    from stages.prepare import prepare

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(CHECKOUT / "params.yaml", Path(folder, "params.yaml"))
        os.chdir(folder)
        try:
            prepare()
            initialise()
            for stage in (extract, pca, cluster):
                stage(1)
            yield
        finally:
            os.chdir(before)


def kept(arch: Any, rounds: int = 5) -> Kept:
    """Weights and momentum of a backbone, written as progress is, to the temporary folder's disk."""
    import torch

    from deepcluster.artifacts import read_progress, write_progress
    from deepcluster.models.build import build_backbone
    from deepcluster.training_state import TrainingState

    backbone = build_backbone(
        arch, channels=3, image_size=32 if arch == "convnet" else 224, sobel=False, grayscale=False
    )
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01, momentum=0.9)
    for weight in backbone.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state, seconds = TrainingState({"backbone": backbone}, [optimizer], {}), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.safetensors")
        for _ in range(rounds):
            started = time.perf_counter()
            write_progress(path, state.arrays([]), {})
            seconds.append(time.perf_counter() - started)
        size, started = path.stat().st_size, time.perf_counter()
        state.restore(read_progress(path)[0])
        return Kept(arch, size / 1e6, statistics.median(seconds), time.perf_counter() - started)
