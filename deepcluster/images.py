"""Where the images of a run lie while stages read them.

Training reads images in random order, thousands of times, so they must lie where a row costs a copy: in memory if they
take a modest share of what is free, else in one flat file of bytes that is mapped. Both give the same bytes.
Shapes: N images, B images of a batch, C channels, H height, W width.
"""

import hashlib
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.errors import UserError
from deepcluster.memory import available_memory

MEMORY_SHARE = 0.5


def open_rows(images: artifacts.Store) -> NDArray[np.uint8]:
    """The images of a store as uint8 [N, C, H, W] for reading: an array in memory, or one mapped from a file.

    In memory when they take at most DEEPCLUSTER_MEMORY_SHARE (0 to 1, by default half) of the memory available now.
    Otherwise the store is decoded once into `data/.images-KEY.u8`, which later stages use again. KEY stands for the
    store's digest and its files' times, so after `prepare` has run the file is made anew and the old one removed.
    A file that is not as it was written is made anew too: its checksum is compared whenever it is opened.
    It is a cache: delete it at will.
    """
    shape = images.shape("images")
    if math.prod(shape) <= memory_share() * available_memory():
        return images.read("images")
    return np.asarray(np.memmap(_flat_file(images), np.uint8, mode="r", shape=shape))


def memory_share() -> float:
    """DEEPCLUSTER_MEMORY_SHARE, a number in [0, 1]; UserError if it is something else."""
    text = os.environ.get("DEEPCLUSTER_MEMORY_SHARE") or str(MEMORY_SHARE)
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise UserError(f"DEEPCLUSTER_MEMORY_SHARE: must be a number from 0 to 1; got {text!r}")
    return share


def _flat_file(images: artifacts.Store) -> Path:
    """The file of the images' bytes, row after row; written first, if it is not there."""
    target = layout.DATA / f".images-{_key(images)}.u8"
    if not artifacts.is_whole(target, math.prod(images.shape("images"))):
        for old in layout.DATA.glob(".images-*.u8"):
            old.unlink(missing_ok=True)
        try:
            artifacts.write_flat(target, images.blocks("images", _rows_at_once(images)))
        except OSError as error:
            raise UserError(
                f"{target}: cannot be written: {error.strerror}; free disk space, or raise DEEPCLUSTER_MEMORY_SHARE "
                f"(now {memory_share():g}) to hold the images in memory"
            ) from error
    return target


def _key(images: artifacts.Store) -> str:
    """Sizes alone could agree by chance, hence the times as well."""
    files = [name for name in images.attributes["files"] if name.startswith("images/")]
    times = [(images.path / name).stat().st_mtime_ns for name in sorted(files)]
    return hashlib.sha256(repr((images.attributes["digest"], times)).encode()).hexdigest()[:16]


def _rows_at_once(images: artifacts.Store) -> int:
    """Rows of about a hundred megabytes."""
    return max(1, (100 << 20) // math.prod(images.shape("images")[1:]))
