"""Where the images of a run lie while stages read them.

Training reads images in random order, thousands of times, so they must lie where a row costs a copy: in memory if they
take a modest share of what is free, else in one flat file of bytes that is mapped. Who reads them once, in order, needs
neither: they are read by chunk, ahead of who asks. All give the same bytes, wherever the store lies.
Shapes: N images, B images of a batch, C channels, H height, W width.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, environment, layout
from deepcluster.distributed import ALONE, Process, processes_here
from deepcluster.errors import UserError
from deepcluster.memory import available_memory

MEMORY_SHARE = 0.5
BLOCK_BYTES, WORKERS = 16 << 20, 2  # read at once; threads that read ahead


def open_rows(images: artifacts.Store, process: Process = ALONE) -> NDArray[np.uint8]:
    """The images of a store as uint8 [N, C, H, W] for reading: an array in memory, or one mapped from a file.

    In memory when they take at most DEEPCLUSTER_MEMORY_SHARE (0 to 1, by default half) of the memory available now,
    of which each of several processes on a machine takes its part; all processes do the same.
    Otherwise the store is decoded once into `data/.images-KEY.u8`, which later stages use again. KEY stands for the
    store's digest and its files' times, so after `prepare` has run the file is made anew and the old one removed.
    A file that is not as it was written is made anew too: its checksum is compared whenever it is opened.
    It is a cache: delete it at will.
    """
    if all(process.gathered(_fit(images))):
        return images.read("images")
    if process.first:
        _flat_file(images)
    process.wait()
    return np.asarray(np.memmap(_flat_file(images), np.uint8, mode="r", shape=images.shape("images")))


def rows_in_order(images: artifacts.Store, process: Process = ALONE) -> "NDArray[np.uint8] | RowsInOrder":
    """The images of a store for one pass in order: in memory where `open_rows` has them there, else read by chunk.

    One of several processes, which needs a part of them only, reads by chunk.
    """
    return images.read("images") if process.count == 1 and _fit(images) else RowsInOrder(images)


class RowsInOrder:
    """The images of a store as uint8 [N, C, H, W], for slices of ascending rows: no file, and a few blocks in memory.

    Two threads read the blocks to come. A slice that does not begin where the last one ended starts the reading anew.
    """

    def __init__(self, images: artifacts.Store) -> None:
        self._images = images
        self._blocks: Iterator[NDArray[np.uint8]] = iter(())
        self._held = np.empty((0, *self.shape[1:]), np.uint8)
        self._next = -1

    @property
    def shape(self) -> tuple[int, ...]:
        return self._images.shape("images")

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"rows must be taken in steps of 1; got {rows}")
        if start != self._next:
            self._begin(start)
        pieces, wanted = [self._held[:0]], max(0, stop - start)
        while wanted > 0:
            if not len(self._held):
                self._held = next(self._blocks)
            taken, self._held = self._held[:wanted], self._held[wanted:]
            pieces.append(taken)
            wanted -= len(taken)
        self._next = max(start, stop)
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _begin(self, start: int) -> None:
        rows = max(1, BLOCK_BYTES // math.prod(self.shape[1:]))
        self._blocks = self._images.blocks("images", rows, first=start, workers=WORKERS)
        first = next(self._blocks, self._held[:0])
        skipped = start - self._images.block_start("images", start)
        self._held = first[skipped:]


def _fit(images: artifacts.Store) -> bool:
    return math.prod(images.shape("images")) <= memory_share() * available_memory() / processes_here()


def memory_share() -> float:
    """DEEPCLUSTER_MEMORY_SHARE, a number in [0, 1]; UserError if it is something else."""
    return environment.number(
        "DEEPCLUSTER_MEMORY_SHARE", MEMORY_SHARE, lambda share: 0 <= share <= 1, "a number from 0 to 1"
    )


def _flat_file(images: artifacts.Store) -> Path:
    """The file of the images' bytes, row after row; written first, if it is not there."""
    target = layout.DATA / f".images-{_key(images)}.u8"
    if not artifacts.is_whole(target, math.prod(images.shape("images"))):
        for old in layout.DATA.glob(".images-*.u8"):
            old.unlink(missing_ok=True)
        try:
            artifacts.write_flat(target, images.blocks("images", _rows_at_once(images), workers=1))
        except OSError as error:
            raise UserError(
                f"{target}: cannot be written: {error.strerror}; free disk space, or raise DEEPCLUSTER_MEMORY_SHARE "
                f"(now {memory_share():g}) to hold the images in memory"
            ) from error
    return target


def _key(images: artifacts.Store) -> str:
    return hashlib.sha256(repr(images.version("images")).encode()).hexdigest()[:16]


def _rows_at_once(images: artifacts.Store) -> int:
    """Rows of about a hundred megabytes."""
    return max(1, (100 << 20) // math.prod(images.shape("images")[1:]))
