"""One entrance to every data set: name, place and split in; a `Dataset` of uint8 images out.

Shapes: N images, C channels (1 or 3), H and W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.cifar import read_cifar10
from deepcluster.datasets.digits import read_digits
from deepcluster.datasets.folder import FolderImages, read_folder
from deepcluster.datasets.gtsrb import read_gtsrb
from deepcluster.datasets.mnist import read_mnist
from deepcluster.datasets.resizing import grey, resized
from deepcluster.datasets.stl10 import read_stl10
from deepcluster.datasets.tinyimagenet import read_tinyimagenet
from deepcluster.datasets.usps import read_usps
from deepcluster.errors import DataError, nearest
from deepcluster.params.sections import DataName

DATA_NAMES: tuple[str, ...] = get_args(DataName)
SMALLEST_STD = 1 / 255  # one grey level: dividing constant images by it stays harmless

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order with what is known about them.

    images_NCHW: uint8, C is 1 or 3. sample_ids: the index as a string, or the path below the root with "/".
    targets_N: int64 true labels that index class_names; both None for unlabelled images.
    mean, std: per channel over all pixels, in units where 255 is 1; std is at least 1/255.
    skipped: "path: reason" of every file that was left out.
    """

    images_NCHW: npt.NDArray[np.uint8]
    sample_ids: list[str]
    targets_N: npt.NDArray[np.int64] | None
    class_names: list[str] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: list[str]


def load_dataset(
    name: str,
    *,
    root: Path,
    split: str,
    image_size: int | None,
    grayscale: bool,
    max_unreadable: float = 0.0,
    follow_links: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """The data set `name` (see `DataName`) as uint8 arrays, in an order that never changes.

    digits: needs no files; split "all" or "train", both all 1,797 images of 8x8.
    mnist, fashionmnist, kmnist, usps, cifar10, gtsrb: split "train" or "test". tinyimagenet: also "val"; its "test" has
    no labels. stl10: also "unlabeled" and "train+unlabeled", without targets. All of them lie below root as torchvision
    lays them out, and are downloaded if absent.
    folder: any folder of images; see `deepcluster.datasets.folder` for its rules.
    image_size: side of the square result; None keeps the native size, of gtsrb, which has none, 32.
    grayscale: one channel, ITU-R 601. max_unreadable: for folders only, elsewhere an unreadable file is an error.
    follow_links: for folders only, links out of them are read; elsewhere such a link is an error.
    progress(done, total) is called now and then. Raises DataError for anything the user can mend.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be >= 1 or None; got {image_size}")
    match name:
        case "gtsrb":
            return _listed(read_gtsrb(root, split, image_size=image_size, grayscale=grayscale, progress=progress))
        case "tinyimagenet":
            found = read_tinyimagenet(root, split, image_size=image_size, grayscale=grayscale, progress=progress)
            return _listed(found)
        case "folder":
            found = read_folder(
                root,
                split=split,
                image_size=image_size,
                grayscale=grayscale,
                max_unreadable=max_unreadable,
                follow_links=follow_links,
                progress=progress,
            )
            return _listed(found)
    images_NCHW, targets_N, class_names = _read_arrays(name, root, split)
    plain_NCHW = grey(images_NCHW) if grayscale else images_NCHW
    return _indexed(resized(plain_NCHW, image_size, progress), targets_N, class_names)


def _read_arrays(
    name: str, root: Path, split: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None, list[str] | None]:
    """The sets whose images lie in arrays, all of one size: images, targets, class names."""
    match name:
        case "digits":
            return read_digits(split)
        case "mnist" | "fashionmnist" | "kmnist":
            return read_mnist(root, split, name)
        case "usps":
            return read_usps(root, split)
        case "cifar10":
            return read_cifar10(root, split)
        case "stl10":
            return read_stl10(root, split)
        case _:
            known = ", ".join(DATA_NAMES)
            raise DataError(f"unknown data set {name!r}: expected one of {known}{nearest(name, DATA_NAMES)}")


def channel_statistics(images_NCHW: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 images with 255 as 1; std is at least 1/255.

    Counted as a histogram: exact, and no float copy of the images is made.
    """
    levels = np.arange(256) / 255
    counts_CL = _histogram(images_NCHW)
    total = counts_CL[0].sum()
    means = counts_CL @ levels / total
    variances = (counts_CL * (levels[None, :] - means[:, None]) ** 2).sum(axis=1) / total
    stds = np.maximum(np.sqrt(variances), SMALLEST_STD)
    return tuple(map(float, means)), tuple(map(float, stds))


def _histogram(images_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    number, channels = images_NCHW.shape[:2]
    step = max(1, 2**22 // max(1, images_NCHW[0, 0].size))
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, number, step):
        for channel in range(channels):
            counts[channel] += np.bincount(images_NCHW[start : start + step, channel].ravel(), minlength=256)
    return counts


def _indexed(
    images_NCHW: npt.NDArray[np.uint8], targets_N: npt.NDArray[np.int64] | None, names: list[str] | None
) -> Dataset:
    mean, std = channel_statistics(images_NCHW)
    sample_ids = [str(index) for index in range(len(images_NCHW))]
    return Dataset(images_NCHW, sample_ids, targets_N, names, mean, std, skipped=[])


def _listed(found: FolderImages) -> Dataset:
    mean, std = channel_statistics(found.images_NCHW)
    return Dataset(found.images_NCHW, found.sample_ids, found.targets_N, found.class_names, mean, std, found.skipped)
