"""What measures without labels are worth between recorded runs: how they rank them, against true accuracy.

Compared are the runs of one data set under one augmentation: each run's views are drawn by its own, so without one they
would be the images themselves.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.records import Record, completed
from benchmarks.tables import NONE, Runs, number, table
from deepcluster.evaluation.trust_choice import LOWER_IS_BETTER, rank_correlations

MEASURES = ("view_agreement", "silhouette", "half_stability", "drift")
DATA = ("data.name", "data.split")
LEAST_SETTINGS = 2
LEAST_RUNS = 5

Row = dict[str, float]
"""A run's accuracy, and a measure by its name."""


def signals(runs: Iterable[Runs]) -> str:
    """A row for each measure of each group of at least LEAST_SETTINGS experiments and LEAST_RUNS runs that have it.

    between settings: Spearman's rank correlation of the experiments' medians with their median accuracy. all runs: of
    the runs' own. seeds: of all pairs of runs of one experiment, how many the measure orders as accuracy does; pairs
    that are equal in either are left out.
    """
    header = ["compared", "measure", "settings", "runs", "between settings", "between all runs", "pairs of seeds"]
    lines = []
    for group in _groups(runs):
        first, *others = group
        label = f"`{first}` and {len(others)} more"
        for name in MEASURES:
            rows_of = [rows for records in group.values() if (rows := _rows(records, name))]
            count = sum(map(len, rows_of))
            if len(rows_of) >= LEAST_SETTINGS and count >= LEAST_RUNS:
                lines.append([label, name, str(len(rows_of)), str(count), *_cells(rows_of, name)])
                label = ""
    return table(header, lines)


def in_agreement(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], name: str) -> list[float]:
    """A number for each pair of rows that both have the measure, by what it and accuracy say of which is better.

    Positive where they say the same, negative where the opposite, 0 where the rows are equal in either.
    """
    sign = -1 if name in LOWER_IS_BETTER else 1
    return [
        sign * (one[name] - other[name]) * (one["accuracy"] - other["accuracy"])
        for one, other in pairs
        if one[name] is not None and other[name] is not None
    ]


def _cells(rows_of: Sequence[Sequence[Row]], name: str) -> list[str]:
    medians = [{key: median(row[key] for row in rows) for key in (name, "accuracy")} for rows in rows_of]
    pairs = in_agreement((pair for rows in rows_of for pair in itertools.combinations(rows, 2)), name)
    decided = sum(found != 0 for found in pairs)
    ordered = f"{sum(found > 0 for found in pairs)} of {decided}" if decided else NONE
    return [_correlation(medians, name), _correlation([row for rows in rows_of for row in rows], name), ordered]


def _correlation(rows: Sequence[Row], name: str) -> str:
    return number(rank_correlations(rows, [name], [row["accuracy"] for row in rows])[name], 2)


def _groups(runs: Iterable[Runs]) -> list[dict[str, list[Record]]]:
    """Runs that can be compared, by experiment; in the order of experiments.yaml."""
    found: dict[str, dict[str, list[Record]]] = {}
    for each in runs:
        for record in each.finished:
            found.setdefault(_compared_with(record), {}).setdefault(each.experiment.name, []).append(record)
    return list(found.values())


def _compared_with(record: Record) -> str:
    """The data set and the augmentation."""
    params = completed(record.params)
    return str([(key, params[key]) for key in sorted(params) if key.startswith("augment.") or key in DATA])


def _rows(records: Iterable[Record], name: str) -> list[Row]:
    """Of the runs that have both numbers."""
    found = [(record.metric("trust", name), record.metric("final", "accuracy")) for record in records]
    return [
        {name: value, "accuracy": accuracy} for value, accuracy in found if value is not None and accuracy is not None
    ]
