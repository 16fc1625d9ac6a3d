"""The estimate as a table, as warnings and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deepcluster.estimate.forecast import Cost, run_seconds
from deepcluster.inspection.tables import Cells
from deepcluster.resuming import SECONDS

COLUMNS = ["stage", "times", "time each", "in all", "disk each", "in all", "memory"]


@dataclass(frozen=True)
class Answer:
    """What a run takes beside what there is. copies: how often DVC keeps each artifact on the disk, 1 or 2."""

    costs: Sequence[Cost]
    copies: int
    disk_free: float
    memory_available: float

    @property
    def seconds(self) -> float:
        return run_seconds(self.costs)

    @property
    def disk(self) -> float:
        return self.copies * sum(cost.disk_in_all for cost in self.costs) + self.progress

    @property
    def progress(self) -> float:
        """Bytes in data/progress at the most: a long train stage's state, and the one that takes its place."""
        long = (cost.disk for cost in self.costs if cost.stage == "train" and cost.seconds >= SECONDS)
        return 2 * sum(long)

    @property
    def hungriest(self) -> Cost:
        return max(self.costs, key=lambda cost: cost.memory)


def table(answer: Answer) -> Cells:
    """A row a stage, then the run."""
    rows = [
        [
            cost.stage,
            f"{cost.times:,}",
            duration(cost.seconds),
            duration(cost.seconds_in_all),
            in_bytes(cost.disk),
            in_bytes(cost.disk_in_all),
            in_bytes(cost.memory),
        ]
        for cost in answer.costs
    ]
    disk = sum(cost.disk_in_all for cost in answer.costs)
    last = ["whole run", "", "", duration(answer.seconds), "", in_bytes(disk), in_bytes(answer.hungriest.memory)]
    return Cells(COLUMNS, [*rows, last])


def verdict(answer: Answer) -> Iterator[str]:
    """Disk and memory against what there is; a warning where it will not fit."""
    kept = "once, as DVC's cache is linked" if answer.copies == 1 else "twice, as DVC's cache can only hold copies"
    needed, free = in_bytes(answer.disk), in_bytes(answer.disk_free)
    if answer.disk > answer.disk_free:
        yield (
            f"warning: the disk has {free} free, and {needed} are needed ({kept}); take fewer epochs, or keep feature "
            "dumps out of the cache and delete old ones (docs/architecture.md)"
        )
    else:
        yield f"Disk: {needed} ({kept}), {free} free"
    worst = answer.hungriest
    needed, free = in_bytes(worst.memory), in_bytes(answer.memory_available)
    if worst.memory > answer.memory_available:
        remedy = {
            "extract": "a smaller extract.batch_size or data.image_size",
            "train": "a smaller train.batch_size or data.image_size",
            "pca": "pca.backend: streaming",
            "cluster": "fewer pca.components",
        }.get(worst.stage, "a smaller data.image_size, or a machine with more")
        yield f"warning: {worst.stage} needs about {needed} of memory, and {free} are available; take {remedy}"
    else:
        yield f"Memory: at most {needed} ({worst.stage}), {free} available"


def as_json(answer: Answer) -> dict[str, Any]:
    """Everything in seconds and bytes."""
    return {
        "seconds": answer.seconds,
        "disk": answer.disk,
        "disk_in_progress": answer.progress,
        "copies": answer.copies,
        "disk_free": answer.disk_free,
        "memory": answer.hungriest.memory,
        "memory_available": answer.memory_available,
        "fits": answer.disk <= answer.disk_free and answer.hungriest.memory <= answer.memory_available,
        "stages": [
            {
                "stage": cost.stage,
                "times": cost.times,
                "seconds": cost.seconds,
                "disk": cost.disk,
                "memory": cost.memory,
            }
            for cost in answer.costs
        ],
    }


def duration(seconds: float) -> str:
    """0.4 s, 38 s, 5 min, 3.2 h, 12 days: as exact as an estimate is."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def in_bytes(number: float) -> str:
    """12 kB, 3.4 MB, 120 GB, in powers of ten as disks are sold."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.0f} kB"
