"""Centroids to start from, from the labels of the epoch before.

Features and components turn from epoch to epoch, so the old centroids mean nothing in the new space; the means of
the new rows over the old clusters do.
"""

import numpy as np
from numpy.typing import NDArray


def means_of_clusters(
    rows_Nd: NDArray[np.float32], labels_N: NDArray[np.int32], *, k: int
) -> NDArray[np.float32] | None:
    """The mean row of each of k clusters, float32 [k, d]; None unless the labels are exactly k non-empty clusters."""
    sizes_K = np.bincount(labels_N, minlength=k) if len(labels_N) and labels_N.min() >= 0 else np.zeros(k, int)
    if len(sizes_K) != k or not sizes_K.all():
        return None
    order_N = np.argsort(labels_N, kind="stable")
    starts_K = np.concatenate([[0], np.cumsum(sizes_K)[:-1]])
    sums_Kd = np.add.reduceat(rows_Nd[order_N].astype(np.float64), starts_K, axis=0)
    means_Kd: NDArray[np.float32] = (sums_Kd / sizes_K[:, None]).astype(np.float32)
    return means_Kd
