"""MNIST from its IDX files, raw or gzipped, at ROOT/MNIST/raw (torchvision's layout) or directly at ROOT.

Files are read where they lie, also the gzipped ones. Only when one is missing does torchvision download the set, into
ROOT/MNIST/raw. Nothing is ever written outside ROOT.
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from deepcluster.errors import DataError, nearest

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 8
CLASSES = 10


def read_mnist(root: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Images uint8 [N, 1, H, W] (28x28), targets int64 [N], class names; split is "train" or "test"."""
    if split not in FILES:
        raise DataError(f"mnist has no split {split!r}: expected train or test{nearest(split, FILES)}")
    images_file, labels_file = _locate(root, split)
    images_NHW = read_idx(images_file, dimensions=3)
    targets_N = read_idx(labels_file, dimensions=1).astype(np.int64)
    if len(images_NHW) != len(targets_N):
        raise DataError(f"{images_file}: {len(images_NHW)} images, but {labels_file} holds {len(targets_N)} labels")
    if images_NHW.size == 0:
        raise DataError(f"{images_file}: holds no images")
    if targets_N.max() >= CLASSES:
        raise DataError(f"{labels_file}: labels must be 0 to 9; got {targets_N.max()}")
    return images_NHW[:, None], targets_N, [str(digit) for digit in range(CLASSES)]


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """The uint8 array in an IDX file (gzipped if the name ends in .gz); DataError unless it is exactly as it says."""
    try:
        with _open(path) as stream:
            zeros, kind, found = struct.unpack(">HBB", stream.read(4))
            if (zeros, kind, found) != (0, UNSIGNED_BYTE, dimensions):
                raise DataError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            body = stream.read()
    except (OSError, EOFError, zlib.error, struct.error) as problem:
        raise DataError(f"{path}: cannot be read ({problem}); delete it and fetch it again") from problem
    expected = int(np.prod(shape, dtype=object))
    if len(body) != expected:
        remedy = "delete it and fetch it again"
        raise DataError(f"{path}: damaged, its header promises {expected} bytes and {len(body)} follow; {remedy}")
    return np.frombuffer(body, np.uint8).reshape(shape).copy()  # frombuffer alone would be read-only


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _find(root: Path, name: str) -> Path | None:
    raw = root / "MNIST" / "raw"
    places = (raw / name, raw / f"{name}.gz", root / name, root / f"{name}.gz")
    return next((place for place in places if place.is_file()), None)


def _locate(root: Path, split: str) -> tuple[Path, Path]:
    """The image and label file of a split, downloaded if one of them is missing."""
    names = FILES[split]
    cause: Exception | None = None
    if any(_find(root, name) is None for name in names):
        try:
            _download(root)
        except Exception as problem:
            cause = problem
    images_file, labels_file = _find(root, names[0]), _find(root, names[1])
    if images_file is None or labels_file is None:
        raise DataError(
            f"mnist is not in {root} and could not be downloaded ({_first_line(cause)}): put {names[0]}.gz and "
            f"{names[1]}.gz into {root / 'MNIST' / 'raw'}, or allow network access"
        ) from cause
    return images_file, labels_file


def _download(root: Path) -> None:
    """Let torchvision fetch all four files into ROOT/MNIST/raw and check their MD5."""
    raw = root / "MNIST" / "raw"
    if not raw.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{raw} is a link that leads out of {root}")
    from torchvision.datasets import MNIST  # type: ignore[import-untyped, unused-ignore]

    MNIST(root, download=True)


def _first_line(problem: Exception | None) -> str:
    lines = str(problem).strip().splitlines() if problem else []
    return lines[0].rstrip(":") if lines else type(problem).__name__ if problem else "nothing arrived"
