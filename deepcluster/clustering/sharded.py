"""k-means (Lloyd) over rows that several processes have, each a part: what faiss finds of all rows in one process.

Every process assigns its own rows, by faiss's index of the centroids; sums, counts and the objective are added up in
float64. The rows to start from and the splitting of empty clusters are faiss's, drawn from the same seeds out of
numbers that all processes have, so all have the same centroids, and one process has them to rounding. k-means++ draws
as faiss's does, but not the same rows.
Shapes: N rows of all processes, M of one, d components, K clusters, S some rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.assignment import assign, on_gpus, slices, squared_distances
from deepcluster.clustering.backends import Init, uses_gpu
from deepcluster.clustering.kmeans import Clustering, check_clusters, falling, run_seed, sample_numbers, starting
from deepcluster.distributed import Process

_SUMMED_ROWS = 1 << 15  # at once, in float64
_SPLIT = 1 / 1024  # of a centroid: how far apart faiss moves the halves of a cluster
_SPLIT_SEED = 1234  # faiss's, for each iteration


@dataclass(frozen=True)
class Part:
    """The rows float32 [M, d] that a process has of `count`, from row `first` on."""

    rows_Md: NDArray[np.float32]
    first: int
    count: int
    process: Process

    def at(self, numbers_S: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """The rows of these numbers, float32 [S, d], in every process."""
        own_S = np.asarray(numbers_S) - self.first
        inside_S = (own_S >= 0) & (own_S < len(self.rows_Md))
        found_Sd = np.zeros((len(own_S), self.rows_Md.shape[1]), np.float32)
        found_Sd[inside_S] = self.rows_Md[own_S[inside_S]]
        return self.process.total(found_Sd)

    def sums(self, labels_M: NDArray[np.integer], k: int, beside: float = 0.0) -> "_Sums":
        """Of all processes, for each of k clusters: the sum of its rows, and how many; and the sum of `beside`."""
        from scipy.sparse import csr_array

        d = self.rows_Md.shape[1]
        flat = np.zeros(k * (d + 1) + 1)
        table_KD = flat[:-1].reshape(k, d + 1)
        for rows in slices(len(self.rows_Md), _SUMMED_ROWS):
            labels_B, block_Bd = labels_M[rows], self.rows_Md[rows].astype(np.float64)
            ones_B, every_B = np.ones(len(labels_B)), np.arange(len(labels_B) + 1)
            table_KD[:, :-1] += csr_array((ones_B, labels_B, every_B), shape=(len(labels_B), k)).T @ block_Bd
        table_KD[:, -1] = np.bincount(labels_M, minlength=k)
        flat[-1] = beside
        flat = self.process.total(flat)
        table_KD = flat[:-1].reshape(k, d + 1)
        return _Sums(table_KD[:, :-1], table_KD[:, -1], float(flat[-1]))


class _Sums(NamedTuple):
    rows_Kd: NDArray[np.float64]
    sizes_K: NDArray[np.float64]
    beside: float


class _Run(NamedTuple):
    centroids_Kd: NDArray[np.float32]
    labels_M: NDArray[np.int32]
    distances_M: NDArray[np.float64]
    objective: NDArray[np.float64]
    trained_on: int


def kmeans_of_parts(
    part: Part,
    *,
    k: int,
    iterations: int = 20,
    restarts: int = 1,
    seed: int,
    init: Init = "random",
    spherical: bool = False,
    points_per_centroid: int | None = None,
    initial_centroids_Kd: NDArray[np.float32] | None = None,
    gpu: bool | None = None,
) -> Clustering | None:
    """As `kmeans` with backend faiss, of the rows of all processes; at the first process, None at the others.

    The same errors, in the process that meets them.
    """
    check_clusters(part.rows_Md, k, iterations, restarts, initial_centroids_Kd, count=part.count, first=part.first)
    on_gpu = uses_gpu("faiss", gpu)
    rows_Md = l2_normalize(part.rows_Md) if spherical else np.ascontiguousarray(part.rows_Md, dtype=np.float32)
    part = replace(part, rows_Md=rows_Md)
    origin_d = np.zeros(rows_Md.shape[1], np.float32) if spherical else _mean(part)
    start, restarts = starting(init, initial_centroids_Kd, origin_d, restarts, spherical=spherical)
    nearby = replace(part, rows_Md=rows_Md - origin_d)
    best: _Run | None = None
    for run in range(restarts):
        own_seed = run_seed(seed, run)
        sample = _sample(nearby, k, points_per_centroid, own_seed)
        centroids_Kd, before = _lloyd(sample, start, k, iterations, own_seed, spherical, on_gpu)
        centroids_Kd = np.add(centroids_Kd, origin_d, dtype=np.float32)
        labels_M, distances_M = assign(rows_Md, centroids_Kd, origin_d=origin_d, gpu=on_gpu)
        final = float(part.process.total(np.array(distances_M.sum())))
        objective = falling(before * (part.count / sample.count), final)
        if best is None or objective[-1] < best.objective[-1]:
            best = _Run(centroids_Kd, labels_M, distances_M, objective, sample.count)
    assert best is not None
    sizes_K = _fill_empty_clusters(part, best)
    labels_N = part.process.collected(best.labels_M)
    distances_N = part.process.collected(best.distances_M.astype(np.float32))
    if labels_N is None or distances_N is None:
        return None
    return Clustering(labels_N, distances_N, best.centroids_Kd, best.objective, sizes_K, best.trained_on)


def means_of_clusters_of_parts(part: Part, labels_M: NDArray[np.int32], *, k: int) -> NDArray[np.float32] | None:
    """As `warm_start.means_of_clusters`, of the rows of all processes, in every process."""
    fits = not len(labels_M) or bool(labels_M.min() >= 0 and labels_M.max() < k)
    if not all(part.process.gathered(fits)):
        return None
    rows_Kd, sizes_K, _ = part.sums(labels_M, k)
    return (rows_Kd / sizes_K[:, None]).astype(np.float32) if sizes_K.all() else None


def _mean(part: Part) -> NDArray[np.float32]:
    total_d = part.process.total(part.rows_Md.sum(axis=0, dtype=np.float64))
    return np.asarray(total_d / part.count, np.float32)


def _sample(part: Part, k: int, points_per_centroid: int | None, seed: int) -> Part:
    """The process's part of the rows that `kmeans` trains on."""
    numbers_S = sample_numbers(part.count, k, points_per_centroid, seed)
    if numbers_S is None:
        return part
    start, stop = np.searchsorted(numbers_S, [part.first, part.first + len(part.rows_Md)])
    return Part(part.rows_Md[numbers_S[start:stop] - part.first], int(start), len(numbers_S), part.process)


def _lloyd(
    part: Part,
    start: Init | NDArray[np.float32],
    k: int,
    iterations: int,
    seed: int,
    spherical: bool,
    gpu: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Centroids after `iterations` updates, and the sum of squared distances before each; as faiss.Kmeans.train.

    It ends when the sum does not change any more.
    """
    if part.count == k:
        return part.at(np.arange(k)), np.empty(0)
    centroids_Kd = _start(part, start, k, seed)
    sums: list[float] = []
    while len(sums) < iterations and (len(sums) < 2 or sums[-1] != sums[-2]):
        labels_M, distance = _nearest(part.rows_Md, centroids_Kd, gpu)
        rows_Kd, sizes_K, total = part.sums(labels_M, k, distance)
        sums.append(total)
        centroids_Kd = (rows_Kd / np.maximum(sizes_K, 1)[:, None]).astype(np.float32)
        _split(centroids_Kd, sizes_K, part.count)
        centroids_Kd = l2_normalize(centroids_Kd) if spherical else centroids_Kd
    return centroids_Kd, np.array(sums)


def _nearest(
    rows_Md: NDArray[np.float32], centroids_Kd: NDArray[np.float32], gpu: bool
) -> tuple[NDArray[np.int64], float]:
    """Labels [M] of the nearest centroids, and the sum of the squared distances to them."""
    import faiss

    if not len(rows_Md):
        return np.empty(0, np.int64), 0.0
    index = on_gpus(centroids_Kd) if gpu else faiss.IndexFlatL2(centroids_Kd.shape[1])
    if not gpu:
        index.add(centroids_Kd)
    distances_M1, labels_M1 = index.search(rows_Md, 1)
    return labels_M1[:, 0], float(distances_M1.sum(dtype=np.float64))


def _start(part: Part, start: Init | NDArray[np.float32], k: int, seed: int) -> NDArray[np.float32]:
    if not isinstance(start, str):
        return start
    if start == "k-means++":
        return _far_apart(part, k, seed)
    return part.at(_drawn(part.count, k, seed + 1))


def _drawn(count: int, k: int, seed: int) -> list[int]:
    """The first k of faiss's random permutation (Fisher-Yates) of so many numbers, k < count."""
    found, moved = [], dict[int, int]()
    for place, drawn in enumerate(_bits(seed).random_raw(k).tolist()):
        other = place + drawn % (count - place)
        found.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return found


def _bits(seed: int) -> np.random.MT19937:
    """What faiss draws from: std::mt19937."""
    bits = np.random.MT19937()
    bits._legacy_seeding(seed)
    return bits


def _far_apart(part: Part, k: int, seed: int) -> NDArray[np.float32]:
    """k-means++ (Arthur and Vassilvitskii 2007): the next row is drawn by its squared distance to those before."""
    rng = np.random.default_rng(seed)
    chosen_Kd = part.at([int(rng.integers(part.count))])
    distances_M = np.full(len(part.rows_Md), np.inf)
    while len(chosen_Kd) < k:
        distances_M = np.minimum(distances_M, squared_distances(part.rows_Md, chosen_Kd[-1]))
        shares = part.process.gathered(float(distances_M.sum()))
        place, before = rng.random() * sum(shares), sum(shares[: part.process.rank])
        number = 0
        if sum(shares) == 0:
            number = int(rng.integers(part.count)) if part.process.first else 0
        elif before <= place < before + shares[part.process.rank]:
            inside = int(np.searchsorted(np.cumsum(distances_M), place - before, side="right"))
            number = part.first + min(inside, len(distances_M) - 1)
        chosen_Kd = np.concatenate([chosen_Kd, part.at([int(part.process.total(np.array(number)))])])
    return chosen_Kd


def _split(centroids_Kd: NDArray[np.float32], sizes_K: NDArray[np.float64], count: int) -> None:
    """In place, as faiss does: each empty cluster becomes a half of one that is drawn by its size."""
    draws, d = _Draws(len(sizes_K)), centroids_Kd.shape[1]
    sign_d = np.where(np.arange(d) % 2 == 0, np.float32(_SPLIT), np.float32(-_SPLIT))
    for empty in np.flatnonzero(sizes_K == 0):
        split = draws.first_below(((sizes_K - 1) / (count - len(sizes_K))).astype(np.float32))
        centroids_Kd[empty] = centroids_Kd[split] * (1 + sign_d)
        centroids_Kd[split] *= 1 - sign_d
        sizes_K[empty] = sizes_K[split] / 2
        sizes_K[split] -= sizes_K[empty]


class _Draws:
    """faiss's random numbers in [0, 1), and which of K is the first below its bound, going round and round."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._bits = _bits(_SPLIT_SEED)
        self._held = np.empty(0, np.float32)

    def first_below(self, bounds_K: NDArray[np.float32]) -> int:
        while True:
            if len(self._held) < self._k:
                more = self._bits.random_raw(self._k).astype(np.float32) / np.float32(2**32)
                self._held = np.concatenate([self._held, more])
            below = np.flatnonzero(self._held[: self._k] < bounds_K)
            taken = int(below[0]) + 1 if len(below) else self._k
            self._held = self._held[taken:]
            if len(below):
                return int(below[0])


def _fill_empty_clusters(part: Part, run: _Run) -> NDArray[np.int64]:
    """In place, as `assignment.fill_empty_clusters`; the sizes of all clusters."""
    k, process = len(run.centroids_Kd), part.process
    sizes_K = process.total(np.bincount(run.labels_M, minlength=k).astype(np.int64))
    while not sizes_K.all():
        own = int(run.distances_M.argmax()) if len(run.distances_M) else -1
        tops = process.gathered([float(run.distances_M[own]) if own >= 0 else 0.0, part.first + own])
        farthest, number = max(tops, key=lambda top: (top[0], -top[1]))
        if farthest == 0:
            break
        empty = int(sizes_K.argmin())
        run.centroids_Kd[empty] = part.at([number])[0]
        moved_M = squared_distances(part.rows_Md, run.centroids_Kd[empty])
        nearer_M = moved_M < run.distances_M
        run.labels_M[nearer_M] = empty
        run.distances_M[nearer_M] = moved_M[nearer_M]
        sizes_K = process.total(np.bincount(run.labels_M, minlength=k).astype(np.int64))
    return sizes_K
