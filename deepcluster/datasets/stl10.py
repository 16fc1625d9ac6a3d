"""STL-10 from its binary files at ROOT/stl10_binary (torchvision's layout): 96x96 in colour.

NAME_X.bin holds uint8 images without a header, 27,648 bytes each: red, green, blue planes, each column by column.
NAME_y.bin holds a byte an image, 1 to 10. Where a file is missing, ROOT/stl10_binary.tar.gz is unpacked, after a
download (2.6 GB) if it is not there or not the right one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.fetch import FETCH_AGAIN, Archive, check_split, ensure_unpacked, reason
from deepcluster.errors import DataError
from deepcluster.memory import refuse_too_large

FOLDER = "stl10_binary"
# The images of each split and, where all of them have one, their labels.
FILES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "train": (("train_X.bin",), "train_y.bin"),
    "test": (("test_X.bin",), "test_y.bin"),
    "unlabeled": (("unlabeled_X.bin",), None),
    "train+unlabeled": (("train_X.bin", "unlabeled_X.bin"), None),
}
URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
MD5 = "91f7769df0f17e558f3565bffb0c7dfb"
SIDE = 96
# As in class_names.txt, which need not be there.
CLASS_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def read_stl10(root: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None, list[str] | None]:
    """Images uint8 [N, 3, 96, 96], targets int64 [N], class names; split is one of FILES.

    Targets and names are None for "unlabeled" and "train+unlabeled": of the latter only the first 5,000 of 105,000 have
    a label, and scores of so few would be taken for those of all. Images of one file are mapped, not read: read-only.
    """
    check_split("stl10", split, FILES)
    images_files, labels_file = FILES[split]
    gives = tuple(f"{FOLDER}/{file}" for file in (*images_files, *([labels_file] if labels_file else [])))
    ensure_unpacked("stl10", root, root, [Archive(URL, MD5, gives)])
    parts = [_images(root / FOLDER / file) for file in images_files]
    images_NCHW = parts[0] if len(parts) == 1 else _joined(parts, split)
    if labels_file is None:
        return images_NCHW, None, None
    return images_NCHW, _targets(root / FOLDER / labels_file, root / gives[0], len(images_NCHW)), list(CLASS_NAMES)


def _images(path: Path) -> npt.NDArray[np.uint8]:
    with _readable(path):
        size, each = path.stat().st_size, 3 * SIDE * SIDE
        if size == 0:
            raise DataError(f"{path}: holds no images")
        if size % each:
            raise DataError(f"{path}: damaged, {size} bytes are no multiple of {each}, an image's; {FETCH_AGAIN}")
        columns_NCWH = np.memmap(path, np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE)
    return np.asarray(columns_NCWH.transpose(0, 1, 3, 2))


def _joined(parts: Sequence[npt.NDArray[np.uint8]], split: str) -> npt.NDArray[np.uint8]:
    """The parts as one array in memory; ResourceError if there is not so much."""
    what = f"data.split {split}: {sum(map(len, parts)):,} images"
    refuse_too_large(sum(part.nbytes for part in parts), what, "data.split unlabeled needs none, being one file")
    return np.concatenate(parts)


def _targets(path: Path, images_file: Path, count: int) -> npt.NDArray[np.int64]:
    with _readable(path):
        labels_N = np.fromfile(path, np.uint8)
    if len(labels_N) != count:
        raise DataError(f"{images_file}: {count} images, but {path} holds {len(labels_N)} labels")
    wrong = labels_N[(labels_N < 1) | (labels_N > len(CLASS_NAMES))]
    if len(wrong):
        raise DataError(f"{path}: labels must be 1 to {len(CLASS_NAMES)}; got {wrong[0]}")
    return labels_N.astype(np.int64) - 1


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({reason(problem)})") from problem
