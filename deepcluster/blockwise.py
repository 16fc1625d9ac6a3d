"""Linear algebra whose bytes do not depend on the number of cores or on what else the machine does.

A matrix library that splits one product among threads adds in an order that depends on their number, and so rounds
differently on another machine, or on the same one. Here each block of rows is worked on by one thread, several blocks
at once, and results are taken in the order of the blocks.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deepcluster.distributed import processes_here

T = TypeVar("T")
R = TypeVar("R")

_MOST_WORKERS = 8  # each holds a block and its results


@contextmanager
def one_thread_a_product() -> Iterator[None]:
    """Each call of BLAS and LAPACK, and each OpenMP region, stays on the thread that made it."""
    import scipy.linalg  # noqa: F401  only what is loaded can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) of every item, in order, computed on a few threads; at most one result a thread waits."""
    count = workers()
    with ThreadPoolExecutor(count) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def workers() -> int:
    """How many threads work on blocks at once; processes of one stage share the machine's cores."""
    return min(max(1, _available_cores() // processes_here()), _MOST_WORKERS)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def l2_normalize(rows_Nd: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their Euclidean norm (summed in float64), float32; rows of zeros stay zeros."""
    norms_N = np.sqrt(np.einsum("nd,nd->n", rows_Nd, rows_Nd, dtype=np.float64)).astype(np.float32)
    norms_N[norms_N == 0] = 1.0
    return np.asarray(np.divide(rows_Nd, norms_N[:, None], dtype=np.float32))
