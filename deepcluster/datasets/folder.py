"""Any folder of images as one uint8 array.

Which folder    ROOT/SPLIT if that is a folder. Otherwise splits "all", "train" and "" mean ROOT itself; any other
                split that has no folder is an error.
Which files     Names ending in one of EXTENSIONS (any case), at any depth, in the codepoint order of their paths.
                Names that begin with a dot are ignored. File links are followed inside ROOT only. Folder links are
                never followed: those that stay inside the folder being read are ignored, as their content is
                read where it lies; the others count as unreadable. With follow_links, links to files and folders
                elsewhere are followed, and the split may be a link: what they lead to is read under the link's name,
                a folder once, by the first link to it.
Targets         Two or more subfolders of which each has images, and no image outside of them: each is a class, and
                deeper files belong to the class of their first folder. Otherwise (flat; one subfolder only; images both
                at the top and in subfolders) everything is read and nothing has a target.
Size            The largest centre square, scaled to image_size (bilinear, antialiased when shrinking). With
                image_size None all images must be square and of one size, at most 256 pixels, which is kept.
Pixels          EXIF orientation applied; transparency laid on white; 16-bit grey scaled by 1/257 (65,535 becomes
                255); first frame of animations; RGB, or grey (ITU-R 601) if asked for.
Unreadable      Damaged, truncated, empty and disguised files, images over 179 million pixels, links that lead out of
                ROOT, names that are not UTF-8. An error if their share exceeds max_unreadable, else left out and
                listed.

Shapes: N images, C channels (1 or 3), S pixels a side.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.decoding import FORMATS, decode_files, strict_pillow
from deepcluster.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST_NATIVE = 256
SHOWN = 5
FOLDER_LINK, FILE_LINK = "link to a folder elsewhere", "link that leads out of the folder"
READ = "read where it lies"
WHOLE_FOLDER = ("", "all", "train")


@dataclass(frozen=True)
class FolderImages:
    """images uint8 [N, C, S, S], their paths below the root, targets int64 [N] with class names or None, skipped."""

    images_NCHW: npt.NDArray[np.uint8]
    sample_ids: list[str]
    targets_N: npt.NDArray[np.int64] | None
    class_names: list[str] | None
    skipped: list[str]


def read_folder(
    root: Path,
    *,
    split: str,
    image_size: int | None,
    grayscale: bool,
    max_unreadable: float = 0.0,
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FolderImages:
    """All images of a folder; the module's docstring has the rules. DataError for anything the user can mend."""
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable must be between 0 and 1; got {max_unreadable}")
    base = split_folder(root, split, follow_links=follow_links)
    listed, refused = list_images(root, base, follow_links=follow_links)
    if not listed and not refused:
        raise DataError(f"{base}: holds no images ({' '.join(EXTENSIONS)})")
    with strict_pillow():
        side = image_size if image_size is not None else _common_side(root, listed)
        images_NCHW, broken = decode_files(root, listed, side=side, channels=1 if grayscale else 3, progress=progress)
    unreadable = dict(sorted({**refused, **broken}.items()))
    _check_share(base, unreadable, len(listed) + len(refused), max_unreadable)
    kept = [sample_id for sample_id in listed if sample_id not in broken]
    _close_gaps(images_NCHW, [index for index, sample_id in enumerate(listed) if sample_id not in broken])
    targets_N, class_names = _targets(kept, "" if base == root else f"{split}/")
    skipped = [f"{sample_id}: {reason}" for sample_id, reason in unreadable.items()]
    return FolderImages(images_NCHW[: len(kept)], kept, targets_N, class_names, skipped)


def split_folder(root: Path, split: str, *, follow_links: bool = False) -> Path:
    """The folder that holds a split: ROOT/SPLIT, or ROOT for an unsplit folder."""
    if not root.is_dir():
        raise DataError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}")
    if split in (".", "..") or "/" in split or os.sep in split:
        raise DataError(f"split must be the name of a folder in {root}, not a path; got {split!r}")
    inner = root / split
    if split and inner.is_dir():
        if not follow_links and not inner.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"{inner}: is a link that leads out of {root}; give the folder that it leads to as the root"
            )
        return inner
    if split not in WHOLE_FOLDER:
        raise DataError(f"{inner}: no such folder; use split all to read the whole of {root}")
    return root


def list_images(root: Path, base: Path, *, follow_links: bool = False) -> tuple[list[str], dict[str, str]]:
    """Paths below root of the images in base, sorted; and those that must not be read, with the reason."""
    listed: list[str] = []
    refused: dict[str, str] = {}
    followed: set[str] | None = set() if follow_links else None

    def unlisted(problem: OSError) -> None:
        refused[_relative(root, str(problem.filename))] = f"folder cannot be listed ({problem.strerror})"

    for folder, subfolders, files in os.walk(base, onerror=unlisted, followlinks=follow_links):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in [name for name in subfolders if os.path.islink(os.path.join(folder, name))]:
            path = os.path.join(folder, name)
            if reason := _folder_link(path, base, followed):
                subfolders.remove(name)
                refused |= {} if reason == READ else {_relative(root, path): reason}
        for name in files:
            if name.startswith(".") or not name.lower().endswith(EXTENSIONS):
                continue
            path = os.path.join(folder, name)
            if reason := _refusal(path, root, follow_links=follow_links):
                refused[_relative(root, path)] = reason
            else:
                listed.append(_relative(root, path))
    return sorted(listed), refused


def _common_side(root: Path, listed: Sequence[str]) -> int:
    """The side of all images if they are square and equal, else DataError. Reads headers only."""
    sizes: dict[tuple[int, int], str] = {}
    for sample_id in listed:
        size = _header_size(root / sample_id)
        if size is None:
            continue
        sizes.setdefault(size, sample_id)
        width, height = size
        if len(sizes) > 1 or width != height or width > LARGEST_NATIVE:
            found = ", ".join(f"{name} is {w}x{h}" for (w, h), name in sizes.items())
            rule = f"without image_size all images must be square and of one size up to {LARGEST_NATIVE} pixels"
            raise DataError(f"{root}: {rule}, but {found}; set image_size, for example 224")
    return next(iter(sizes), (1, 1))[0]


def _header_size(path: Path) -> tuple[int, int] | None:
    """Width and height, or None for a file that does not open: decoding it will say why."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:
        return None


def _check_share(base: Path, unreadable: dict[str, str], total: int, max_unreadable: float) -> None:
    if not unreadable or (len(unreadable) <= max_unreadable * total and len(unreadable) < total):
        return
    lines = [f"{base}: {len(unreadable)} of {total} images cannot be read (max_unreadable is {max_unreadable:g}):"]
    lines += [f"  {sample_id}: {reason}" for sample_id, reason in list(unreadable.items())[:SHOWN]]
    if len(unreadable) > SHOWN:
        lines.append(f"  and {len(unreadable) - SHOWN} more")
    if {FOLDER_LINK, FILE_LINK} & set(unreadable.values()):
        lines.append("  data.follow_links: true follows links that lead elsewhere")
    raise DataError("\n".join(lines))


def _close_gaps(images_NCHW: npt.NDArray[np.uint8], kept: Sequence[int]) -> None:
    """Move the kept rows to the front, in place: a copy would double the memory."""
    for new, old in enumerate(kept):
        if new != old:
            images_NCHW[new] = images_NCHW[old]


def _targets(sample_ids: Sequence[str], prefix: str) -> tuple[npt.NDArray[np.int64] | None, list[str] | None]:
    """Targets and class names from the first folder of each path after prefix; None twice for unlabelled folders."""
    parts = [sample_id.removeprefix(prefix).split("/") for sample_id in sample_ids]
    class_names = sorted({part[0] for part in parts})
    if len(class_names) < 2 or any(len(part) == 1 for part in parts):
        return None, None
    number = {name: index for index, name in enumerate(class_names)}
    return np.array([number[part[0]] for part in parts], np.int64), class_names


def _refusal(path: str, root: Path, *, follow_links: bool) -> str:
    """Why a file must not be opened, or an empty string."""
    if not follow_links and not _inside(path, root):
        return FILE_LINK
    if not os.path.isfile(path):
        return "not a regular file" if os.path.exists(path) else "broken link"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "name is not UTF-8"
    return ""


def _folder_link(path: str, base: Path, followed: set[str] | None) -> str:
    """Why a link to a folder is not followed, or an empty string. `followed`: what was, None if nothing is to be."""
    target = os.path.realpath(path)
    if _inside(path, base) or (followed and target in followed):
        return READ
    if followed is None:
        return FOLDER_LINK
    if base.resolve().is_relative_to(target):
        return "link to a folder that holds this one"
    followed.add(target)
    return ""


def _inside(path: str, folder: Path) -> bool:
    return not os.path.islink(path) or Path(os.path.realpath(path)).is_relative_to(folder.resolve())


def _relative(root: Path, path: str) -> str:
    """The path below root with "/"; bytes that are not UTF-8 appear as \\udcxx so that it can be printed.

    Names with such bytes are only ever refused, so the written form never has to lead back to the file.
    """
    return Path(path).relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
