"""Mean and covariance of rows in one pass over blocks of them; memory is some blocks and a D x D matrix, whatever N is.

Everything is taken about the mean of the first block, so a large offset common to all rows costs no digits. Narrow rows
are multiplied in float64, a block a thread. Wide ones (D >= 1,024) are multiplied in float32, at twice the speed, and
the products of each block added up in float64; threads share one block then, each filling its own rows of the matrix.
Shapes: N rows, D features, B rows of a block.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import in_order, one_thread_a_product
from deepcluster.distributed import ALONE, Process
from deepcluster.errors import NumericsError
from deepcluster.threads import ahead

WIDE = 1024
_PANEL = 256  # rows of the covariance that one product fills


class Moments(NamedTuple):
    """Of all rows seen: how many, their mean, and their covariance with divisor rows - 1."""

    rows: int
    mean_D: NDArray[np.float64]
    covariance_DD: NDArray[np.float64]


class _Sums(NamedTuple):
    """About the shift: how many rows, their sum, and the sum of their outer products."""

    rows: int
    sum_D: NDArray[np.float64]
    products_DD: NDArray[np.float64]


def moments(blocks: Iterable[NDArray[np.floating]], *, device: str | None = None, process: Process = ALONE) -> Moments:
    """Count, mean and covariance (divisor N - 1) of the rows of all blocks; of several processes, of all their blocks.

    The same bytes on any number of cores; of processes another number rounds otherwise. `device`: a torch device that
    multiplies wide rows instead; None for numpy. NumericsError: fewer than two rows.
    """
    with one_thread_a_product():  # also what `blocks` computes
        blocks = iter(blocks)
        first_BD = next(blocks, None)
        if first_BD is None and process.first:
            raise NumericsError("pca: needs at least 2 images; got 0")
        shift_D = process.shared(None if first_BD is None else _mean(first_BD))
        everything = blocks if first_BD is None else chain([first_BD], blocks)
        wide = len(shift_D) >= WIDE and (first_BD is None or first_BD.dtype == np.float32)
        del first_BD
        if not wide:
            sums = _by_blocks(everything, shift_D)
        elif device is None:
            sums = _by_panels(everything, shift_D)
        else:
            sums = _on_device(everything, shift_D, device)
        sums = _Sums(int(process.total(np.array(sums.rows))), *map(process.total, sums[1:]))
        if sums.rows < 2:
            raise NumericsError(f"pca: needs at least 2 images; got {sums.rows}")
        return _centred(sums, shift_D)


def _mean(rows_BD: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows_BD.mean(axis=0, dtype=np.float64), np.float32)


def _by_blocks(blocks: Iterable[NDArray[np.floating]], shift_D: NDArray[np.float32]) -> _Sums:
    """A block a thread, float64."""
    size = len(shift_D)
    count, sum_D, products_DD = 0, np.zeros(size), np.zeros((size, size))

    def sums(block_BD: NDArray[np.floating]) -> _Sums:
        shifted_BD = np.subtract(block_BD, shift_D, dtype=np.float64)
        return _Sums(len(shifted_BD), shifted_BD.sum(axis=0), shifted_BD.T @ shifted_BD)

    for rows, block_sum_D, block_products_DD in in_order(sums, blocks):
        count += rows
        sum_D += block_sum_D
        products_DD += block_products_DD
    return _Sums(count, sum_D, products_DD)


def _by_panels(blocks: Iterable[NDArray[np.floating]], shift_D: NDArray[np.float32]) -> _Sums:
    """One block at a time while the next is read; the lower triangle in panels of rows, a thread each."""
    size = len(shift_D)
    count, sum_D, products_DD = 0, np.zeros(size), np.zeros((size, size))
    shifted_BD = np.empty((0, size), np.float32)
    panels = list(_panels(size))[::-1]  # the longest first

    def add(panel: slice) -> None:
        rows_BP = shifted_BD[:count_B, panel]
        sum_D[panel] += rows_BP.sum(axis=0, dtype=np.float64)
        products_DD[panel, : panel.stop] += rows_BP.T @ shifted_BD[:count_B, : panel.stop]

    for block_BD in ahead(blocks):
        count_B = len(block_BD)
        if count_B > len(shifted_BD):
            shifted_BD = np.empty((count_B, size), np.float32)
        np.subtract(block_BD, shift_D, out=shifted_BD[:count_B])
        count += count_B
        for _ in in_order(add, panels):
            pass
    for panel in panels:
        products_DD[: panel.start, panel] = products_DD[panel, : panel.start].T
    return _Sums(count, sum_D, products_DD)


def _on_device(blocks: Iterable[NDArray[np.floating]], shift_D: NDArray[np.float32], device: str) -> _Sums:
    """As `_by_panels`, by torch: float32 products on the device (torch's default, no TF32), added up in float64."""
    import torch

    size = len(shift_D)
    shift = torch.from_numpy(shift_D).to(device)
    count, total = 0, torch.zeros(size, dtype=torch.float64, device=device)
    products = torch.zeros((size, size), dtype=torch.float64, device=device)
    for block_BD in ahead(blocks):
        shifted = torch.tensor(block_BD).to(device) - shift
        count += len(shifted)
        total += shifted.sum(dim=0, dtype=torch.float64)
        products += shifted.T @ shifted
    return _Sums(count, total.cpu().numpy(), products.cpu().numpy())


def _centred(sums: _Sums, shift_D: NDArray[np.float32]) -> Moments:
    """In place of the products, a panel at a time: a second D x D matrix would be the largest thing in memory."""
    count, sum_D, covariance_DD = sums
    for panel in _panels(len(sum_D)):
        covariance_DD[panel] -= np.outer(sum_D[panel], sum_D) / count
    covariance_DD /= count - 1
    return Moments(count, shift_D + sum_D / count, covariance_DD)


def _panels(size: int) -> Iterator[slice]:
    for start in range(0, size, _PANEL):
        yield slice(start, min(start + _PANEL, size))
