"""CIFAR-10 from its Python batches at ROOT/cifar-10-batches-py (torchvision's layout), unpickled safely.

The batches are pickles of Python 2: a dict with `data`, uint8 [n, 3072] (red, green, blue planes of 32x32, row by
row), and `labels`, n numbers from 0 to 9. A pickle can call anything that it names, so only the names for arrays are
known here, and they mean classes of ours. It can also ask for a place in memory by a number of any size, which is
refused as well. Where a batch is missing, ROOT/cifar-10-python.tar.gz is unpacked, after a
download if it is not there or not the right one.
"""

import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.fetch import FETCH_AGAIN, Archive, check_split, ensure_unpacked, reason
from deepcluster.errors import DataError

FOLDER = "cifar-10-batches-py"
BATCHES = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    "test": ("test_batch",),
}
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
SIDE = 32
# As in batches.meta, which need not be there.
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_cifar10(root: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Images uint8 [N, 3, 32, 32], targets int64 [N], class names; split is "train" or "test"."""
    check_split("cifar10", split, BATCHES)
    gives = tuple(f"{FOLDER}/{batch}" for batch in BATCHES[split])
    ensure_unpacked("cifar10", root, root, [Archive(URL, MD5, gives)])
    batches = [_read_batch(root / part) for part in gives]
    images_ND = np.concatenate([images for images, _ in batches])
    targets_N = np.concatenate([targets for _, targets in batches])
    return images_ND.reshape(-1, 3, SIDE, SIDE), targets_N, list(CLASS_NAMES)


class _Bytes:
    """Stands in for numpy.dtype: one unsigned byte a number, the only kind in a batch."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", "|u1"):
            raise pickle.UnpicklingError(f"numbers of type {code!r}, expected unsigned bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which unsigned bytes have none of."""


class _Array:
    """Stands in for numpy.ndarray, whose own reading of a state trusts it."""

    values: npt.NDArray[np.uint8]

    def __init__(self, *_: object) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Bytes):
            raise pickle.UnpicklingError("an array without its type")
        raw = content.encode("latin1") if isinstance(content, str) else content
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The few names that numpy 1 and 2 pickle arrays with; each gives something of ours that is harmless."""
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") | ("numpy", "ndarray"):
                return _Array
            case ("numpy", "dtype"):
                return _Bytes
            case ("_codecs", "encode"):
                return _encode
            case _:
                raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch of images")


def _encode(text: str, encoding: str) -> bytes:
    """How protocols below 3 hold bytes; no codec other than this one is let in."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} has no place in a batch of images")
    return text.encode("latin1")


def _unpickle(path: Path) -> Any:
    """What a batch holds; text of Python 2 comes as str, byte for byte."""
    try:
        with path.open("rb") as file:
            _refuse_far_places(file, path.stat().st_size)
            return _ArraysOnly(file, encoding="latin1").load()
    except Exception as problem:  # a damaged pickle can raise nearly everything
        raise DataError(f"{path}: cannot be read ({reason(problem)}); {FETCH_AGAIN}") from problem


def _refuse_far_places(file: IO[bytes], size: int) -> None:
    """UnpicklingError for a pickle that numbers what it remembers beyond its own length, and has memory for all of it.

    Leaves the file at its start.
    """
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > size:
            raise pickle.UnpicklingError(f"remembers something as number {argument:,}")
    file.seek(0)


def _read_batch(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch = _unpickle(path)
    named = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    data, labels, width = named.get("data"), named.get("labels"), 3 * SIDE * SIDE
    if not (isinstance(data, _Array) and data.values.shape[1:] == (width,)):
        raise DataError(f"{path}: not a batch of CIFAR-10, its `data` must be uint8 [n, {width}]")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise DataError(f"{path}: not a batch of CIFAR-10, its `labels` must be a list of whole numbers")
    if len(data.values) != len(labels):
        raise DataError(f"{path}: {len(data.values)} images, but {len(labels)} labels")
    if not labels:
        raise DataError(f"{path}: holds no images")
    if wrong := [label for label in labels if not 0 <= label < len(CLASS_NAMES)]:
        raise DataError(f"{path}: labels must be 0 to {len(CLASS_NAMES) - 1}; got {wrong[0]}")
    return data.values, np.array(labels, np.int64)


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key
