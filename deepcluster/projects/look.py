"""A look at a folder of images: how many, how large, grey or coloured, readable or not. Decodes a sample only."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from deepcluster.datasets.decoding import FORMATS, decode_files, strict_pillow
from deepcluster.datasets.folder import EXTENSIONS, list_images, split_folder
from deepcluster.errors import DataError

SAMPLE = 256
SMALL = 32  # side to which the sample is decoded
GREY_LEVELS = 8
SHOWN = 5


@dataclass(frozen=True)
class Look:
    """What was seen of the images below `root`.

    split: what reads them, as `data.split`. count: images listed. empty: files of 0 bytes among them.
    refused: files that are never opened (links that lead out, names that are not UTF-8).
    looked: how many were decoded. unreadable: those of them that failed, with the reason.
    sides: the shorter side of each of the others, in pixels. grey: none of them has colour.
    classes: subfolders that count as classes; none if unlabelled. follow_links: as asked for.
    """

    root: Path
    split: str
    count: int
    empty: int
    refused: int
    looked: int
    unreadable: dict[str, str]
    sides: tuple[int, ...]
    grey: bool
    classes: tuple[str, ...]
    follow_links: bool = False

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return median_low(self.sides)


def look_at(
    root: Path,
    *,
    sample: int = SAMPLE,
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Look:
    """Look at the images of a folder by the rules of `datasets.folder`, at most `sample` of them, evenly spaced.

    ROOT/train is taken where there is one, else all of ROOT. DataError: no folder, no images, none that can be read.
    """
    split = "train" if (root / "train").is_dir() else "all"
    base = split_folder(root, split, follow_links=follow_links)
    listed, refused = list_images(root, base, follow_links=follow_links)
    if not listed:
        found = f"holds no images ({' '.join(EXTENSIONS)})"
        raise DataError(f"{base}: {found if not refused else f'none of its images may be read: {_some(refused)}'}")
    drawn = [listed[index] for index in np.linspace(0, len(listed) - 1, min(sample, len(listed))).astype(int)]
    with strict_pillow():
        images_NCHW, unreadable = decode_files(root, drawn, side=SMALL, channels=3, crop=False, progress=progress)
        readable = [index for index, name in enumerate(drawn) if name not in unreadable]
        sizes = [_size(root / drawn[index]) for index in readable]
    if not readable:
        raise DataError(f"{base}: none of the {len(drawn)} images looked at can be read: {_some(unreadable)}")
    return Look(
        root=root,
        split=split,
        count=len(listed),
        empty=sum(_is_empty(root / name) for name in listed),
        refused=len(refused),
        looked=len(drawn),
        unreadable=unreadable,
        sides=tuple(map(min, sizes)),
        grey=_are_grey(images_NCHW[readable]),
        classes=classes_of(listed, f"{split}/" if base != root else ""),
        follow_links=follow_links,
    )


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image that can be read; of one on its side, height and width."""
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        return image.size


def common_side(root: Path, names: Sequence[str]) -> int:
    """The shorter side of the first image whose header can be read. DataError if there is none."""
    with strict_pillow():
        for name in names:
            with suppress(Exception):  # Pillow's readers raise nearly every kind of error on damaged files
                return min(_size(root / name))
    raise DataError(f"{root}: none of {len(names)} images looked at can be read")


def _are_grey(images_NCHW: NDArray[np.uint8]) -> bool:
    """Whether the channels of every pixel agree, but for the few levels that JPEG rounds colours by."""
    return int(np.ptp(images_NCHW.astype(np.int16), axis=1).max()) <= GREY_LEVELS


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def classes_of(listed: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Subfolders that count as classes, by the rule of `datasets.folder`."""
    parts = [name.removeprefix(prefix).split("/") for name in listed]
    counts = Counter(part[0] for part in parts)
    return tuple(sorted(counts)) if len(counts) > 1 and all(len(part) > 1 for part in parts) else ()


def _some(reasons: dict[str, str]) -> str:
    shown = [f"{name}: {reason}" for name, reason in sorted(reasons.items())[:SHOWN]]
    return "; ".join(shown) + (f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else "")
