"""Power iteration clustering as DeepCluster uses it: images join the neighbour that is most central, up to a peak.

The paper's supplement compares it with k-means. The method is of Cho and Lee (2012), the power iteration of Lin and
Cohen (2010). What is computed here is what the paper's published code computes:

    A     A_ij = exp(-|x_i - x_j|^2 / sigma^2) where j is one of the nearest neighbours of i, else 0
    W     A + A^T, so neighbours of either side count, and mutual ones twice
    v     starts as 1/N; v <- alpha W v + (1 - alpha)/N, divided by its sum, until nothing changes or 200 times
    i     points to the j that maximises W_ij (v_j - v_i); where none of these is positive, i is a peak

Each peak with all that leads to it is a cluster. So alpha weighs the graph: at the usual 0.001, v ranks images by how
close their neighbours are, and by how close the neighbours of those are a thousand times less. A cluster of one image
is then dissolved into that of its nearest neighbour in a larger cluster.

Ties. Two values of v that agree to twelve digits are equal, since the order of a sum alone can make them differ; two
peaks that are equal and neighbours are one peak. This makes copies of an image one peak, instead of as many clusters.
Shapes: N images, d components, K clusters, M neighbours.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.assignment import assign
from deepcluster.clustering.backends import uses_gpu
from deepcluster.clustering.kmeans import Clustering
from deepcluster.clustering.neighbours import nearest_neighbours, search_memory
from deepcluster.clustering.own_means import with_own_means
from deepcluster.clustering.warm_start import means_of_clusters
from deepcluster.errors import NumericsError
from deepcluster.metrics import refuse_non_finite

_ITERATIONS = 200
_EQUAL = 1e-12


def pic(
    rows_Nd: NDArray[np.float32],
    *,
    neighbours: int = 5,
    sigma: float = 0.2,
    alpha: float = 0.001,
    gpu: bool | None = None,
) -> Clustering:
    """Cluster float32 rows [N, d], usually of L2 norm 1, into as many clusters as are found.

    Clusters are numbered from large to small, those of one size by their first image; none is empty, none has a single
    image. Labels are not the nearest centroid's: `centroids_Kd` are means, the distances those to the own mean, and
    `objective` is their sum, one value. Nothing is random. On the CPU the same rows give the same bytes on any number
    of threads. `gpu`: as for `kmeans`; there, neighbours that are equally far to seven digits may change places.
    NumericsError: neighbours >= N, rows that are not finite, fewer than two clusters.
    """
    if not (0 < alpha < 1 and sigma > 0):
        raise ValueError(f"expected 0 < alpha < 1 and sigma > 0; got {alpha} and {sigma}")
    refuse_non_finite(rows_Nd, "rows")
    rows_Nd = np.ascontiguousarray(rows_Nd, dtype=np.float32)
    numbers_NM, distances_NM = nearest_neighbours(rows_Nd, neighbours, gpu=uses_gpu("faiss", gpu))
    graph = affinities(numbers_NM, distances_NM, sigma)
    labels_N = _clusters(graph, centrality(graph, alpha))
    _refuse_fewer_than_two(labels_N, distances_NM, sigma)
    labels_N = _numbered_by_size(_without_singletons(rows_Nd, labels_N, numbers_NM))
    return with_own_means(rows_Nd, labels_N, k=int(labels_N.max()) + 1)


def memory_needed(count: int, components: int, neighbours: int) -> float:
    """About how many bytes `pic` takes at its peak: the rows given to it, a copy in float32 and one in float64; with
    few components the graph, of up to twice N x neighbours entries, several times over; and the search's blocks."""
    return 16.0 * count * components + 150.0 * count * neighbours + search_memory(count, components)


def affinities(numbers_NM: NDArray[np.int32], distances_NM: NDArray[np.float64], sigma: float) -> Any:
    """W: scipy's CSR matrix float64 [N, N], symmetric, no diagonal, no stored zeros (of rows very far apart)."""
    from scipy import sparse

    count, neighbours = numbers_NM.shape
    starts = np.arange(0, count * neighbours + 1, neighbours)
    weights = np.exp(-distances_NM.ravel() / sigma**2)
    one_way = sparse.csr_matrix((weights, numbers_NM.ravel(), starts), shape=(count, count))
    graph = (one_way + one_way.T).tocsr()
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def centrality(graph: Any, alpha: float) -> NDArray[np.float64]:
    """N times v, float64 [N] of mean 1: after 200 iterations, or once no value changes in its fifteenth digit."""
    central_N = np.ones(graph.shape[0])
    for _ in range(_ITERATIONS):
        before_N = central_N
        central_N = alpha * (graph @ before_N) + (1 - alpha)
        central_N /= central_N.mean()
        if np.all(np.abs(central_N - before_N) <= 1e-15 * before_N):
            break
    return central_N


def _clusters(graph: Any, central_N: NDArray[np.float64]) -> NDArray[np.int32]:
    """A number for each peak and all that leads to it, int32 [N]."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    edges = graph.tocoo()
    own, other = edges.row, edges.col
    climb = central_N[other] - central_N[own]
    level = np.abs(climb) <= _EQUAL * central_N[own]
    upward = np.flatnonzero((climb > 0) & ~level)
    # the steepest last, the lowest number after the others of the same gain: later entries overwrite earlier ones
    order = upward[np.lexsort((-other[upward], edges.data[upward] * climb[upward]))]
    to_N = np.arange(len(central_N))
    to_N[own[order]] = other[order]
    peak_N = to_N == np.arange(len(to_N))
    joined = np.flatnonzero(level & peak_N[own] & peak_N[other])
    starts, ends = np.append(np.arange(len(to_N)), own[joined]), np.append(to_N, other[joined])
    links = sparse.coo_matrix((np.ones(len(starts), np.int8), (starts, ends)), shape=graph.shape)
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int32)


def _refuse_fewer_than_two(labels_N: NDArray[np.int32], distances_NM: NDArray[np.float64], sigma: float) -> None:
    """NumericsError unless two clusters have more than one image; what to do depends on how many images are alone."""
    sizes_K = np.bincount(labels_N)
    if np.count_nonzero(sizes_K > 1) > 1:
        return
    count, alone = len(labels_N), int(np.count_nonzero(sizes_K == 1))
    if 2 * alone > count:
        typical = math.sqrt(float(np.median(distances_NM[:, 0])))
        raise NumericsError(
            f"cluster.pic.sigma: at {sigma:g} {alone:,} of {count:,} images are alone in their cluster, as half of the "
            f"images are {typical:.3g} and more from their nearest neighbour; try a sigma of about that, "
            "or pca.normalize"
        )
    raise NumericsError(
        "cluster.pic: all images form one cluster; try fewer cluster.pic.neighbours, another cluster.pic.sigma, "
        "or cluster.method kmeans"
    )


def _without_singletons(
    rows_Nd: NDArray[np.float32], labels_N: NDArray[np.int32], numbers_NM: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Every image that is alone in its cluster joins that of its nearest neighbour that is not.

    Where all its neighbours are alone as well, the nearest mean of those clusters that have more than one image.
    """
    sizes_K = np.bincount(labels_N)
    alone_A = np.flatnonzero(sizes_K[labels_N] == 1)
    of_neighbours_AM = labels_N[numbers_NM[alone_A]]
    larger_AM = sizes_K[of_neighbours_AM] > 1
    found_A = np.take_along_axis(of_neighbours_AM, larger_AM.argmax(axis=1)[:, None], axis=1)[:, 0]
    remote = np.flatnonzero(~larger_AM.any(axis=1))
    if len(remote):
        together_N = sizes_K[labels_N] > 1
        names_L, numbered = np.unique(labels_N[together_N], return_inverse=True)
        means_Ld = means_of_clusters(rows_Nd[together_N], numbered.astype(np.int32), k=len(names_L))
        assert means_Ld is not None  # each has two images and more
        nearest, _ = assign(rows_Nd[alone_A[remote]], means_Ld, origin_d=means_Ld.mean(axis=0))
        found_A[remote] = names_L[nearest]
    result_N = labels_N.copy()
    result_N[alone_A] = found_A
    return result_N


def _numbered_by_size(labels_N: NDArray[np.int32]) -> NDArray[np.int32]:
    """0 for the largest cluster, and so on; among clusters of one size the one with the first image first."""
    _, first_K, inverse_N, sizes_K = np.unique(labels_N, return_index=True, return_inverse=True, return_counts=True)
    number_K = np.empty(len(first_K), np.int32)
    number_K[np.lexsort((first_K, -sizes_K))] = np.arange(len(first_K), dtype=np.int32)
    return number_K[inverse_N]
