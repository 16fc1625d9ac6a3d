"""What the staging costs: an epoch under `dvc repro`, under `deepcluster run`, and as a bare loop; a stage's start."""

import hashlib
import itertools
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import plots
from benchmarks.data import Source
from benchmarks.project import CHECKOUT, MNIST, Finished, Project, temporary_project, trivial_project
from benchmarks.results import number, table

EPOCHS = 3
WAYS = {
    "bare loop in memory": None,
    "deepcluster run": ("deepcluster", "run", f"train@{EPOCHS}"),
    "dvc repro": ("dvc", "repro", f"train@{EPOCHS}"),
}
OVERHEAD = 0.10
TARGET_IMAGES = 60_000
CPU_PER_STAGE = 0.3
START_TARGETS = {"pca": 1.5, "cluster": 1.5, "extract": 5.0, "train": 5.0}


@dataclass(frozen=True)
class EpochTime:
    """Wall seconds of each epoch; `start` is what passed before the first one (of a run: with prepare)."""

    how: str
    images: int
    start: float
    epochs: list[float]
    overhead: float
    labels: str

    @property
    def median(self) -> float:
        return statistics.median(self.epochs)


@dataclass(frozen=True)
class StartUp:
    """Seconds of a stage's own process on 64 images of 8x8, from start to exit: medians."""

    stage: str
    wall: float
    cpu: float
    rounds: int
    target: float


@dataclass(frozen=True)
class Growth:
    """CPU seconds of a run of so many epochs of trivial stages, all processes together."""

    how: str
    epochs: int
    stages: int
    cpu: float
    wall: float

    @property
    def cpu_per_stage(self) -> float:
        return self.cpu / self.stages


def measure(
    source: Source, *, quick: bool, long: bool, images: int | None, output: Path
) -> dict[str, list[EpochTime] | list[StartUp] | list[Growth]]:
    """The three tables and the plot of growth."""
    epochs = epoch_times(source, images or (1000 if quick else 10_000))
    print(epochs_table(epochs))
    starts = start_up(rounds=2 if quick else 5)
    print("\n" + start_table(starts))
    growth = whole_runs(_epochs(quick, long, (25,), (100,), (25, 50, 100)), _epochs(quick, long, (), (), (5, 10, 25)))
    growth += one_more_epoch(_epochs(quick, long, (5, 10), (5, 25), (5, 10, 25, 50)))
    print("\n" + growth_table(growth))
    panel: dict[str, dict[int, float]] = {}
    for row in growth:
        panel.setdefault(row.how, {})[row.epochs] = row.cpu_per_stage
    plots.lines(output / "pipeline.svg", {"CPU seconds a stage": panel}, x_label="epochs", logarithmic=False)
    return {"epochs": epochs, "start_up": starts, "growth": growth}


def _epochs(quick: bool, long: bool, few: Sequence[int], usual: Sequence[int], many: Sequence[int]) -> Sequence[int]:
    return many if long else few if quick else usual


def epoch_times(source: Source, images: int) -> list[EpochTime]:
    """The same epochs in three ways, each time in a new project.

    In the order bare, run, repro, run, bare: the machine's speed drifts more than the ways differ, and what drifts
    evenly weighs on both alike.
    """
    digits = source.digits(images)
    rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
    for way in (*WAYS, *reversed(tuple(WAYS)[:-1])):
        rounds[way].append(one_round(digits, WAYS[way]))
    found: list[EpochTime] = []
    for way, measured in rounds.items():
        seconds = [seconds for one in measured for seconds in one.epochs]
        overhead = statistics.median(seconds) / found[0].median - 1 if found else 0.0
        labels = ", ".join(sorted({one.labels for one in measured}))
        found.append(
            EpochTime(way, images, statistics.median(one.start for one in measured), seconds, overhead, labels)
        )
    return found


class Round(NamedTuple):
    """Seconds before the first epoch and of each, and the sha256 of the last one's labels."""

    start: float
    epochs: list[float]
    labels: str


def one_round(images_NHW: NDArray[np.uint8], command: tuple[str, ...] | None) -> Round:
    """All epochs by `command`, or by the bare loop."""
    with temporary_project(images_NHW, MNIST) as project:
        project.plan(EPOCHS)
        if command is None:
            bare = (sys.executable, "-m", "benchmarks.bare", str(project.root), str(EPOCHS))
            finished = Project(CHECKOUT).run(*bare)
        else:
            finished = project.run(*command)
        start, *seconds = epoch_seconds(finished.lines)
        return Round(start, seconds, labels_digest(project, finished))


def epoch_seconds(lines: Sequence[tuple[float, str]]) -> list[float]:
    """Seconds before the first epoch, then of each, from the times at which `extract@E` was announced.

    The last one ends with the last line, which all three ways write when they are done.
    """
    announced = re.compile(r"^(?:Running stage '|\[\d+:\d\d\] )?extract@\d+(?:':)?$")
    starts = [seconds for seconds, line in lines if announced.match(line)]
    if not starts:
        raise ValueError("no epoch was announced")
    marks = [0.0, *starts, lines[-1][0]]
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def labels_digest(project: Project, finished: Finished) -> str:
    """sha256 of the last epoch's labels, as the bare loop prints it: proof that all computed the same."""
    for _, line in finished.lines:
        if line.startswith("labels "):
            return line.split()[1]
    import zarr

    store = zarr.open_group(project.root / f"data/history/{EPOCHS}/clusters.zarr", mode="r")
    return hashlib.sha256(store["labels"][:].tobytes()).hexdigest()


def start_up(*, rounds: int) -> list[StartUp]:
    """Each of an epoch's stages as `dvc repro` starts it, where there is next to nothing to compute; interleaved."""
    found: dict[str, list[Finished]] = {stage: [] for stage in START_TARGETS}
    with trivial_project() as project:
        project.plan(1)
        project.run("deepcluster", "run", "train@1")
        for _ in range(rounds):
            for stage in START_TARGETS:
                found[stage].append(project.run("python", "-m", f"stages.{stage}", "--epoch", "1"))
    return [
        StartUp(
            stage,
            statistics.median(run.wall for run in runs),
            statistics.median(run.cpu for run in runs),
            rounds,
            START_TARGETS[stage],
        )
        for stage, runs in found.items()
    ]


def whole_runs(run_epochs: Sequence[int], repro_epochs: Sequence[int]) -> list[Growth]:
    """From nothing to the report, each in a new project."""
    ways = [(("deepcluster", "run"), run_epochs), (("dvc", "repro"), repro_epochs)]
    found = []
    for command, counts in ways:
        for epochs in counts:
            with trivial_project() as project:
                project.plan(epochs)
                finished = project.run(*command)
            found.append(Growth(" ".join(command), epochs, stages_run(finished.lines), finished.cpu, finished.wall))
            print(f"  {found[-1].how}, {epochs} epochs: {found[-1].cpu_per_stage:.3f} s CPU a stage", flush=True)
    return found


def one_more_epoch(epochs: Sequence[int]) -> list[Growth]:
    """`dvc repro` for the last of so many epochs (six stages), the others being finished: what grows with them."""
    found = []
    with trivial_project() as project:
        for count in epochs:
            project.plan(count - 1)
            project.run("deepcluster", "run")
            project.plan(count)
            finished = project.run("dvc", "repro")
            ran = stages_run(finished.lines)
            found.append(Growth("dvc repro, one more epoch", count, ran, finished.cpu, finished.wall))
            print(f"  {found[-1].how}, {count}: {found[-1].cpu_per_stage:.3f} s CPU a stage", flush=True)
    return found


def stages_run(lines: Sequence[tuple[float, str]]) -> int:
    """Stages that `dvc repro` or `deepcluster run` announced."""
    return sum(bool(re.match(r"Running stage '|\[\d+:\d\d\] [a-z]+(@\d+)?$", line)) for _, line in lines)


def epochs_table(rows: Sequence[EpochTime]) -> str:
    """The target is for MNIST's 60,000 images; with fewer, constant costs weigh more."""
    header = ("an epoch", "images", "seconds", "all epochs", "before the first", "overhead", "target", "", "labels")
    aimed = [row for row in rows if row.how == "deepcluster run" and row.images >= TARGET_IMAGES]
    return table(
        header,
        [
            (
                row.how,
                f"{row.images:,}",
                f"{row.median:.2f}",
                ", ".join(f"{seconds:.2f}" for seconds in row.epochs),
                f"{row.start:.1f} s",
                f"{row.overhead:+.1%}" if row is not rows[0] else "",
                f"<= {OVERHEAD:.0%}" if row in aimed else "",
                _verdict(row.overhead <= OVERHEAD) if row in aimed else "",
                "the same" if row.labels == rows[0].labels else "OTHERS",
            )
            for row in rows
        ],
    )


def start_table(rows: Sequence[StartUp]) -> str:
    return table(
        ("stage process, nothing to compute", "wall s", "CPU s", "rounds", "target", ""),
        [
            (
                row.stage,
                number(row.wall),
                number(row.cpu),
                str(row.rounds),
                f"< {row.target:g} s",
                _verdict(row.wall < row.target),
            )
            for row in rows
        ],
    )


def growth_table(rows: Sequence[Growth]) -> str:
    aimed = [row for row in rows if row.how == "deepcluster run" and row.epochs == 100]
    return table(
        ("trivial stages", "epochs", "stages", "CPU s", "wall s", "CPU s a stage", "target", ""),
        [
            (
                row.how,
                str(row.epochs),
                str(row.stages),
                f"{row.cpu:.1f}",
                f"{row.wall:.1f}",
                f"{row.cpu_per_stage:.3f}",
                f"<= {CPU_PER_STAGE}" if row in aimed else "",
                _verdict(row.cpu_per_stage <= CPU_PER_STAGE) if row in aimed else "",
            )
            for row in rows
        ],
    )


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"
