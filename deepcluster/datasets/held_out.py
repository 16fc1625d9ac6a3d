"""Images that nothing is trained on: a data set's own test split, or the one that `data.test_split` names."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.folder import WHOLE_FOLDER, split_folder
from deepcluster.datasets.load import Dataset
from deepcluster.errors import DataError
from deepcluster.params.sections import DataName

NONE = "none"
NAMED = 3


def own_test_split(name: DataName) -> str | None:
    """The split that the data set's makers keep for testing, if it has labels; tinyimagenet's `test` has none."""
    match name:
        case "digits" | "folder":
            return None
        case "tinyimagenet":
            return "val"
        case "mnist" | "fashionmnist" | "kmnist" | "usps" | "cifar10" | "stl10" | "gtsrb":
            return "test"
        case _:
            assert_never(name)


def test_split_of(
    name: DataName,
    *,
    root: Path,
    split: str,
    test_split: str | None,
    follow_links: bool = False,  # noqa: PT028 - this is no test
) -> str | None:
    """The split to hold out, or None. `test_split`: its name; "none"; None for the data set's own beside `train`.

    Touches no file but the folder of images itself. DataError where the named one is, or lies in, what is trained on.
    """
    if test_split == NONE:
        return None
    if test_split is None:
        return own_test_split(name) if split == "train" else None
    if name == "digits":
        raise DataError(f"data.test_split: digits has no split beside its 1,797 images; got {test_split!r}")
    if set(split.split("+")) & set(test_split.split("+")):
        raise DataError(f"data.test_split: {test_split!r} has images of data.split {split!r}, which is trained on")
    if name == "folder" and test_split in WHOLE_FOLDER and not (test_split and (root / test_split).is_dir()):
        raise DataError(f"data.test_split: must be a subfolder of {root}; got {test_split!r}")
    if name == "folder" and split_folder(root, split, follow_links=follow_links) == root:
        raise DataError(
            f"data.test_split: data.split {split!r} reads the whole of {root}, and so trains on {test_split!r} too; "
            "lay the training images into a subfolder and name that"
        )
    return test_split


def aligned(test: Dataset, train: Dataset) -> npt.NDArray[np.int64] | None:
    """The test images' targets as numbers of the training images' classes; None where those have no targets.

    DataError if the test images have no targets but the training images do, another shape, or classes of their own.
    """
    if test.images_NCHW.shape[1:] != train.images_NCHW.shape[1:]:
        shapes = " and ".join("x".join(map(str, one.images_NCHW.shape[1:])) for one in (train, test))
        raise DataError(f"data.test_split: training and test images differ in shape, {shapes}; set data.image_size")
    if train.class_names is None:
        return None
    if test.targets_N is None or test.class_names is None:
        raise DataError(
            "data.test_split: its images have no true labels (two or more subfolders, one a class), and the training "
            "images do"
        )
    return _renumbered(test.targets_N, test.class_names, train.class_names)


def _renumbered(targets_N: npt.NDArray[np.int64], names: Sequence[str], known: Sequence[str]) -> npt.NDArray[np.int64]:
    if list(names) == list(known):
        return targets_N
    if unknown := [name for name in names if name not in set(known)]:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise DataError(
            f"data.test_split: has classes that the training images do not have: {', '.join(unknown[:NAMED])}{more}"
        )
    number = {name: index for index, name in enumerate(known)}
    return np.array([number[name] for name in names], np.int64)[targets_N]
