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
    sums_Kd = np.zeros((k, rows_Nd.shape[1]), dtype=np.float64)
    np.add.at(sums_Kd, labels_N, rows_Nd)
    means_Kd: NDArray[np.float32] = (sums_Kd / sizes_K[:, None]).astype(np.float32)
    return means_Kd
