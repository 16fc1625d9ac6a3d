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

T = TypeVar("T")
R = TypeVar("R")

_MOST_WORKERS = 8  # each holds a block's results: with D = 4,096 features a matrix of 134 MB


@contextmanager
def one_thread_a_product() -> Iterator[None]:
    """Each call of BLAS and LAPACK, and each OpenMP region, stays on the thread that made it."""
    import numpy  # noqa: F401  only what is loaded can be limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) of every item, in order, computed on a few threads; at most one result a thread waits."""
    workers = min(_available_cores(), _MOST_WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
