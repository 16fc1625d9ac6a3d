"""What a process settles before torch and faiss load: how threads wait, what malloc keeps. And a thread ahead."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SPINS = 1000
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT, _LARGEST = 1 << 30, 1 << 25  # bytes; 32 MiB is the largest that glibc accepts


def settle() -> None:
    """Both, at the start of a process that computes."""
    wait_briefly()
    keep_freed_memory()


def wait_briefly() -> None:
    """Waiting threads spin for some microseconds, then sleep, unless the user's environment says otherwise.

    Spinning for long beside one busy process, as OpenMP does by default, costs a small network two thirds of its speed;
    not spinning at all costs a tenth to a fifth without one (docs/performance.md). GOMP_SPINCOUNT is for GNU's
    OpenMP (Linux), where it goes before OMP_WAIT_POLICY; others heed the latter only.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPINS)}


def keep_freed_memory() -> bool:
    """glibc keeps up to 1 GiB of freed memory, and serves blocks up to 32 MiB from it; True if it agreed.

    By default each batch's memory is given back to the system and fetched again page by page, which took a
    fifth of extraction's time (docs/performance.md). Elsewhere nothing is done, nor where MALLOC_* is in the
    environment.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, the next one being made by a thread while the caller works on the one before."""
    from concurrent.futures import ThreadPoolExecutor  # not for every process that settles its threads

    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
