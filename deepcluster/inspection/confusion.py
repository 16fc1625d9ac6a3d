"""The final clusters against the true classes, each class with the cluster that is matched with it.

Shapes: N images, A classes, K clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.inspection.page import name_text
from deepcluster.metrics import contingency

MOST_ROWS = 30
MOST_COLUMNS = 40
OTHERS = -1


@dataclass(frozen=True)
class Confusion:
    """How many images of each class lie in each cluster.

    classes, clusters: their numbers, OTHERS last for all that do not fit. counts: int64 [A, K]. The first `matched`
    clusters are those of the Hungarian method, in the order of their classes.
    """

    classes: list[int]
    clusters: list[int]
    counts: NDArray[np.int64]
    matched: list[int]


def confusion(
    targets_N: NDArray[np.integer[Any]],
    labels_N: NDArray[np.integer[Any]],
    *,
    most_rows: int = MOST_ROWS,
    most_columns: int = MOST_COLUMNS,
) -> Confusion:
    """The most frequent classes in order of their number, against their matched clusters and then the largest others.

    matched[i] is the column of class i's cluster, or -1 where it has none.
    """
    from scipy.optimize import linear_sum_assignment

    classes_A, clusters_K = np.unique(targets_N), np.unique(labels_N)
    counts_AK = contingency(targets_N, labels_N)
    rows, columns = linear_sum_assignment(counts_AK, maximize=True)
    partner = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    kept_rows = sorted(np.argsort(-counts_AK.sum(axis=1), kind="stable")[:most_rows].tolist())
    first = [partner[row] for row in kept_rows if row in partner]
    by_size = np.argsort(-counts_AK.sum(axis=0), kind="stable").tolist()
    taken = set(first)
    kept_columns = (first + [column for column in by_size if column not in taken])[:most_columns]
    counts = _gathered(_gathered(counts_AK, kept_rows).T, kept_columns).T
    place = {column: index for index, column in enumerate(kept_columns)}
    return Confusion(
        [int(classes_A[row]) for row in kept_rows] + [OTHERS] * (counts.shape[0] - len(kept_rows)),
        [int(clusters_K[column]) for column in kept_columns] + [OTHERS] * (counts.shape[1] - len(kept_columns)),
        counts,
        [place.get(partner.get(row, -1), -1) for row in kept_rows],
    )


def _gathered(counts: NDArray[np.int64], kept: Sequence[int]) -> NDArray[np.int64]:
    """The kept rows, and below them the sum of the others, if there are any."""
    rest = np.delete(counts, kept, axis=0)
    return np.concatenate([counts[kept], rest.sum(axis=0, keepdims=True)]) if len(rest) else counts[kept]


def matrix(found: Confusion, class_names: Sequence[str] | None) -> str:
    """The table as HTML: a cell's shade is its share of the class, and the matched one is bold and named so."""
    head = "".join(f'<th scope="col">{_cluster(number)}</th>' for number in found.clusters)
    lines = []
    for index, (number, counts_K) in enumerate(zip(found.classes, found.counts, strict=True)):
        own = found.matched[index] if index < len(found.matched) else -1
        cells = "".join(_cell(int(count), int(counts_K.sum()), own == k) for k, count in enumerate(counts_K))
        name = "other classes" if number == OTHERS else name_text(class_names[number] if class_names else str(number))
        lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        '<div class="wide tall matrix" tabindex="0" role="region" aria-label="Classes against clusters"><table>'
        f'<thead><tr><th scope="col">class \\ cluster</th>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cluster(number: int) -> str:
    return "others" if number == OTHERS else f'<a href="#cluster-{number}">{number}</a>'


def _cell(count: int, total: int, own: bool) -> str:
    share = count / total if total else 0
    shade = f' style="background:rgb(var(--heat) / {0.55 * share:.2f})"' if count else ""
    shown = f"<b>{count:,}</b>" if own else f"{count:,}" if count else ""
    return f"<td{shade}>{shown}</td>"
