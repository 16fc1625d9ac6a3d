"""MNIST and its kin (Fashion-MNIST, Kuzushiji-MNIST) from their IDX files, raw or gzipped.

They lie at ROOT/MNIST/raw, ROOT/FashionMNIST/raw, ROOT/KMNIST/raw (torchvision's layout). MNIST's may also lie
directly at ROOT; the others' may not, since their files have the same names. Files are read where they lie, also the
gzipped ones. Those of the split that are missing are downloaded by torchvision. Nothing is ever written outside ROOT.
"""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.fetch import FETCH_AGAIN, check_split, download_file, ensure, keep_inside, reason
from deepcluster.errors import DataError
from deepcluster.memory import refuse_too_large

MnistName = Literal["mnist", "fashionmnist", "kmnist"]
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FOLDERS: dict[MnistName, str] = {"mnist": "MNIST", "fashionmnist": "FashionMNIST", "kmnist": "KMNIST"}
CLASS_NAMES: dict[MnistName, tuple[str, ...]] = {
    "mnist": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "fashionmnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}  # fmt: skip
UNSIGNED_BYTE = 8
CLASSES = 10
DEFLATE = 1032  # a gzipped byte holds so many at most (zlib's documentation)


def read_mnist(
    root: Path, split: str, name: MnistName = "mnist"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Images uint8 [N, 1, H, W] (28x28), targets int64 [N], class names; split is "train" or "test"."""
    check_split(name, split, FILES)
    images_file, labels_file = _locate(root, split, name)
    images_NHW = read_idx(images_file, dimensions=3)
    targets_N = read_idx(labels_file, dimensions=1).astype(np.int64)
    if len(images_NHW) != len(targets_N):
        raise DataError(f"{images_file}: {len(images_NHW)} images, but {labels_file} holds {len(targets_N)} labels")
    if images_NHW.size == 0:
        raise DataError(f"{images_file}: holds no images")
    if (sides := images_NHW.shape[1:]) != sides[:1] * 2:
        raise DataError(f"{images_file}: images must be square; got {sides[0]}x{sides[1]} pixels")
    if targets_N.max() >= CLASSES:
        raise DataError(f"{labels_file}: labels must be 0 to 9; got {targets_N.max()}")
    return images_NHW[:, None], targets_N, list(CLASS_NAMES[name])


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """The uint8 array in an IDX file (gzipped if the name ends in .gz); DataError unless it is exactly as it says.

    Never unpacks more than the header promises, nor what would not fit into memory (ResourceError).
    """
    try:
        with _open(path) as stream:
            zeros, kind, found = struct.unpack(">HBB", stream.read(4))
            if (zeros, kind, found) != (0, UNSIGNED_BYTE, dimensions):
                raise DataError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            expected = int(np.prod(shape, dtype=object))
            body = _body(stream, path, expected)
    except (OSError, EOFError, zlib.error, struct.error) as problem:
        raise DataError(f"{path}: cannot be read ({problem}); {FETCH_AGAIN}") from problem
    if len(body) != expected:
        follow = "more" if len(body) > expected else len(body)
        raise DataError(f"{path}: damaged, its header promises {expected} bytes and {follow} follow; {FETCH_AGAIN}")
    if not expected:  # of any other sizes, beyond what an array may have
        return np.empty([0] * dimensions, np.uint8)
    return np.frombuffer(body, np.uint8).reshape(shape).copy()  # frombuffer alone would be read-only


def _body(stream: IO[bytes], path: Path, expected: int) -> bytes:
    """The bytes after the header: as many as are expected, or one more, or those that there are."""
    possible = path.stat().st_size * (DEFLATE if path.suffix == ".gz" else 1)
    needed = min(expected, possible)
    refuse_too_large(2 * needed, f"{path}: {needed:,} bytes of pixels or labels", "this is no file of MNIST or its kin")
    return stream.read(needed + 1)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _find(root: Path, name: MnistName, file: str) -> Path | None:
    raw = root / FOLDERS[name] / "raw"
    places = [raw / file, raw / f"{file}.gz"]
    if name == "mnist":
        places += [root / file, root / f"{file}.gz"]
    return next((place for place in places if place.is_file()), None)


def _locate(root: Path, split: str, name: MnistName) -> tuple[Path, Path]:
    """The image and label file of a split, downloaded if one of them is missing."""

    def found() -> list[Path]:
        return [place for file in FILES[split] if (place := _find(root, name, file))]

    first, second = FILES[split]
    remedy = f"put {first}.gz and {second}.gz into {root / FOLDERS[name] / 'raw'}"
    ensure(
        name,
        root,
        present=lambda: len(found()) == 2,
        download=lambda: _download(root, split, name),
        remedy=lambda: remedy,
    )
    images_file, labels_file = found()
    return images_file, labels_file


def _download(root: Path, split: str, name: MnistName) -> None:
    """Let torchvision fetch the split's missing files into ROOT/CLASS/raw, gzipped, and check their MD5."""
    raw = root / FOLDERS[name] / "raw"
    keep_inside(root, raw)
    from torchvision import datasets

    kind: type[datasets.MNIST]
    match name:
        case "mnist":
            kind = datasets.MNIST
        case "fashionmnist":
            kind = datasets.FashionMNIST
        case "kmnist":
            kind = datasets.KMNIST
    checksums = dict(kind.resources)
    for file in FILES[split]:
        if _find(root, name, file) is None:
            _from_mirrors(kind.mirrors, raw / f"{file}.gz", checksums[f"{file}.gz"])


def _from_mirrors(mirrors: Sequence[str], target: Path, md5: str) -> None:
    """Download a file from the first mirror that has the right one; RuntimeError if none has."""
    failures = []
    for mirror in mirrors:
        try:
            return download_file(f"{mirror}{target.name}", target, md5)
        except DataError:
            raise
        except Exception as problem:
            failures.append(f"tried {mirror}, got {reason(problem)}")
    raise RuntimeError(f"Error downloading {target.name}: {'; '.join(failures)}")
