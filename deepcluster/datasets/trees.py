"""Sets of image files that come with tables: the files must be those that the tables list, and all readable."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.decoding import decode_files, strict_pillow
from deepcluster.datasets.fetch import FETCH_AGAIN
from deepcluster.datasets.folder import list_images
from deepcluster.errors import DataError

Label = TypeVar("Label", int, str)


def list_tree(root: Path, folder: Path) -> list[str]:
    """Paths below root of all image files in folder, sorted by codepoint; DataError if there are none, or links."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    listed, refused = list_images(root, folder)
    if refused:
        sample_id, why = next(iter(sorted(refused.items())))
        raise DataError(f"{root / sample_id}: {why}")
    if not listed:
        raise DataError(f"{folder}: holds no images")
    return listed


def check_listed(root: Path, listed: Iterable[str], expected: Iterable[Path], table: str) -> None:
    """DataError unless the files there are those that are expected."""
    found, wanted = {root / sample_id for sample_id in listed}, set(expected)
    if lacking := sorted(wanted - found):
        raise DataError(f"{lacking[0]}: missing ({len(lacking)} of {len(wanted)} images in {table})")
    if surplus := sorted(found - wanted):
        raise DataError(f"{surplus[0]}: not in {table} ({len(surplus)} such files)")


def labels_by_file(table: Path, rows: Iterable[tuple[Path, Label]]) -> dict[Path, Label]:
    """A table's rows as a dict; DataError if it gives a file two labels, of which one would be lost."""
    labels: dict[Path, Label] = {}
    for path, label in rows:
        if labels.setdefault(path, label) != label:
            raise DataError(f"{table}: lists {path.name} as {labels[path]} and as {label}; {FETCH_AGAIN}")
    return labels


def decode_tree(
    root: Path,
    listed: list[str],
    *,
    side: int,
    channels: int,
    crop: bool,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Every listed image, uint8 [N, C, S, S]; DataError if one cannot be read: `max_unreadable` is for folders only."""
    with strict_pillow():
        images_NCHW, broken = decode_files(root, listed, side=side, channels=channels, crop=crop, progress=progress)
    if broken:
        sample_id, why = next(iter(sorted(broken.items())))
        others = f", like {len(broken) - 1} more" if len(broken) > 1 else ""
        raise DataError(f"{root / sample_id}: cannot be read ({why}){others}; {FETCH_AGAIN}")
    return images_NCHW
