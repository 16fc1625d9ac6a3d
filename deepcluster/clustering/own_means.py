"""A clustering whose labels are not the nearest centroid's, told as k-means' are: by its means, and distances to them.

Shapes: N images, d components, K clusters.
"""

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.assignment import slices, squared_distances
from deepcluster.clustering.kmeans import Clustering
from deepcluster.clustering.warm_start import means_of_clusters

_BLOCK_BYTES = 4 << 20


def with_own_means(rows_Nd: NDArray[np.float32], labels_N: NDArray[np.int32], *, k: int) -> Clustering:
    """`centroids_Kd` are means, the distances those to the own mean, and `objective` is their sum, one value.

    ValueError unless the labels are exactly k non-empty clusters.
    """
    centroids_Kd = means_of_clusters(rows_Nd, labels_N, k=k)
    if centroids_Kd is None:
        raise ValueError(f"labels must be those of {k} clusters, none of them empty")
    distances_N = np.empty(len(rows_Nd))
    for rows in slices(len(rows_Nd), max(1, _BLOCK_BYTES // (8 * rows_Nd.shape[1]))):
        distances_N[rows] = squared_distances(rows_Nd[rows], centroids_Kd[labels_N[rows]])
    objective = np.array([distances_N.sum()])
    sizes_K = np.bincount(labels_N, minlength=k).astype(np.int64)
    return Clustering(labels_N, distances_N.astype(np.float32), centroids_Kd, objective, sizes_K, len(rows_Nd))
