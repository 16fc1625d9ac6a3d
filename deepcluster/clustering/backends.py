"""Centroids by faiss or scikit-learn, from rows that are already where float32 distances are exact enough.

Shapes: N rows, d components, K clusters, T iterations.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import l2_normalize
from deepcluster.errors import UserError

KMeansBackend = Literal["faiss", "sklearn", "minibatch"]
Init = Literal["random", "k-means++"]
Trained = tuple[NDArray[np.float32], NDArray[np.float64]]
"""Centroids [K, d], and the sum of squared distances before each update [T], empty where a library does not tell it."""

_LEAST_BATCH = 1024  # rows of a mini-batch


def uses_gpu(backend: KMeansBackend, gpu: bool | None) -> bool:
    """Whether faiss will work on GPUs: not if `gpu` is False, only if it sees one. UserError if True and none is."""
    if backend != "faiss" or gpu is False:
        return False
    import faiss

    if gpu and not faiss.get_num_gpus():
        raise UserError(
            "k-means: a GPU was asked for and faiss sees none; ask for the CPU or install faiss for the GPU"
        )
    return faiss.get_num_gpus() > 0


def train(
    backend: KMeansBackend,
    rows_Nd: NDArray[np.float32],
    start: Init | NDArray[np.float32],
    *,
    k: int,
    iterations: int,
    seed: int,
    spherical: bool,
    gpu: bool,
) -> Trained:
    """k centroids after `iterations` updates, from `start`: a way to choose rows, or centroids [K, d]."""
    match backend:
        case "faiss":
            return _faiss(rows_Nd, start, k, iterations, seed, spherical, gpu)
        case "sklearn":
            return _sklearn(rows_Nd, start, k, iterations, seed)
        case "minibatch":
            return _minibatch(rows_Nd, start, k, iterations, seed)


def _faiss(
    rows_Nd: NDArray[np.float32],
    start: Init | NDArray[np.float32],
    k: int,
    iterations: int,
    seed: int,
    spherical: bool,
    gpu: bool,
) -> Trained:
    """On all GPUs that faiss sees, or on all cores. It splits large clusters where others are empty, as the paper."""
    import faiss

    given = None if isinstance(start, str) else start
    trainer = faiss.Kmeans(
        rows_Nd.shape[1],
        k,
        niter=iterations,
        seed=seed,
        gpu=faiss.get_num_gpus() if gpu else 0,
        spherical=spherical,
        init_method=(
            faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS if start == "k-means++" else faiss.ClusteringInitMethod_RANDOM
        )
        if given is None
        else faiss.ClusteringInitMethod_RANDOM,
        min_points_per_centroid=1,
        max_points_per_centroid=-(-len(rows_Nd) // k),  # no subsampling of its own
    )
    trainer.train(rows_Nd, init_centroids=given)
    centroids_Kd, sums = np.array(trainer.centroids, np.float32), np.array(trainer.obj, np.float64)
    if not spherical:
        return centroids_Kd, sums
    # It sums x c, and |x - c|^2 = |x|^2 + |c|^2 - 2 x c. Rounding apart its centroids have norm 1.
    lengths = float(np.einsum("nd,nd->", rows_Nd, rows_Nd, dtype=np.float64))
    return l2_normalize(centroids_Kd), lengths + len(rows_Nd) - 2 * sums


def _sklearn(
    rows_Nd: NDArray[np.float32], start: Init | NDArray[np.float32], k: int, iterations: int, seed: int
) -> Trained:
    """Lloyd's algorithm. One thread: scikit-learn's threads add up in any order."""
    from sklearn.cluster import KMeans

    trainer = KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0.0, random_state=seed, algorithm="lloyd")
    return _fitted(trainer, rows_Nd)


def _minibatch(
    rows_Nd: NDArray[np.float32], start: Init | NDArray[np.float32], k: int, iterations: int, seed: int
) -> Trained:
    """`iterations` passes over the rows in batches of at least 1,024 rows and two a cluster (Sculley 2010)."""
    from sklearn.cluster import MiniBatchKMeans

    trainer = MiniBatchKMeans(
        k,
        init=start,
        n_init=1,
        max_iter=iterations,
        batch_size=min(len(rows_Nd), max(_LEAST_BATCH, 2 * k)),
        random_state=seed,
        tol=0.0,
        max_no_improvement=None,
    )
    return _fitted(trainer, rows_Nd)


def _fitted(trainer: object, rows_Nd: NDArray[np.float32]) -> Trained:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than k: handled afterwards
        trainer.fit(rows_Nd)  # type: ignore[attr-defined]
    return np.asarray(trainer.cluster_centers_, dtype=np.float32), np.empty(0)  # type: ignore[attr-defined]
