"""k-means (Lloyd) over all rows, by faiss or scikit-learn, with one definition of what comes out.

Backends train on rows moved to mean zero (k-means does not care; float32 distances do). Afterwards every row is
assigned here, in float64, to its nearest centroid, so labels and distances are exact for the published centroids.

Empty clusters. During training faiss re-splits a large cluster, as the paper does. The final assignment may
leave a cluster empty all the same; it then takes the row farthest from its centroid as its own centroid, and all rows
nearer to that than to theirs move there, until no cluster is empty or every row lies on its centroid. So with at
least k distinct rows no cluster is empty; with fewer, each distinct row is one cluster and the others stay empty.

Same rows, seed, device and number of threads give the same bytes.
Shapes: N images, d components, K clusters, T iterations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster.errors import NumericsError, UserError
from deepcluster.metrics import refuse_non_finite

KMeansBackend = Literal["faiss", "sklearn"]

_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Clustering:
    """Labels and centroids of one k-means run.

    labels_N: int32, the nearest centroid (the lowest number, if tied).
    distances_N: float32, **squared** Euclidean distance to the own centroid.
    centroids_Kd: float32. Not normalised, also where rows are.
    objective: float64 [T], the sum of squared distances after 1, 2, ... T iterations; never rises. What float32 sums,
        or faiss's nudge of a split cluster by 1/1024 of its centroid, would make rise is levelled out.
        The last value is the sum for the returned centroids before empty clusters were filled, which lowers the sum.
        T is the number of iterations asked for, or smaller, as faiss stops when the sum no longer changes.
        scikit-learn tells the last value only: T = 1.
    sizes_K: int64, images per cluster.
    """

    labels_N: NDArray[np.int32]
    distances_N: NDArray[np.float32]
    centroids_Kd: NDArray[np.float32]
    objective: NDArray[np.float64]
    sizes_K: NDArray[np.int64]


class _Assignment(NamedTuple):
    centroids_Kd: NDArray[np.float32]
    labels_N: NDArray[np.int32]
    distances_N: NDArray[np.float64]
    objective: NDArray[np.float64]


def kmeans(
    rows_Nd: NDArray[np.float32],
    *,
    k: int,
    backend: KMeansBackend,
    iterations: int = 20,
    restarts: int = 1,
    seed: int,
    initial_centroids_Kd: NDArray[np.float32] | None = None,
    gpu: bool | None = None,
) -> Clustering:
    """Cluster float32 rows [N, d] into k; of `restarts` runs the one with the lowest objective (the first, if tied).

    faiss starts from k random rows, scikit-learn from k-means++; both from `initial_centroids_Kd` if given, and then
    run once. Run 0 uses `seed`, the others seeds derived from it. Both stop early when nothing changes.
    `gpu`: None takes the GPUs that faiss sees, else the CPU; True insists; False forbids. scikit-learn ignores it.
    NumericsError: k < 2, k > N, rows that are not finite. UserError: `gpu` insisted on, none there.
    """
    _check(rows_Nd, k, iterations, restarts, initial_centroids_Kd)
    rows_Nd = np.ascontiguousarray(rows_Nd, dtype=np.float32)
    mean_d = rows_Nd.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred_Nd = rows_Nd - mean_d
    initial_Kd = None if initial_centroids_Kd is None else np.subtract(initial_centroids_Kd, mean_d, dtype=np.float32)
    best: _Assignment | None = None
    for run in range(restarts if initial_Kd is None else 1):
        match backend:
            case "faiss":
                trained = _faiss_train(centred_Nd, k, iterations, _run_seed(seed, run), initial_Kd, gpu)
            case "sklearn":
                trained = _sklearn_train(centred_Nd, k, iterations, _run_seed(seed, run), initial_Kd)
        found = _assign(rows_Nd, mean_d, *trained)
        if best is None or found.objective[-1] < best.objective[-1]:
            best = found
    assert best is not None
    return _finish(rows_Nd, best)


def _faiss_train(
    centred_Nd: NDArray[np.float32],
    k: int,
    iterations: int,
    seed: int,
    initial_Kd: NDArray[np.float32] | None,
    gpu: bool | None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Centroids after `iterations` updates, and the sum of squared distances before each update."""
    import faiss

    count, d = centred_Nd.shape
    gpus = faiss.get_num_gpus()
    if gpu and not gpus:
        raise UserError(
            "k-means: a GPU was asked for and faiss sees none; ask for the CPU or install faiss for the GPU"
        )
    trainer = faiss.Kmeans(
        d,
        k,
        niter=iterations,
        seed=seed,
        gpu=0 if gpu is False else gpus,
        min_points_per_centroid=1,
        max_points_per_centroid=-(-count // k),  # no subsampling: every row takes part
    )
    trainer.train(centred_Nd, init_centroids=initial_Kd)
    return np.array(trainer.centroids, dtype=np.float32), np.array(trainer.obj, dtype=np.float64)


def _sklearn_train(
    centred_Nd: NDArray[np.float32], k: int, iterations: int, seed: int, initial_Kd: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """As `_faiss_train`, without the sums. One thread: scikit-learn's threads add up in any order."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    init = "k-means++" if initial_Kd is None else initial_Kd
    trainer = KMeans(k, init=init, n_init=1, max_iter=iterations, tol=0.0, random_state=seed, algorithm="lloyd")
    with threadpool_limits(1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than k: handled afterwards
        trainer.fit(centred_Nd)
    return np.asarray(trainer.cluster_centers_, dtype=np.float32), np.empty(0)


def _assign(
    rows_Nd: NDArray[np.float32],
    mean_d: NDArray[np.float32],
    centred_centroids_Kd: NDArray[np.float32],
    before: NDArray[np.float64],
) -> _Assignment:
    """Centroids moved back to where the rows are, each row's nearest one, squared distances, and the objective.

    `before` has the sums before each update, the objective those after it: the first goes and the final one comes.
    """
    centroids_Kd = np.add(centred_centroids_Kd, mean_d, dtype=np.float32)
    nearby_Kd = np.subtract(centroids_Kd, mean_d, dtype=np.float64)
    norms_K = np.einsum("kd,kd->k", nearby_Kd, nearby_Kd)
    labels_N = np.empty(len(rows_Nd), dtype=np.int32)
    distances_N = np.empty(len(rows_Nd), dtype=np.float64)
    for block in _blocks(len(rows_Nd), sum(centroids_Kd.shape)):
        nearby_Bd = np.subtract(rows_Nd[block], mean_d, dtype=np.float64)
        scores_BK = nearby_Bd @ nearby_Kd.T
        scores_BK *= -2.0
        scores_BK += norms_K
        labels_N[block] = scores_BK.argmin(axis=1)
        distances_N[block] = _squared_distances(rows_Nd[block], centroids_Kd[labels_N[block]])
    final = distances_N.sum()
    falling = np.minimum.accumulate(np.append(before[1:], final))
    return _Assignment(centroids_Kd, labels_N, distances_N, np.maximum(falling, final))


def _finish(rows_Nd: NDArray[np.float32], found: _Assignment) -> Clustering:
    k = len(found.centroids_Kd)
    _fill_empty_clusters(rows_Nd, found.centroids_Kd, found.labels_N, found.distances_N)
    sizes_K = np.bincount(found.labels_N, minlength=k).astype(np.int64)
    distances_N = found.distances_N.astype(np.float32)
    return Clustering(found.labels_N, distances_N, found.centroids_Kd, found.objective, sizes_K)


def _fill_empty_clusters(
    rows_Nd: NDArray[np.float32],
    centroids_Kd: NDArray[np.float32],
    labels_N: NDArray[np.int32],
    distances_N: NDArray[np.float64],
) -> None:
    """In place, as the top of this file says. Ends, since each step lowers the sum of distances to 0 at worst."""
    sizes_K = np.bincount(labels_N, minlength=len(centroids_Kd))
    while not sizes_K.all() and distances_N.any():
        empty, farthest = int(sizes_K.argmin()), int(distances_N.argmax())
        centroids_Kd[empty] = rows_Nd[farthest]
        for block in _blocks(len(rows_Nd), rows_Nd.shape[1]):
            moved_B = _squared_distances(rows_Nd[block], centroids_Kd[empty])
            nearer_B = moved_B < distances_N[block]
            labels_N[block][nearer_B] = empty
            distances_N[block][nearer_B] = moved_B[nearer_B]
        sizes_K = np.bincount(labels_N, minlength=len(centroids_Kd))


def _squared_distances(rows_Bd: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float64]:
    """To the point of the same row, or to the one point; by differences in float64, 0 only for equal rows."""
    difference_Bd = np.subtract(rows_Bd, points, dtype=np.float64)
    return np.asarray(np.einsum("bd,bd->b", difference_Bd, difference_Bd))


def _blocks(count: int, row_values: int) -> Iterator[slice]:
    """Slices of rows that need about 32 MiB each at `row_values` float64 values a row."""
    step = max(1, _BLOCK_BYTES // (8 * row_values))
    for start in range(0, count, step):
        yield slice(start, start + step)


def _run_seed(seed: int, run: int) -> int:
    """31 bits, as both libraries take them; run 0 has the seed itself."""
    return seed % 2**31 if run == 0 else int(np.random.SeedSequence((seed, run)).generate_state(1)[0]) % 2**31


def _check(
    rows_Nd: NDArray[np.float32], k: int, iterations: int, restarts: int, initial_Kd: NDArray[np.float32] | None
) -> None:
    if iterations < 1 or restarts < 1:
        raise ValueError(f"iterations and restarts must be >= 1; got {iterations} and {restarts}")
    if k < 2:
        raise NumericsError(f"cluster.k: must be >= 2; got {k}")
    if k > len(rows_Nd):
        raise NumericsError(f"cluster.k: must be <= N = {len(rows_Nd)} images; got {k}")
    if initial_Kd is not None and initial_Kd.shape != (k, rows_Nd.shape[1]):
        raise ValueError(f"initial_centroids_Kd must have shape {(k, rows_Nd.shape[1])}; got {initial_Kd.shape}")
    refuse_non_finite(rows_Nd, "rows")
    if initial_Kd is not None:
        refuse_non_finite(initial_Kd, "initial_centroids_Kd")
