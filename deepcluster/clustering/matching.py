"""Clusters numbered as in the epoch before, since cluster numbers permute from one clustering to the next.

Shapes: N images, K clusters.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.kmeans import Clustering


def match_labels(labels_N: NDArray[np.int32], previous_N: NDArray[np.int32], k: int) -> NDArray[np.int32]:
    """The new number of each of k clusters, a permutation int32 [K], under which most images keep their label.

    By the Hungarian method on the table of how many images have both labels. Where the present numbers already agree
    as much as any, they stay. A cluster that shares no image with the one it would take its number from keeps its own
    number if that is free, else takes the lowest that is. Previous labels below 0 or not below k count for nothing, so
    the epochs may differ in their number of clusters, and without labels before (all -1) nothing is renumbered.
    k = 10,000 takes 2 s for the table and 5 s for the method, and 1.2 GB: an int32 table, scipy's copy in float64.
    """
    from scipy.optimize import linear_sum_assignment

    if labels_N.shape != previous_N.shape:
        raise ValueError(f"labels of the same images expected; got {labels_N.shape} and {previous_N.shape}")
    known_N = (previous_N >= 0) & (previous_N < k)
    cost_KK = np.zeros((k, k), np.int32)  # minus the count: to be minimised, so that scipy makes no negated copy
    np.subtract.at(cost_KK, (labels_N[known_N], previous_N[known_N]), 1)
    own_K, number_K = linear_sum_assignment(cost_KK)
    shared_K = cost_KK[own_K, number_K] < 0
    if cost_KK.trace(dtype=np.int64) == cost_KK[own_K, number_K].sum(dtype=np.int64):
        return np.arange(k, dtype=np.int32)
    return _completed(np.where(shared_K, number_K, -1).astype(np.int32))


def renumbered(found: Clustering, number_K: NDArray[np.int32]) -> Clustering:
    """The same clustering with cluster i called number_K[i]."""
    old_K = np.argsort(number_K)
    return replace(
        found,
        labels_N=number_K[found.labels_N],
        centroids_Kd=found.centroids_Kd[old_K],
        sizes_K=found.sizes_K[old_K],
    )


def memory_needed(k: int) -> float:
    """Bytes that `match_labels` takes: a table in int32 and its copy in float64."""
    return 12.0 * k * k


def _completed(number_K: NDArray[np.int32]) -> NDArray[np.int32]:
    """A permutation: -1 becomes the cluster's own number if no other has that, else the lowest free one, in order."""
    open_K = number_K < 0
    free_K = np.ones(len(number_K), bool)
    free_K[number_K[~open_K]] = False
    keeping_K = open_K & free_K
    number_K = np.where(keeping_K, np.arange(len(number_K)), number_K).astype(np.int32)
    number_K[open_K & ~keeping_K] = np.flatnonzero(free_K & ~keeping_K)
    return number_K
