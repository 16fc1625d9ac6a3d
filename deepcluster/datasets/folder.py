"""Any folder of images as one uint8 array.

Which folder    ROOT/SPLIT if that is a folder. Otherwise splits "all", "train" and "" mean ROOT itself; any other
                split that has no folder is an error.
Which files     Names ending in one of EXTENSIONS (any case), at any depth, in the codepoint order of their paths.
                Names that begin with a dot are ignored. File links are followed inside ROOT only. Folder links are
                never followed: those that stay inside the folder being read are ignored, as their content is
                read where it lies; the others count as unreadable.
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
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deepcluster.errors import DataError

if TYPE_CHECKING:
    from PIL import Image as PILImage

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Never more than these, whatever a file is called: Pillow would start Ghostscript for an EPS file named .jpg.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_NATIVE = 256
PIXEL_LIMIT = 89_478_485  # Pillow refuses twice this
SHOWN = 5
FILES_PER_TASK = 16
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
    progress: Callable[[int, int], None] | None = None,
) -> FolderImages:
    """All images of a folder; the module's docstring has the rules. DataError for anything the user can mend."""
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable must be between 0 and 1; got {max_unreadable}")
    base = split_folder(root, split)
    listed, refused = list_images(root, base)
    if not listed and not refused:
        raise DataError(f"{base}: holds no images ({' '.join(EXTENSIONS)})")
    with _strict_pillow():
        side = image_size if image_size is not None else _common_side(root, listed)
        images_NCHW, broken = _decode_all(root, listed, side, 1 if grayscale else 3, progress)
    unreadable = dict(sorted({**refused, **broken}.items()))
    _check_share(base, unreadable, len(listed) + len(refused), max_unreadable)
    kept = [sample_id for sample_id in listed if sample_id not in broken]
    _close_gaps(images_NCHW, [index for index, sample_id in enumerate(listed) if sample_id not in broken])
    targets_N, class_names = _targets(kept, "" if base == root else f"{split}/")
    skipped = [f"{sample_id}: {reason}" for sample_id, reason in unreadable.items()]
    return FolderImages(images_NCHW[: len(kept)], kept, targets_N, class_names, skipped)


def split_folder(root: Path, split: str) -> Path:
    """The folder that holds a split: ROOT/SPLIT, or ROOT for an unsplit folder."""
    if not root.is_dir():
        raise DataError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}")
    if split in (".", "..") or "/" in split or os.sep in split:
        raise DataError(f"split must be the name of a folder in {root}, not a path; got {split!r}")
    inner = root / split
    if split and inner.is_dir():
        if not inner.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"{inner}: is a link that leads out of {root}; give the folder that it leads to as the root"
            )
        return inner
    if split not in WHOLE_FOLDER:
        raise DataError(f"{inner}: no such folder; use split all to read the whole of {root}")
    return root


def list_images(root: Path, base: Path) -> tuple[list[str], dict[str, str]]:
    """Paths below root of the images in base, sorted; and those that must not be read, with the reason."""
    listed: list[str] = []
    refused: dict[str, str] = {}

    def unlisted(problem: OSError) -> None:
        refused[_relative(root, str(problem.filename))] = f"folder cannot be listed ({problem.strerror})"

    for folder, subfolders, files in os.walk(base, onerror=unlisted):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            path = os.path.join(folder, name)
            if os.path.islink(path) and not _inside(path, base):
                refused[_relative(root, path)] = "link to a folder elsewhere"
        for name in files:
            if name.startswith(".") or not name.lower().endswith(EXTENSIONS):
                continue
            path = os.path.join(folder, name)
            if reason := _refusal(path, root):
                refused[_relative(root, path)] = reason
            else:
                listed.append(_relative(root, path))
    return sorted(listed), refused


def decode(path: Path, side: int, channels: int) -> npt.NDArray[np.uint8]:
    """One image file as uint8 [C, S, S]: upright, on white, centre square, scaled to side."""
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        image.draft(image.mode, (2 * side, 2 * side))  # lets JPEG decode large photographs at 1/2, 1/4 or 1/8
        image.load()
        plain = _plain(_upright(image), channels)
    size = min(plain.size)
    left, top = (plain.width - size) // 2, (plain.height - size) // 2
    square = plain.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + size, top + size))
    return np.asarray(square, np.uint8).reshape(side, side, channels).transpose(2, 0, 1)


def _upright(image: "PILImage.Image") -> "PILImage.Image":
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _plain(image: "PILImage.Image", channels: int) -> "PILImage.Image":
    """An image of any mode as L or RGB, without transparency."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    elif image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bit(image: "PILImage.Image") -> "PILImage.Image":
    """16-bit grey as 8-bit, rounded. Pillow's own conversion clips at 255 instead."""
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("integer pixels outside 0 to 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _decode_all(
    root: Path, listed: Sequence[str], side: int, channels: int, progress: Callable[[int, int], None] | None
) -> tuple[npt.NDArray[np.uint8], dict[str, str]]:
    """Every listed image in its row of one array, and the reasons of those that failed (their rows are undefined)."""
    images_NCHW = _allocate(len(listed), channels, side)

    def task(start: int) -> dict[str, str]:
        failures = {}
        for index in range(start, min(start + FILES_PER_TASK, len(listed))):
            try:
                images_NCHW[index] = decode(root / listed[index], side, channels)
            except Exception as problem:  # Pillow's readers raise nearly every kind of error on damaged files
                failures[listed[index]] = _reason(problem, root / listed[index])
        return failures

    broken: dict[str, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        starts = range(0, len(listed), FILES_PER_TASK)
        for start, failures in zip(starts, pool.map(task, starts), strict=True):
            broken |= failures
            if progress is not None:
                progress(min(start + FILES_PER_TASK, len(listed)), len(listed))
    return images_NCHW, broken


def _allocate(number: int, channels: int, side: int) -> npt.NDArray[np.uint8]:
    try:
        return np.empty((number, channels, side, side), np.uint8)
    except MemoryError as problem:
        need = number * channels * side * side / 2**30
        raise DataError(
            f"{number} images of {side}x{side} need {need:.1f} GiB of memory; lower image_size"
        ) from problem


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


def _refusal(path: str, root: Path) -> str:
    """Why a file must not be opened, or an empty string."""
    if not _inside(path, root):
        return "link that leads out of the folder"
    if not os.path.isfile(path):
        return "broken link" if os.path.islink(path) else "not a regular file"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "name is not UTF-8"
    return ""


def _inside(path: str, folder: Path) -> bool:
    return not os.path.islink(path) or Path(os.path.realpath(path)).is_relative_to(folder.resolve())


def _relative(root: Path, path: str) -> str:
    """The path below root with "/"; bytes that are not UTF-8 appear as \\udcxx so that it can be printed.

    Names with such bytes are only ever refused, so the written form never has to lead back to the file.
    """
    return Path(path).relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _reason(problem: Exception, path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(problem, UnidentifiedImageError):
        return "empty file" if path.stat().st_size == 0 else "not an image of a known format"
    if isinstance(problem, Image.DecompressionBombError):
        return f"over {2 * PIXEL_LIMIT:,} pixels, refused"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    lines = str(problem).splitlines()
    return lines[0] if lines else type(problem).__name__


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow as the rules need it, whatever else in the process has set: no truncated files, no bombs, no chatter."""
    from PIL import Image, ImageFile

    Image.init()  # here, as two threads that meet in its lazy start could miss a format
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, PIXEL_LIMIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before
