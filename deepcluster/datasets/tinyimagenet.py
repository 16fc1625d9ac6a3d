"""Tiny ImageNet: 64x64 JPEG images in 200 classes, at ROOT/tiny-imagenet-200, as its archive unpacks.

wnids.txt (the classes), words.txt (their names, if there), train/WNID/images/*.JPEG, val/images/*.JPEG with
val/val_annotations.txt, test/images/*.JPEG without labels. Where the folder is missing, ROOT/tiny-imagenet-200.zip is
unpacked, after a download if it is not there or not the right one.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.fetch import FETCH_AGAIN, Archive, check_split, ensure_unpacked, lies_there
from deepcluster.datasets.folder import FolderImages
from deepcluster.datasets.trees import check_listed, decode_tree, labels_by_file, list_tree
from deepcluster.errors import DataError

SPLITS = ("train", "val", "test")
FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = Archive(URL, "90528d7ca1a48142e341f4ef8d21d0de", (FOLDER,), folders=True)
SIDE = 64


def read_tinyimagenet(
    root: Path,
    split: str,
    *,
    image_size: int | None = None,
    grayscale: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FolderImages:
    """Images uint8 [N, C, S, S] in the order of their paths; split is "train", "val" or "test".

    Classes are numbered in the order of their sorted ids (WordNet's). "test" has neither targets nor names. The largest
    centre square is scaled to S = image_size (None: 64).
    """
    check_split("tinyimagenet", split, SPLITS)
    ensure_unpacked("tinyimagenet", root, root, [ARCHIVE])
    base = root / FOLDER
    listed = list_tree(root, base / split)
    targets_N, names = (None, None) if split == "test" else _targets(root, base, split, listed)
    images_NCHW = decode_tree(
        root, listed, side=image_size or SIDE, channels=1 if grayscale else 3, crop=True, progress=progress
    )
    return FolderImages(images_NCHW, listed, targets_N, names, [])


def _targets(root: Path, base: Path, split: str, listed: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The target of each listed file, int64 [N], and the names of the classes."""
    wnids = sorted(_text(base / "wnids.txt").split())
    if twice := [wnid for wnid, following in itertools.pairwise(wnids) if wnid == following]:
        raise DataError(f"{base / 'wnids.txt'}: lists {twice[0]} twice; {FETCH_AGAIN}")
    number = {wnid: index for index, wnid in enumerate(wnids)}
    if split == "val":
        table = base / "val" / "val_annotations.txt"
        classes = _annotations(table)
        check_listed(root, listed, classes, table.name)
        labels = [classes[root / sample_id] for sample_id in listed]
    else:
        table = base / "train"
        labels = [(root / sample_id).relative_to(table).parts[0] for sample_id in listed]
        if lacking := sorted(set(wnids) - set(labels)):
            raise DataError(f"{table / lacking[0]}: holds no images, but {base / 'wnids.txt'} lists it")
    if unknown := sorted(set(labels) - set(wnids)):
        raise DataError(f"{table}: class {unknown[0]!r} is not in {base / 'wnids.txt'}")
    return np.array([number[label] for label in labels], np.int64), _names(base, wnids)


def _annotations(table: Path) -> dict[Path, str]:
    """The class of each image of val: the first two of six fields a line, the others are a box around the object."""
    rows = [line.split("\t") for line in _text(table).splitlines() if line]
    if short := [number for number, row in enumerate(rows, 1) if len(row) < 2]:
        raise DataError(f"{table}: line {short[0]}: expected a file name, a tab and a class; {FETCH_AGAIN}")
    return labels_by_file(table, [(table.parent / "images" / row[0], row[1]) for row in rows])


def _names(base: Path, wnids: Sequence[str]) -> list[str]:
    """The classes' names by words.txt; the ids themselves for what it lacks, and for all if it is not there."""
    words = base / "words.txt"
    lines = _text(words).splitlines() if words.exists() else []
    known = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [known.get(wnid, wnid) for wnid in wnids]


def _text(path: Path) -> str:
    lies_there(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: not found; delete {path.parent} and fetch it again") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: cannot be read ({problem}); {FETCH_AGAIN}") from problem
