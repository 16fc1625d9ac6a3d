"""The nearest rows of every row, by exhaustive search.

faiss names candidates in float32; distances are then float64 differences, and the candidates are ranked by those, the
lowest row number first among equal ones. Candidates exceed what is asked for by a few, so float32 rounding costs a
neighbour only where more rows than those few lie equally far to seven digits (many copies of a row). Blocks of rows,
one thread each, so the bytes do not depend on the number of threads.
Shapes: N rows, d components, B rows of a block, C candidates, M neighbours.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import in_order, one_thread_a_product, workers
from deepcluster.clustering.assignment import on_gpus, slices
from deepcluster.errors import NumericsError

_BLOCK_ROWS = 4096  # enough for faiss to multiply matrices
_GPU_ROWS = 1 << 14
_SPARE = 8  # candidates more than asked for


def nearest_neighbours(
    rows_Nd: NDArray[np.float32], neighbours: int, *, gpu: bool = False, named: str = "cluster.pic.neighbours"
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Row numbers int32 [N, M] of the M nearest other rows, nearest first, and squared distances float64 [N, M].

    A row is never its own neighbour; copies of it are. `gpu`: the search runs on all GPUs.
    `named`: the setting that is wrong where `neighbours` is.
    NumericsError: neighbours >= N, or rows so large that float32 distances are infinite.
    """
    count = len(rows_Nd)
    if not 1 <= neighbours < count:
        raise NumericsError(f"{named}: must be < N = {count} images; got {neighbours}")
    nearby_Nd = rows_Nd - rows_Nd.mean(axis=0, dtype=np.float64).astype(np.float32)  # an offset would cost digits
    index = _index(nearby_Nd, gpu)
    numbers_NM = np.empty((count, neighbours), np.int32)
    distances_NM = np.empty((count, neighbours), np.float64)

    def work(rows: slice) -> None:
        own_B = np.arange(count, dtype=np.int64)[rows]
        candidates_BC = _candidates(index, nearby_Nd[rows], min(count, neighbours + 1 + _SPARE), gpu)
        distances_BC = _squared_distances(rows_Nd, own_B, candidates_BC)
        distances_BC[candidates_BC == own_B[:, None]] = np.inf
        order_BM = np.lexsort((candidates_BC, distances_BC), axis=1)[:, :neighbours]
        numbers_NM[rows] = np.take_along_axis(candidates_BC, order_BM, axis=1)
        distances_NM[rows] = np.take_along_axis(distances_BC, order_BM, axis=1)

    with one_thread_a_product():
        blocks = slices(count, _GPU_ROWS if gpu else _BLOCK_ROWS)
        finished: Iterable[None] = map(work, blocks) if gpu else in_order(work, blocks)  # a GPU index serves one thread
        for _ in finished:
            pass
    return numbers_NM, distances_NM


def search_memory(count: int, components: int) -> float:
    """Bytes that the blocks of all threads take at once: faiss's tile of 1,024 distances a row, and differences."""
    return workers() * min(count, _BLOCK_ROWS) * (4.0 * 1024 + 24.0 * components)


def _index(rows_Nd: NDArray[np.float32], gpu: bool) -> Any:
    import faiss

    if gpu:
        return on_gpus(rows_Nd)
    index = faiss.IndexFlatL2(rows_Nd.shape[1])
    index.add(rows_Nd)
    return index


def _candidates(index: Any, rows_Bd: NDArray[np.float32], count: int, gpu: bool) -> NDArray[np.int64]:
    import faiss

    if not gpu:
        faiss.omp_set_num_threads(1)  # of the thread that calls; the blocks are what runs at once
    _, candidates_BC = index.search(rows_Bd, count)
    if (candidates_BC < 0).any():
        raise NumericsError("rows: too large for distances in float32; turn on pca.normalize or pca.whiten")
    return np.asarray(candidates_BC)


def _squared_distances(
    rows_Nd: NDArray[np.float32], own_B: NDArray[np.int64], candidates_BC: NDArray[np.int64]
) -> NDArray[np.float64]:
    """By differences in float64, a candidate at a time: [B, C, d] at once would leave the cache."""
    own_Bd = rows_Nd[own_B].astype(np.float64)
    found_BC = np.empty(candidates_BC.shape, np.float64)
    for place in range(candidates_BC.shape[1]):
        difference_Bd = own_Bd - rows_Nd[candidates_BC[:, place]]
        found_BC[:, place] = np.einsum("bd,bd->b", difference_Bd, difference_Bd)
    return found_BC
