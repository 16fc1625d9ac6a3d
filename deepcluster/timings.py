"""data/timings.csv: seconds and peak memory of every stage that ran. No DVC output, since no two runs take as long."""

import csv
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcluster import layout

FIELDS = ("stage", "epoch", "seconds", "peak_memory_mb")


@contextmanager
def recorded(stage: str, epoch: int | None, path: Path = layout.TIMINGS) -> Iterator[None]:
    """Append a row for the block, unless it raises."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(FIELDS)
        writer.writerow([stage, "" if epoch is None else epoch, f"{seconds:.3f}", f"{peak_memory_mb():.0f}"])


def last_timings(path: Path = layout.TIMINGS) -> dict[str, list[tuple[float, float]]]:
    """Seconds and peak memory (MB) of the last run of every stage, one pair an epoch, by the stage's name.

    Rows that an interrupted writer cut short are passed over; without the file there are none.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    numbers = float(row["seconds"]), float(row["peak_memory_mb"])
                except (KeyError, TypeError, ValueError):
                    continue
                found.setdefault(row["stage"], {})[row["epoch"]] = numbers
    except FileNotFoundError:
        pass
    return {stage: list(runs.values()) for stage, runs in found.items()}


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MB (10**6 bytes).

    On Linux from /proc, since what getrusage says starts with the peak of the process that started this one.
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    except (OSError, KeyError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
