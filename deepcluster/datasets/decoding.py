"""Image files as uint8 arrays: whatever Pillow opens safely, decoded alike for folders and for sets of image files.

Shapes: N images, C channels (1 or 3), S pixels a side.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deepcluster.datasets.resizing import allocate

if TYPE_CHECKING:
    from PIL import Image as PILImage

# Never more than these, whatever a file is called: Pillow would start Ghostscript for an EPS file named .jpg.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
PIXEL_LIMIT = 89_478_485  # Pillow refuses twice this
FILES_PER_TASK = 16
EMPTY = "empty file"


def decode_files(
    root: Path,
    listed: Sequence[str],
    *,
    side: int,
    channels: int,
    crop: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[npt.NDArray[np.uint8], dict[str, str]]:
    """Every listed image in its row of one array, and the reasons of those that failed (their rows are undefined).

    ResourceError before the first is opened if they would not fit into memory.
    To be called within `strict_pillow`.
    """
    images_NCHW = allocate(len(listed), channels, side)

    def task(start: int) -> dict[str, str]:
        failures = {}
        for index in range(start, min(start + FILES_PER_TASK, len(listed))):
            try:
                images_NCHW[index] = decode(root / listed[index], side, channels, crop=crop)
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


def decode(path: Path, side: int, channels: int, *, crop: bool = True) -> npt.NDArray[np.uint8]:
    """One image file as uint8 [C, S, S]: upright, on white, scaled to side; its centre square, else all of it."""
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        image.draft(image.mode, (2 * side, 2 * side))  # lets JPEG decode large photographs at 1/2, 1/4 or 1/8
        image.load()
        return as_square(image, side, channels, crop=crop)


def as_square(image: "PILImage.Image", side: int, channels: int, *, crop: bool = True) -> npt.NDArray[np.uint8]:
    """An image of any mode as uint8 [C, S, S], as `decode` has it."""
    from PIL import Image

    plain = _plain(_upright(image), channels)
    box = _centre_square(*plain.size) if crop else None
    square = plain.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square, np.uint8).reshape(side, side, channels).transpose(2, 0, 1)


def _centre_square(width: int, height: int) -> tuple[int, int, int, int]:
    size = min(width, height)
    left, top = (width - size) // 2, (height - size) // 2
    return left, top, left + size, top + size


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


def _reason(problem: Exception, path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(problem, UnidentifiedImageError):
        return EMPTY if path.stat().st_size == 0 else "not an image of a known format"
    if isinstance(problem, Image.DecompressionBombError):
        return f"over {2 * PIXEL_LIMIT:,} pixels, refused"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    lines = str(problem).splitlines()
    return lines[0] if lines else type(problem).__name__


@contextmanager
def strict_pillow() -> Iterator[None]:
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
