"""Clusters named after classes on the training images, and how often that name is right on others.

One to one: the Hungarian method, as in `metrics.hungarian_accuracy`; clusters left over name no class. Many to one:
each cluster takes its most frequent class, as in `metrics.purity`. Names come from the training images alone.
Shapes: N training images, M other images, K clusters.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepcluster.metrics import ari, contingency, nmi

NO_CLASS = -1
How = Literal["one_to_one", "many_to_one"]


def classes_of_clusters(
    labels_N: NDArray[np.integer], targets_N: NDArray[np.integer], *, k: int, how: How
) -> NDArray[np.int64]:
    """The class that each of k clusters is named after, int64 [K]; NO_CLASS where there is none for it."""
    from scipy.optimize import linear_sum_assignment

    table_AB = contingency(labels_N, targets_N)
    clusters_A, classes_B = np.unique(labels_N), np.unique(targets_N)
    named_K = np.full(k, NO_CLASS, np.int64)
    match how:
        case "one_to_one":
            rows, columns = linear_sum_assignment(table_AB, maximize=True)
            named_K[clusters_A[rows]] = classes_B[columns]
        case "many_to_one":
            named_K[clusters_A] = classes_B[table_AB.argmax(axis=1)]
    return named_K


def scores_elsewhere(
    labels_N: NDArray[np.integer],
    targets_N: NDArray[np.integer],
    other_labels_M: NDArray[np.integer],
    other_targets_M: NDArray[np.integer],
    *,
    k: int,
) -> dict[str, float]:
    """nmi and ari of other images' labels; accuracy and many_to_one under the names that the training images give."""

    def right(how: How) -> float:
        named_K = classes_of_clusters(labels_N, targets_N, k=k, how=how)
        return float(np.mean(named_K[other_labels_M] == other_targets_M))

    return {
        "nmi": nmi(other_labels_M, other_targets_M),
        "ari": ari(other_labels_M, other_targets_M),
        "accuracy": right("one_to_one"),
        "many_to_one": right("many_to_one"),
    }
