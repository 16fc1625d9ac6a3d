"""Which images an epoch of training sees: drawn uniformly over clusters (paper, section 3.3), or each in its turn.

The trap: what is returned are indices into the data set, as `images[i]` and `labels[i]` take them. Use them on images
stored in cluster order, or on any other re-ordered or filtered copy, and balance and labels are lost without an error.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def uniform_over_clusters(
    labels_N: NDArray[np.int32], *, size: int, rng: np.random.Generator, among_N: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """`size` shuffled data set indices, an equal share from each non-empty cluster; int64 [size].

    What does not divide evenly goes to clusters drawn at random, one each. Within a cluster images are drawn without
    replacement, with it only where the cluster has fewer images than its share. `among_N`: the images that may be
    drawn; None: all. ValueError for no or negative labels.
    """
    if labels_N.ndim != 1 or not len(labels_N) or labels_N.min() < 0:
        raise ValueError(f"labels must be a non-empty array [N] of cluster numbers from 0; got shape {labels_N.shape}")
    clusters = _members(labels_N)
    if among_N is not None:
        clusters = [members[among_N[members]] for members in clusters]
        clusters = [members for members in clusters if len(members)]
    shares = np.full(len(clusters), size // len(clusters))
    shares[rng.choice(len(clusters), size % len(clusters), replace=False)] += 1
    drawn = [
        rng.choice(members, share, replace=len(members) < share)
        for members, share in zip(clusters, shares, strict=True)
    ]
    indices = np.concatenate(drawn).astype(np.int64)
    rng.shuffle(indices)
    return indices


def nearest_of_each(
    labels_N: NDArray[np.int32], distances_N: NDArray[np.float32], *, share: float
) -> NDArray[np.bool_]:
    """Which images are among the `share` of their cluster that lies nearest its centroid; bool [N].

    Of a cluster of n images ceil(share x n) are taken, at least one; of equal distances the earlier images.
    """
    exact = Fraction(str(share))  # in floats 0.1 x 30 is a little more than 3, which would take 4
    nearest_N = np.zeros(len(labels_N), dtype=bool)
    for members in _members(labels_N):
        count = max(1, math.ceil(exact * len(members)))
        nearest_N[members[np.argsort(distances_N[members], kind="stable")[:count]]] = True
    return nearest_N


def each_in_turn(count: int, *, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`size` indices of `count` images, int64 [size]: all of them in random order, then in another, and so on."""
    orders = [rng.permutation(count) for _ in range(-(-size // count))]
    return np.concatenate(orders)[:size].astype(np.int64)


def _members(labels_N: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Data set indices of each non-empty cluster, clusters and indices ascending."""
    order = np.argsort(labels_N, kind="stable")
    starts = np.flatnonzero(np.diff(labels_N[order])) + 1
    return np.split(order, starts)
