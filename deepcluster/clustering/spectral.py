"""Normalised spectral clustering of the graph of nearest neighbours (Ng, Jordan and Weiss 2002).

k-means asks which centre a row is nearest to; this asks along which rows one gets to another, so a cluster may have any
shape, and two that touch nowhere stay two however close their centres are.

    A     A_ij = 1 where j is one of the nearest neighbours of i or i one of j, else 0 (von Luxburg 2007, section 2.2)
    L     D^-1/2 A D^-1/2, D the diagonal of A's row sums
    E     the eigenvectors of L's largest eigenvalues side by side, each row divided by its norm

The clusters are those of k-means among the rows of E. Ng, Jordan and Weiss take as many eigenvectors as clusters. Here
it is a few more: where one class falls in two more readily than two others part, k-means has both cuts to choose from.
Shapes: N images, d components, K clusters, M neighbours, V eigenvectors.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import l2_normalize, one_thread_a_product
from deepcluster.clustering import kmeans as by_kmeans
from deepcluster.clustering.backends import Init, uses_gpu
from deepcluster.clustering.kmeans import Clustering, check_clusters
from deepcluster.clustering.neighbours import nearest_neighbours, search_memory
from deepcluster.clustering.own_means import with_own_means
from deepcluster.errors import NumericsError

_DENSE = 400  # rows up to which all eigenvectors are computed: Lanczos needs many more rows than vectors
_SEED = 0


def spectral(
    rows_Nd: NDArray[np.float32],
    *,
    k: int,
    neighbours: int = 10,
    extra_vectors: int = 3,
    iterations: int = 20,
    restarts: int = 1,
    seed: int,
    init: Init = "random",
    gpu: bool | None = None,
) -> Clustering:
    """Cluster float32 rows [N, d], usually of L2 norm 1, into k.

    `extra_vectors`: how many more eigenvectors than clusters, as far as there are rows enough. What follows in the list
    is `kmeans`'s. Labels are not the nearest centroid's: `centroids_Kd` are means of the rows, the distances those to
    the own mean, and `objective` is their sum, one value.
    On the CPU the same rows and seed give the same bytes on any number of threads, but for what `kmeans` says.
    `gpu`: as for `kmeans`, for the search and for k-means; the eigenvectors are computed on the CPU.
    ValueError: extra_vectors < 0. NumericsError: k < 2, k > N, N < 3, neighbours >= N, rows that are not finite, a
    graph in more parts than vectors, eigenvectors that are not found, or by which fewer than k images differ.
    """
    if extra_vectors < 0:
        raise ValueError(f"expected extra_vectors >= 0; got {extra_vectors}")
    check_clusters(rows_Nd, k, iterations, restarts, None)
    if len(rows_Nd) < 3:
        raise NumericsError(f"cluster.method: spectral needs 3 images or more; got {len(rows_Nd)}")
    vectors = vectors_of(k, extra_vectors, len(rows_Nd))
    rows_Nd = np.ascontiguousarray(rows_Nd, dtype=np.float32)
    on_gpu = uses_gpu("faiss", gpu)
    numbers_NM, _ = nearest_neighbours(rows_Nd, neighbours, gpu=on_gpu, named="cluster.spectral.neighbours")
    embedded_NV = embedding(adjacency(numbers_NM), vectors)
    found = by_kmeans.kmeans(
        embedded_NV,
        k=k,
        backend="faiss",
        iterations=iterations,
        restarts=restarts,
        seed=seed,
        init=init,
        gpu=gpu,
    )
    if not found.sizes_K.all():
        raise NumericsError(
            f"cluster.k (beyond refine.after refine.k): {vectors} eigenvectors of the graph of neighbours tell only "
            f"{np.count_nonzero(found.sizes_K)} clusters apart; got {k}; try a smaller one, or more "
            "cluster.spectral.extra_vectors"
        )
    return with_own_means(rows_Nd, found.labels_N, k=k)


def vectors_of(k: int, extra_vectors: int, count: int) -> int:
    """How many eigenvectors, where there are rows enough."""
    return min(k + extra_vectors, count - 1)


def memory_needed(count: int, components: int, neighbours: int, vectors: int) -> float:
    """About how many bytes `spectral` takes at its peak: the rows and two copies, the graph several times over, or the
    vectors that Lanczos' method keeps (twice as many as are asked for), or k-means among them; the search's blocks."""
    later = max(
        8.0 * count * (max(2 * vectors + 1, 20) + 2 * vectors), by_kmeans.memory_needed("faiss", count, vectors)
    )
    return 16.0 * count * components + 100.0 * count * neighbours + later + search_memory(count, components)


def adjacency(numbers_NM: NDArray[np.int32]) -> Any:
    """A: scipy's CSR matrix float64 [N, N] of ones, symmetric, no diagonal."""
    from scipy import sparse

    count, neighbours = numbers_NM.shape
    starts = np.arange(0, count * neighbours + 1, neighbours)
    one_way = sparse.csr_matrix((np.ones(numbers_NM.size), numbers_NM.ravel(), starts), shape=(count, count))
    graph = one_way.maximum(one_way.T).tocsr()
    graph.sort_indices()
    return graph


def embedding(graph: Any, vectors: int) -> NDArray[np.float32]:
    """E: float32 [N, V], rows of norm 1. NumericsError for a graph in more than V parts: its E could be any of many."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    parts, part_N = connected_components(graph, directed=False)
    if parts > vectors:
        raise NumericsError(
            f"cluster.spectral: the graph of neighbours falls into {parts:,} parts, more than its {vectors} vectors, "
            "as many images have copies or are alike; try more cluster.spectral.neighbours or extra_vectors, or k-means"
        )
    count, root_N = graph.shape[0], np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    normalised = sparse.diags(1 / root_N) @ graph @ sparse.diags(1 / root_N)
    with one_thread_a_product():
        if count <= _DENSE:
            found_NV = np.linalg.eigh(normalised.toarray())[1][:, : -vectors - 1 : -1]
        else:
            of_parts_NP = _vectors_of_parts(root_N, part_N, parts)
            found_NV = np.hstack([of_parts_NP, _others(normalised, of_parts_NP, vectors - parts)])
    return l2_normalize(np.ascontiguousarray(found_NV, dtype=np.float32))


def _vectors_of_parts(root_N: NDArray[np.float64], part_N: NDArray[np.int32], parts: int) -> NDArray[np.float64]:
    """The eigenvectors of eigenvalue 1, known beforehand, one a part: the roots of its degrees, of norm 1."""
    vectors_NP = np.zeros((len(root_N), parts))
    vectors_NP[np.arange(len(root_N)), part_N] = root_N
    return np.asarray(vectors_NP / np.linalg.norm(vectors_NP, axis=0))


def _others(normalised: Any, known_NP: NDArray[np.float64], wanted: int) -> NDArray[np.float64]:
    """The next so many eigenvectors, by Lanczos' method, which of equal eigenvalues may miss some: hence `known_NP`."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    count = len(known_NP)
    if not wanted:
        return np.empty((count, 0))
    remaining = LinearOperator(
        normalised.shape, matvec=lambda x_N: normalised @ x_N - 2 * known_NP @ (known_NP.T @ x_N), dtype=np.float64
    )  # the known ones have eigenvalue -1 now, than which none is less
    rng = np.random.default_rng(_SEED)  # also for restarts, which would else be random
    start_N = rng.standard_normal(count)
    try:
        values_V, vectors_NV = eigsh(remaining, wanted, which="LA", v0=start_N, tol=1e-6, rng=rng)
    except ArpackNoConvergence as error:
        raise NumericsError(
            f"cluster.spectral: {wanted} eigenvectors of the graph were not found within Lanczos' iterations; "
            "try fewer cluster.spectral.extra_vectors, or more cluster.spectral.neighbours"
        ) from error
    return np.asarray(vectors_NV[:, np.argsort(-values_V, kind="stable")])
