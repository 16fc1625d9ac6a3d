"""What measures without labels are worth between recorded runs: how they rank them, against true accuracy.

Compared are the runs of one data set under one augmentation: each run's views are drawn by its own, so without one they
would be the images themselves.
"""

import itertools
from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks.records import Record, flat
from benchmarks.tables import NONE, Runs, table
from deepcluster.params import Params

DIRECTIONS = {"view_agreement": 1, "silhouette": 1, "half_stability": 1, "drift": -1}
DATA = ("data.name", "data.split")
LEAST_SETTINGS = 2
LEAST_RUNS = 5
LEAST_RANKED = 3

Point = tuple[float, float]
"""A measure, its sign turned where less is better, and the accuracy."""


def signals(runs: Iterable[Runs]) -> str:
    """A row for each measure of each group of at least LEAST_SETTINGS experiments and LEAST_RUNS runs that have it.

    between settings: Spearman's rank correlation of the experiments' medians with their median accuracy. all runs: of
    the runs' own. seeds: of all pairs of runs of one experiment, how many the measure orders as accuracy does; pairs
    that are equal in either are left out.
    """
    header = ["compared", "measure", "settings", "runs", "between settings", "between all runs", "pairs of seeds"]
    rows = []
    for group in _groups(runs):
        first, *others = group
        label = f"`{first}` and {len(others)} more"
        for name in DIRECTIONS:
            points = [found for records in group.values() if (found := _points(records, name))]
            count = sum(map(len, points))
            if len(points) >= LEAST_SETTINGS and count >= LEAST_RUNS:
                rows.append([label, name, str(len(points)), str(count), *_cells(points)])
                label = ""
    return table(header, rows)


def _cells(points: Sequence[Sequence[Point]]) -> list[str]:
    medians = [(median(m for m, _ in each), median(a for _, a in each)) for each in points]
    pairs = [_agrees(*pair) for each in points for pair in itertools.combinations(each, 2)]
    decided = [agrees for agrees in pairs if agrees is not None]
    ordered = f"{sum(decided)} of {len(decided)}" if decided else NONE
    return [_rank_correlation(medians), _rank_correlation([point for each in points for point in each]), ordered]


def _groups(runs: Iterable[Runs]) -> list[dict[str, list[Record]]]:
    """Runs that can be compared, by experiment; in the order of experiments.yaml."""
    found: dict[str, dict[str, list[Record]]] = {}
    for each in runs:
        for record in each.finished:
            if record.metric("final", "accuracy") is not None:
                found.setdefault(_compared_with(record), {}).setdefault(each.experiment.name, []).append(record)
    return list(found.values())


def _compared_with(record: Record) -> str:
    """The data set and the augmentation; a key that the record lacks had its default's effect (`changed_keys`)."""
    params = flat(Params().model_dump(mode="json")) | record.params
    return str([(key, params[key]) for key in sorted(params) if key.startswith("augment.") or key in DATA])


def _points(records: Iterable[Record], name: str) -> list[Point]:
    found = [(record.metric("trust", name), record.metric("final", "accuracy")) for record in records]
    return [
        (DIRECTIONS[name] * value, accuracy) for value, accuracy in found if value is not None and accuracy is not None
    ]


def _agrees(one: Point, other: Point) -> bool | None:
    """Whether both say the same of which is better; None where one of them says neither."""
    product = (one[0] - other[0]) * (one[1] - other[1])
    return None if product == 0 else product > 0


def _rank_correlation(points: Sequence[Point]) -> str:
    from scipy.stats import spearmanr

    if len(points) < LEAST_RANKED or any(len({point[axis] for point in points}) < 2 for axis in (0, 1)):
        return NONE
    return f"{spearmanr(*zip(*points, strict=True)).statistic:.2f}"
