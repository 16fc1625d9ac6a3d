"""USPS: handwritten digits, 16x16 grey, from its bz2 files of libsvm text, at ROOT/usps.bz2 and ROOT/usps.t.bz2.

A line is `label index:value ...`: label 1 to 10 (the digit plus one), index 1 to 256 in reading order, value -1 to 1.
An index that is left out has the value 0, as in every libsvm file. Torchvision downloads a file that is missing.
"""

import bz2
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.fetch import FETCH_AGAIN, check_split, download_file, ensure, keep_inside, lies_there
from deepcluster.errors import DataError

FILES = {"train": "usps.bz2", "test": "usps.t.bz2"}
SIDE = 16
CLASSES = 10
LARGEST = 128 << 20  # bytes of text; the files here hold at most a fifth of that, and bz2 could hide terabytes


def read_usps(root: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Images uint8 [N, 1, 16, 16], targets int64 [N], class names; split is "train" or "test".

    Values -1 to 1 become 0 to 255, rounded down, in float32: the same bytes as torchvision's.
    """
    check_split("usps", split, FILES)
    path = root / FILES[split]
    remedy = f"put {path.name} into {root}"
    ensure(
        "usps", root, present=lambda: lies_there(path), download=lambda: _download(root, split), remedy=lambda: remedy
    )
    lines = _lines(path)
    values_ND = np.zeros((len(lines), SIDE * SIDE), np.float32)
    targets_N = np.empty(len(lines), np.int64)
    for row, line in enumerate(lines):
        try:
            targets_N[row] = _parse(line, values_ND[row])
        except ValueError as problem:
            raise DataError(f"{path}: line {row + 1}: {problem}; {FETCH_AGAIN}") from problem
    images_ND = ((values_ND + 1) / 2 * 255).astype(np.uint8)
    return images_ND.reshape(-1, 1, SIDE, SIDE), targets_N, [str(digit) for digit in range(CLASSES)]


def _lines(path: Path) -> list[bytes]:
    try:
        with bz2.open(path) as stream:
            text = stream.read(LARGEST + 1)
    except (OSError, EOFError) as problem:
        raise DataError(f"{path}: cannot be read ({problem}); {FETCH_AGAIN}") from problem
    if len(text) > LARGEST:
        raise DataError(f"{path}: refused, as it unpacks to over {LARGEST:,} bytes; {FETCH_AGAIN}")
    lines = text.splitlines()
    if not lines:
        raise DataError(f"{path}: holds no images")
    return lines


def _parse(line: bytes, values_D: npt.NDArray[np.float32]) -> int:
    """Fill one image's values from its line; the target. ValueError for whatever is not as the format says."""
    label, *pairs = line.split() or [b""]
    if not label.isdigit() or not 1 <= int(label) <= CLASSES:
        raise ValueError(f"label must be 1 to {CLASSES}; got {label.decode(errors='replace')!r}")
    if not all(pair.count(b":") == 1 for pair in pairs):
        raise ValueError("expected index:value after the label")
    fields = np.array([pair.split(b":") for pair in pairs], np.bytes_).reshape(-1, 2)
    index, values = [int(text) for text in fields[:, 0]], fields[:, 1].astype(np.float32)  # int: of any size
    if index and (index[0] < 1 or index[-1] > values_D.size or any(b <= a for a, b in itertools.pairwise(index))):
        raise ValueError(f"indices must ascend from 1 to {values_D.size} at most")
    if not (np.abs(values) <= 1).all():
        raise ValueError("values must be -1 to 1")
    values_D[np.array(index, np.int64) - 1] = values
    return int(label) - 1


def _download(root: Path, split: str) -> None:
    """Let torchvision fetch the file and check its MD5."""
    keep_inside(root, root / FILES[split])
    from torchvision.datasets import USPS

    url, file, md5 = USPS.split_list[split]
    download_file(url, root / file, md5)
