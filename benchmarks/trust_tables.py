"""The tables of `python -m benchmarks.trust`: measured runs beside their true accuracy."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Row, table
from benchmarks.signals import in_agreement
from deepcluster.evaluation.trust import agreements, neighbour_agreements
from deepcluster.evaluation.trust_choice import preferred, rank_correlations, trust_scores
from deepcluster.trust import MEASURES, SCORED

SHOWN = (*MEASURES, "balance", "pseudo_label_accuracy", "epoch", "score")
"""Beside the measures: how equal the clusters are, how well the head fits, and the epoch's number itself."""
CHOSEN_ON = 1
"""The seed whose runs the score was chosen on; the others tested it."""

Key = tuple[str, int]
Measured = dict[Key, list[dict[str, Any]]]


def read(folder: Path) -> tuple[Measured, dict[Key, Any]]:
    """(rows of the epochs of each run, labels [N] of its last epoch), with neighbours, consensus and score."""
    rows_of, labels_of = {}, {}
    for path in sorted(folder.glob("*/measured.json")):
        setting, _, seed = path.parent.name.rpartition("-")
        content = json.loads(path.read_text(encoding="utf-8"))
        labelings = [np.array(labels) for labels in content["labels"]]
        pairs = zip(neighbour_agreements(labelings), agreements(labelings), strict=True)
        rows = [
            row | {"neighbours": near, "consensus": all_}
            for row, (near, all_) in zip(content["rows"], pairs, strict=True)
        ]
        rows_of[setting, int(seed)], labels_of[setting, int(seed)] = with_scores(rows), labelings[-1]
    return rows_of, labels_of


def with_scores(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) | {"score": score} for row, score in zip(rows, trust_scores(rows, SCORED), strict=True)]


def last_epochs(rows_of: Measured, labels_of: Mapping[Key, Any], keys: Sequence[Key]) -> list[dict[str, Any]]:
    """The last epochs of several runs, as `deepcluster trust --runs` compares them."""
    rows = [rows_of[key][-1] for key in keys]
    consensus = agreements([labels_of[key] for key in keys])
    return with_scores(
        [row | {"neighbours": None, "consensus": value} for row, value in zip(rows, consensus, strict=True)]
    )


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return rank_correlations(rows, SHOWN, [row["accuracy"] for row in rows])


def over_epochs(rows_of: Measured, keys: Sequence[Key]) -> list[Row]:
    """Each measure's correlation over the epochs of a run: mean and least over the runs."""
    found = [correlations(rows_of[key]) for key in keys]
    lines = []
    for name in SHOWN:
        values = [each[name] for each in found if each[name] is not None]
        mean, least = (float(np.mean(values)), min(values)) if values else (None, None)
        lines.append((name, text(mean), text(least), f"{sum(value > 0 for value in values)} of {len(values)}"))
    return lines


def over_settings(rows_of: Measured, labels_of: Mapping[Key, Any], seed: int) -> dict[str, float | None]:
    """Over the last epochs of all settings of a seed."""
    keys = [key for key in rows_of if key[1] == seed]
    return correlations(last_epochs(rows_of, labels_of, keys)) if len(keys) > 2 else dict.fromkeys(SHOWN)


def over_seeds(rows_of: Measured, labels_of: Mapping[Key, Any]) -> dict[str, tuple[int, int]]:
    """(pairs of seeds of one setting that a measure orders as accuracy does, pairs); few seeds make no correlation.

    The consensus is that among all runs: between two alone it is the same for both.
    """
    keys = list(rows_of)
    rows = dict(zip(keys, last_epochs(rows_of, labels_of, keys), strict=True))
    pairs = [(rows[a], rows[b]) for a, b in combinations(keys, 2) if a[0] == b[0]]
    counts = {}
    for name in SHOWN:
        known = in_agreement(pairs, name)
        counts[name] = (sum(found > 0 for found in known), len(known))
    return counts


def choices(rows_of: Measured, keys: Sequence[Key]) -> list[Row]:
    """What the score picks in each run, beside the last epoch, the mean and the best of its epochs; then the means."""
    lines: list[Row] = []
    found = []
    for key in keys:
        rows = rows_of[key]
        accuracies = [row["accuracy"] for row in rows]
        place = preferred([row["score"] for row in rows])
        numbers = (accuracies[place], accuracies[-1], float(np.mean(accuracies)), max(accuracies))
        found.append(numbers)
        lines.append((f"{key[0]}, seed {key[1]}", str(rows[place]["epoch"]), *(f"{number:.4f}" for number in numbers)))
    return [*lines, ("mean", "", *(f"{number:.4f}" for number in np.mean(found, axis=0)))]


def text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def report(folder: Path) -> str:
    rows_of, labels_of = read(folder)
    seeds = sorted({seed for _, seed in rows_of})
    parts = []
    for title, chosen in (("the score was chosen on", True), ("it was tested on", False)):
        if keys := [key for key in rows_of if (key[1] == CHOSEN_ON) == chosen]:
            header = ("over epochs", f"mean of {len(keys)} runs", "least", "positive")
            parts.append(f"Runs that {title}:\n\n" + table(header, over_epochs(rows_of, keys)))
            header = ("run", "epoch picked", "its accuracy", "last epoch", "mean of epochs", "best epoch")
            parts.append(table(header, choices(rows_of, keys)))
    by_seed = [over_settings(rows_of, labels_of, seed) for seed in seeds]
    counts = over_seeds(rows_of, labels_of)
    every = correlations(last_epochs(rows_of, labels_of, list(rows_of)))
    lines = [
        (name, *(text(each[name]) for each in by_seed), text(every[name]), "{} of {}".format(*counts[name]))
        for name in SHOWN
    ]
    header = ("over runs", *(f"settings, seed {seed}" for seed in seeds), f"all {len(rows_of)} runs", "pairs of seeds")
    return "\n\n".join([*parts, table(header, lines)])
