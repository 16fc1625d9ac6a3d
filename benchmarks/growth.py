"""Time and peak memory of each stage as the number of images grows; every stage in a process of its own."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import plots
from benchmarks.data import Source
from benchmarks.project import MNIST, temporary_project
from benchmarks.results import table

STAGES = ("prepare", "initialise", "extract", "pca", "cluster", "train")
MEASURED = ("prepare", "extract", "pca", "cluster", "train")


@dataclass(frozen=True)
class StageGrowth:
    """Of one stage: seconds of its work (without the start of its process) and peak memory for every N.

    Exponents p of time ~ N^p over all N and over the last two; kilobytes of memory an image over the last two.
    """

    stage: str
    seconds: dict[int, float]
    peak_mb: dict[int, float]
    exponent: float
    last_exponent: float
    kilobytes_per_image: float


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[StageGrowth]:
    """All stages of one epoch for every N, as a table and a plot."""
    counts = (500, 1000, 2000) if quick else (2000, 4000, 8000, 16_000, 32_000, 64_000)
    seconds: dict[str, dict[int, float]] = {stage: {} for stage in MEASURED}
    peaks: dict[str, dict[int, float]] = {stage: {} for stage in MEASURED}
    for count in counts:
        for stage, taken, peak in one_epoch(source, count):
            if stage in MEASURED:
                seconds[stage][count], peaks[stage][count] = taken, peak
        print(
            f"  {count:,} images: " + ", ".join(f"{name} {seconds[name][count]:.2f} s" for name in MEASURED), flush=True
        )
    found = [stage_growth(stage, seconds[stage], peaks[stage]) for stage in MEASURED]
    print("\n" + growth_table(found))
    panels = {"seconds": seconds, "peak memory in MB": peaks}
    plots.lines(output / "growth.svg", panels, x_label="images N", logarithmic=True)
    return found


def one_epoch(source: Source, count: int) -> list[tuple[str, float, float]]:
    """(stage, seconds of its work, peak MB of its process), the stages run one after the other."""
    found = []
    with temporary_project(source.digits(count), MNIST) as project:
        project.plan(1)
        for stage in STAGES:
            epoch = [] if stage in ("prepare", "initialise") else ["--epoch", "1"]
            project.run("python", "-m", f"stages.{stage}", *epoch)
            with (project.root / "data/timings.csv").open(newline="", encoding="utf-8") as file:
                row = list(csv.DictReader(file))[-1]
            found.append((stage, float(row["seconds"]), float(row["peak_memory_mb"])))
    return found


def stage_growth(stage: str, seconds: Mapping[int, float], peak_mb: Mapping[int, float]) -> StageGrowth:
    last = sorted(seconds)[-2:]
    memory = (peak_mb[last[1]] - peak_mb[last[0]]) * 1e3 / (last[1] - last[0])
    return StageGrowth(
        stage,
        dict(seconds),
        dict(peak_mb),
        exponent(seconds),
        exponent({count: seconds[count] for count in last}),
        memory,
    )


def exponent(values: Mapping[int, float]) -> float:
    """p of value ~ N^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def growth_table(rows: Sequence[StageGrowth]) -> str:
    counts = sorted(rows[0].seconds)
    header = ("stage", *(f"N={count:,}" for count in counts), "exponent", "last two", "kB an image")
    return table(
        header,
        [
            (
                row.stage,
                *(f"{row.seconds[count]:.2f} s, {row.peak_mb[count]:,.0f} MB" for count in counts),
                f"{row.exponent:.2f}",
                f"{row.last_exponent:.2f}",
                f"{row.kilobytes_per_image:.2f}",
            )
            for row in rows
        ],
    )
