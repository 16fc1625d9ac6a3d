"""Every row to its nearest centroid, exactly, at nearly the speed of float32.

Float32 products find the nearest centroid and how much farther the second is. Where that gap is larger than anything
rounding can do (the bound of a float32 scalar product's error), the label is certain; the few other rows are decided
in float64, the lowest number winning ties. Distances are float64 differences. Blocks of rows, one thread each, so the
bytes do not depend on the number of threads.
Shapes: N rows, d components, K centroids, B rows of a block.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import in_order, one_thread_a_product

_BLOCK_BYTES = 4 << 20
_SCORES = 1 << 18  # of a block at once: they stay in the processor's cache
_TILE = 1024  # centroids at once
_EXACT_FROM_START = 2e7  # multiplications below which two passes would not pay
_GPU_ROWS = 1 << 16
_UNIT, _TINY = 2.0**-24, 2.0**-126  # rounding of float32, and below which it loses digits


def assign(
    rows_Nd: NDArray[np.float32],
    centroids_Kd: NDArray[np.float32],
    *,
    origin_d: NDArray[np.float32],
    gpu: bool = False,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Labels int32 [N] and squared Euclidean distances float64 [N] to the nearest centroid.

    `origin_d`: a point amid the rows, subtracted from both before they are multiplied, so that an offset costs no
    digits. `gpu`: the float32 part is done by faiss on all GPUs.
    """
    count, d = rows_Nd.shape
    nearby_Kd = np.subtract(centroids_Kd, origin_d, dtype=np.float64)
    norms_K = np.einsum("kd,kd->k", nearby_Kd, nearby_Kd)
    labels_N = np.empty(count, np.int32)
    distances_N = np.empty(count, np.float64)
    quick = count * d * float(len(centroids_Kd)) > _EXACT_FROM_START
    candidates = _Candidates(nearby_Kd.astype(np.float32), gpu=gpu) if quick else None

    def work(rows: slice) -> None:
        block_Bd = rows_Nd[rows]
        if candidates is None:
            labels_B = _exact(block_Bd, origin_d, nearby_Kd, norms_K)
        else:
            labels_B, certain_B = candidates.nearest(np.subtract(block_Bd, origin_d, dtype=np.float32))
            unclear_U = np.flatnonzero(~certain_B)
            labels_B[unclear_U] = _exact(block_Bd[unclear_U], origin_d, nearby_Kd, norms_K)
        labels_N[rows] = labels_B
        distances_N[rows] = squared_distances(block_Bd, centroids_Kd[labels_B])

    with one_thread_a_product():
        if candidates is not None and gpu:  # faiss's GPU indexes serve one thread
            for rows in slices(count, _GPU_ROWS):
                work(rows)
        else:
            for _ in in_order(work, slices(count, max(1, _SCORES // min(len(centroids_Kd), _TILE)))):
                pass
    return labels_N, distances_N


class _Candidates:
    """The nearest centroid in float32, and whether that is certain."""

    def __init__(self, centroids_Kd: NDArray[np.float32], *, gpu: bool) -> None:
        self._norms_K = np.einsum("kd,kd->k", centroids_Kd, centroids_Kd)
        self._doubled_dK = np.ascontiguousarray(-2 * centroids_Kd.T)
        self._longest = float(np.sqrt(self._norms_K.max(), dtype=np.float64))
        self._index: Any = on_gpus(centroids_Kd) if gpu else None

    def nearest(self, rows_Bd: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Labels int32 [B], and bool [B]: whether no rounding can have made another centroid the nearest.

        The error of a float32 sum of d products is at most d x 2**-24 times the product of the norms (Higham 2002,
        section 3.1); norms, conversion and the sum of the three terms add a few units, and products too small for
        float32 the absolute term.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            labels_B, gap_B = self._two_nearest(rows_Bd) if self._index is None else self._two_nearest_gpu(rows_Bd)
            lengths_B = np.sqrt(np.einsum("bd,bd->b", rows_Bd, rows_Bd, dtype=np.float64))
            bound_B = (rows_Bd.shape[1] + 8) * (_UNIT * (lengths_B + self._longest) ** 2 + _TINY)
            return labels_B, np.asarray(gap_B > 2 * bound_B)  # False for NaN, of rows too large for float32

    def _two_nearest(self, rows_Bd: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Labels, and by how much the second smallest squared distance exceeds the smallest."""
        every_B = np.arange(len(rows_Bd))
        labels_B = np.zeros(len(rows_Bd), np.int32)
        smallest_B = np.full(len(rows_Bd), np.inf, np.float32)
        second_B = smallest_B.copy()
        for start in range(0, len(self._norms_K), _TILE):
            tile = slice(start, start + _TILE)
            scores_BT = rows_Bd @ self._doubled_dK[:, tile]
            scores_BT += self._norms_K[tile]
            place_B = scores_BT.argmin(axis=1)
            low_B = scores_BT[every_B, place_B]
            scores_BT[every_B, place_B] = np.inf
            second_B = np.minimum(np.minimum(second_B, scores_BT.min(axis=1)), np.maximum(smallest_B, low_B))
            labels_B = np.where(low_B < smallest_B, place_B.astype(np.int32) + start, labels_B)
            smallest_B = np.minimum(smallest_B, low_B)
        return labels_B, second_B - smallest_B

    def _two_nearest_gpu(self, rows_Bd: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        distances_B2, labels_B2 = self._index.search(rows_Bd, 2)
        return labels_B2[:, 0].astype(np.int32), distances_B2[:, 1] - distances_B2[:, 0]


def squared_distances(rows_Bd: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float64]:
    """To the point of the same row, or to the one point; by differences in float64, 0 only for equal rows."""
    difference_Bd = np.subtract(rows_Bd, points, dtype=np.float64)
    return np.asarray(np.einsum("bd,bd->b", difference_Bd, difference_Bd))


def fill_empty_clusters(
    rows_Nd: NDArray[np.float32],
    centroids_Kd: NDArray[np.float32],
    labels_N: NDArray[np.int32],
    distances_N: NDArray[np.float64],
) -> None:
    """In place: an empty cluster takes the row farthest from its centroid, and all rows nearer to it than to theirs.

    Ends, since each step lowers the sum of distances to 0 at worst. Then no cluster is empty, or every row lies on
    its centroid.
    """
    sizes_K = np.bincount(labels_N, minlength=len(centroids_Kd))
    while not sizes_K.all() and distances_N.any():
        empty, farthest = int(sizes_K.argmin()), int(distances_N.argmax())
        centroids_Kd[empty] = rows_Nd[farthest]
        for rows in slices(len(rows_Nd), max(1, _BLOCK_BYTES // (8 * rows_Nd.shape[1]))):
            moved_B = squared_distances(rows_Nd[rows], centroids_Kd[empty])
            nearer_B = moved_B < distances_N[rows]
            labels_N[rows][nearer_B] = empty
            distances_N[rows][nearer_B] = moved_B[nearer_B]
        sizes_K = np.bincount(labels_N, minlength=len(centroids_Kd))


def _exact(
    rows_Bd: NDArray[np.float32],
    origin_d: NDArray[np.float32],
    nearby_Kd: NDArray[np.float64],
    norms_K: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Labels by float64 products, the lowest number if tied."""
    labels_B = np.empty(len(rows_Bd), np.int32)
    for rows in slices(len(rows_Bd), max(1, _BLOCK_BYTES // (8 * sum(nearby_Kd.shape)))):
        scores_BK = np.subtract(rows_Bd[rows], origin_d, dtype=np.float64) @ nearby_Kd.T
        scores_BK *= -2.0
        scores_BK += norms_K
        labels_B[rows] = scores_BK.argmin(axis=1)
    return labels_B


def on_gpus(points_Kd: NDArray[np.float32]) -> Any:
    """faiss's exhaustive index of the points, on all GPUs."""
    import faiss

    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(points_Kd.shape[1]))
    index.add(points_Kd)
    return index


def slices(count: int, step: int) -> Iterator[slice]:
    """Blocks of `step` rows, the last one of what is left."""
    for start in range(0, count, step):
        yield slice(start, start + step)
