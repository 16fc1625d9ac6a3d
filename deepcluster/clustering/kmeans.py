"""k-means (Lloyd) over all rows, by faiss or scikit-learn, with one definition of what comes out.

Backends train on rows moved to mean zero (k-means does not care; float32 distances do). Afterwards every row is
assigned here to its nearest centroid (`assignment`), so labels and distances are exact for the published centroids.

Spherical k-means (Dhillon and Modha 2001) divides each row by its norm and keeps the centroids at norm 1, so that the
nearest centroid is that of the largest cosine; rows of zeros stay zeros.

Empty clusters. During training faiss re-splits a large cluster, as the paper does. The final assignment may
leave a cluster empty all the same; it then takes the row farthest from its centroid as its own centroid, and all rows
nearer to that than to theirs move there, until no cluster is empty or every row lies on its centroid. So with at
least k distinct rows no cluster is empty; with fewer, each distinct row is one cluster and the others stay empty.

Same rows, seed and number of threads give the same bytes on the CPU. On GPUs faiss promises no order of addition.
Shapes: N images, d components, K clusters, T iterations.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.assignment import assign, fill_empty_clusters
from deepcluster.clustering.backends import Init, KMeansBackend, train, uses_gpu
from deepcluster.errors import NumericsError
from deepcluster.metrics import refuse_beyond_float32, refuse_non_finite

__all__ = ["Clustering", "Init", "KMeansBackend", "kmeans", "memory_needed", "uses_gpu"]


@dataclass(frozen=True)
class Clustering:
    """Labels and centroids of one k-means run.

    labels_N: int32, the nearest centroid (the lowest number, if tied).
    distances_N: float32, **squared** Euclidean distance to the own centroid; of the normalised row, if spherical.
    centroids_Kd: float32. Not normalised, also where rows are; of norm 1, if spherical.
    objective: float64 [T], the sum of squared distances after 1, 2, ... T iterations; never rises. What float32 sums,
        or faiss's nudge of a split cluster by 1/1024 of its centroid, would make rise is levelled out.
        The last value is the sum for the returned centroids before empty clusters were filled, which lowers the sum.
        If trained on a sample of the rows, all but the last are that sample's, times N / its rows.
        T is the number of iterations asked for, or smaller, as faiss stops when the sum no longer changes.
        scikit-learn tells the last value only: T = 1.
    sizes_K: int64, images per cluster.
    trained_on: how many rows the centroids were trained on.
    """

    labels_N: NDArray[np.int32]
    distances_N: NDArray[np.float32]
    centroids_Kd: NDArray[np.float32]
    objective: NDArray[np.float64]
    sizes_K: NDArray[np.int64]
    trained_on: int


class _Run(NamedTuple):
    centroids_Kd: NDArray[np.float32]
    labels_N: NDArray[np.int32]
    distances_N: NDArray[np.float64]
    objective: NDArray[np.float64]
    trained_on: int


def kmeans(
    rows_Nd: NDArray[np.float32],
    *,
    k: int,
    backend: KMeansBackend,
    iterations: int = 20,
    restarts: int = 1,
    seed: int,
    init: Init = "random",
    spherical: bool = False,
    points_per_centroid: int | None = None,
    initial_centroids_Kd: NDArray[np.float32] | None = None,
    gpu: bool | None = None,
) -> Clustering:
    """Cluster float32 rows [N, d] into k; of `restarts` runs the one with the lowest objective (the first, if tied).

    Starts from k random rows, or k-means++ (Arthur and Vassilvitskii 2007); from `initial_centroids_Kd` if given, and
    then runs once. Run 0 uses `seed`, the others seeds derived from it. All stop early when nothing changes.
    `points_per_centroid`: train on that many rows a cluster, drawn anew for each run, and assign all; None: all rows.
    `spherical` is for faiss only. `gpu`: None takes the GPUs that faiss sees, else the CPU; True insists; False
    forbids. scikit-learn ignores it.
    NumericsError: k < 2, k > N, rows that are not finite, or beyond 1e15. UserError: `gpu` insisted on, none there.
    """
    check_clusters(rows_Nd, k, iterations, restarts, initial_centroids_Kd)
    if spherical and backend != "faiss":
        raise ValueError(f"spherical k-means is faiss's; got backend {backend!r}")
    on_gpu = uses_gpu(backend, gpu)
    rows_Nd = l2_normalize(rows_Nd) if spherical else np.ascontiguousarray(rows_Nd, dtype=np.float32)
    origin_d = np.zeros(rows_Nd.shape[1], np.float32)
    if not spherical:
        origin_d = rows_Nd.mean(axis=0, dtype=np.float64).astype(np.float32)
    start, restarts = starting(init, initial_centroids_Kd, origin_d, restarts, spherical=spherical)
    nearby_Nd = rows_Nd if spherical else rows_Nd - origin_d
    best: _Run | None = None
    for run in range(restarts):
        own_seed = run_seed(seed, run)
        sample_Md = _sample(nearby_Nd, k, points_per_centroid, own_seed)
        centroids_Kd, before = train(
            backend, sample_Md, start, k=k, iterations=iterations, seed=own_seed, spherical=spherical, gpu=on_gpu
        )
        centroids_Kd = np.add(centroids_Kd, origin_d, dtype=np.float32)
        labels_N, distances_N = assign(rows_Nd, centroids_Kd, origin_d=origin_d, gpu=on_gpu)
        objective = falling(before * (len(rows_Nd) / len(sample_Md)), float(distances_N.sum()))
        if best is None or objective[-1] < best.objective[-1]:
            best = _Run(centroids_Kd, labels_N, distances_N, objective, len(sample_Md))
    assert best is not None
    fill_empty_clusters(rows_Nd, best.centroids_Kd, best.labels_N, best.distances_N)
    sizes_K = np.bincount(best.labels_N, minlength=k).astype(np.int64)
    return Clustering(
        best.labels_N,
        best.distances_N.astype(np.float32),
        best.centroids_Kd,
        best.objective,
        sizes_K,
        best.trained_on,
    )


def memory_needed(backend: KMeansBackend, count: int, components: int) -> float:
    """About how many bytes `kmeans` takes at its peak: the rows given to it, copies of them, and 40 bytes a row."""
    copies = 2 if backend == "faiss" else 3
    return 4.0 * copies * count * components + 40.0 * count


def _sample(rows_Nd: NDArray[np.float32], k: int, points_per_centroid: int | None, seed: int) -> NDArray[np.float32]:
    """That many rows a centroid, in their order; all of them if there are no more, or if None."""
    numbers = sample_numbers(len(rows_Nd), k, points_per_centroid, seed)
    return rows_Nd if numbers is None else rows_Nd[numbers]


def sample_numbers(count: int, k: int, points_per_centroid: int | None, seed: int) -> NDArray[np.int64] | None:
    """Of `count` rows that many a centroid, ascending; None for all of them, where there are no more."""
    if points_per_centroid is None or count <= k * points_per_centroid:
        return None
    return np.sort(np.random.default_rng(seed).choice(count, k * points_per_centroid, replace=False))


def starting(
    init: Init,
    initial_Kd: NDArray[np.float32] | None,
    origin_d: NDArray[np.float32],
    restarts: int,
    *,
    spherical: bool,
) -> tuple[Init | NDArray[np.float32], int]:
    """What runs start from, about `origin_d`, and how many there are: one from centroids that are given."""
    if initial_Kd is None:
        return init, restarts
    moved_Kd = np.subtract(initial_Kd, origin_d, dtype=np.float32)
    return l2_normalize(moved_Kd) if spherical else moved_Kd, 1


def falling(before: NDArray[np.float64], final: float) -> NDArray[np.float64]:
    """`before` has the sums before each update, the objective those after it: the first goes, the final one comes."""
    lowest = np.minimum.accumulate(np.append(before[1:], final))
    return np.maximum(lowest, final)


def run_seed(seed: int, run: int) -> int:
    """31 bits, as both libraries take them; run 0 has the seed itself."""
    return seed % 2**31 if run == 0 else int(np.random.SeedSequence((seed, run)).generate_state(1)[0]) % 2**31


def check_clusters(
    rows_Nd: NDArray[np.float32],
    k: int,
    iterations: int,
    restarts: int,
    initial_Kd: NDArray[np.float32] | None,
    *,
    count: int | None = None,
    first: int = 0,
) -> None:
    """The errors of `kmeans`. `rows_Nd` may be a part of `count` rows, from row `first` on."""
    count = len(rows_Nd) if count is None else count
    if iterations < 1 or restarts < 1:
        raise ValueError(f"iterations and restarts must be >= 1; got {iterations} and {restarts}")
    if k < 2:
        raise NumericsError(f"cluster.k: must be >= 2; got {k}")
    if k > count:
        raise NumericsError(f"cluster.k: must be <= N = {count} images; got {k}")
    if initial_Kd is not None and initial_Kd.shape != (k, rows_Nd.shape[1]):
        raise ValueError(f"initial_centroids_Kd must have shape {(k, rows_Nd.shape[1])}; got {initial_Kd.shape}")
    for name, values, row in (("rows", rows_Nd, first), ("initial_centroids_Kd", initial_Kd, 0)):
        if values is not None:
            refuse_non_finite(values, name, first_row=row)
            refuse_beyond_float32(values, name)
