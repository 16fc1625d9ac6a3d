"""Which of several epochs or runs to prefer by label-free measures, and how well that agrees with the true labels."""

from collections.abc import Mapping, Sequence

import numpy as np

Measures = Mapping[str, float | int | None]

LOWER_IS_BETTER = frozenset({"drift"})
"""All other measures are the better the higher."""


def trust_scores(rows: Sequence[Measures], names: Sequence[str]) -> list[float]:
    """A score in [0, 1] for each row: the mean of its ranks by the named measures, 0 the worst row and 1 the best.

    Equal values share the mean of their ranks (Borda count with ties). A row without a value ranks below those that
    have one; a measure that is missing or equal for all rows gives all of them 0.5.
    """
    from scipy.stats import rankdata

    if len(rows) < 2:
        return [0.5] * len(rows)
    ranks = [rankdata([_directed(row, name) for row in rows]) for name in names]
    return [float(value) for value in (np.mean(ranks, axis=0) - 1) / (len(rows) - 1)]


def preferred(scores: Sequence[float]) -> int:
    """Place of the highest score; of the last one, if several are equal (the longest trained, among epochs)."""
    return max(range(len(scores)), key=lambda place: (scores[place], place))


def rank_correlations(
    rows: Sequence[Measures], names: Sequence[str], accuracies: Sequence[float]
) -> dict[str, float | None]:
    """Spearman's rank correlation in [-1, 1] of each measure with accuracy, over the rows that have a value.

    1: the measure orders the rows as accuracy does. The sign of measures that are better when lower is turned. None
    where fewer than three rows have a value, or all values or accuracies are equal.
    """
    return {name: _spearman([_directed(row, name) for row in rows], accuracies) for name in names}


def _spearman(values: Sequence[float], accuracies: Sequence[float]) -> float | None:
    from scipy.stats import spearmanr

    kept = [(value, accuracy) for value, accuracy in zip(values, accuracies, strict=True) if np.isfinite(value)]
    if len(kept) < 3 or any(len(set(side)) < 2 for side in zip(*kept, strict=True)):
        return None
    return float(spearmanr(*zip(*kept, strict=True)).statistic)


def _directed(row: Measures, name: str) -> float:
    """The measure so that higher is better; minus infinity where there is none."""
    value = row.get(name)
    if value is None:
        return float("-inf")
    return -float(value) if name in LOWER_IS_BETTER else float(value)
