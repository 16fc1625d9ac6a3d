"""Small images in few bytes: strips and one sheet as WebP, at the finest quality that a number of bytes allows.

Shapes: M images, C channels (1 or 3), S pixels a side, H and W pixels of a sheet.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from deepcluster.inspection.gallery import GAP_GREY, shrunk
from deepcluster.progress import counted

SHOWN_SIDE = 48  # smaller images are enlarged to at least this by the browser, by a whole factor
MOST_SIDE = 16_000  # WebP ends at 16,383 pixels
_QUIET_STRIPS = 300  # encoded within a second or two: no progress bar
_TRIED = 12  # strips or rows that the bytes of all are guessed from
_MARGIN = 0.9  # a guess must stay this far below the limit


class Quality(NamedTuple):
    """The longest side of an image, and WebP's quality, or None where no pixel may change."""

    side: int
    lossy: int | None


QUALITIES = (
    Quality(96, None),
    Quality(96, 80),
    Quality(64, 80),
    Quality(48, 75),
    Quality(32, 75),
    Quality(24, 60),
    Quality(16, 50),
)


class Images(Protocol):
    """Images uint8 [N, C, S, S] that can be read one at a time: a NumPy or a zarr array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Picture(NamedTuple):
    """A WebP with the size that a page shows it at."""

    content: bytes
    width: int
    height: int


class Sheet(NamedTuple):
    """Images in rows of `columns`, each `side` pixels; a page shows each at `shown`."""

    content: bytes
    columns: int
    side: int
    shown: int


def strips(images: Images, rows: Sequence[npt.NDArray[np.int64]], *, most_bytes: int) -> list[Picture]:
    """For each array of image numbers a strip of those images, none over most_bytes in all; the last ones may lack.

    One quality for all: the finest by which a dozen strips, evenly taken, promise that all fit. Same images, same
    bytes.
    """
    tried = rows[:: max(1, len(rows) // _TRIED)]
    for quality in QUALITIES:
        guess = sum(len(_strip(images, row, quality).content) for row in tried) * len(rows) / max(1, len(tried))
        if guess <= _MARGIN * most_bytes:
            break
    found: Iterator[Picture] = (_strip(images, row, quality) for row in rows)
    if len(rows) > _QUIET_STRIPS:
        found = counted(found, "report: thumbnails", len(rows), "strips", size=lambda _: 1)
    return list(_within(most_bytes, found))


def sheet(images: Images, numbers: npt.NDArray[np.int64], *, most_bytes: int) -> Sheet:
    """The images in a sheet about as wide as high, at the finest quality by which some rows promise most_bytes.

    Coarser where the promise was broken; the coarsest is taken in any case.
    """
    columns = max(1, int(np.ceil(np.sqrt(len(numbers)))))
    some = numbers[:: max(1, len(numbers) // (_TRIED * columns))][: _TRIED * columns]
    for quality in QUALITIES:
        last = quality == QUALITIES[-1]
        guess = len(_sheet(images, some, columns, quality).content) * len(numbers) / len(some)
        if not last and (guess > _MARGIN * most_bytes or columns * quality.side > MOST_SIDE):
            continue
        found = _sheet(images, numbers, columns, quality)
        if last or len(found.content) <= most_bytes:
            break
    return found


def _sheet(images: Images, numbers: npt.NDArray[np.int64], columns: int, quality: Quality) -> Sheet:
    tiles_MHWC = np.stack([_tile(np.asarray(images[int(number)]), quality.side) for number in numbers])
    side = tiles_MHWC.shape[1]
    return Sheet(encoded(_grid(tiles_MHWC, columns), quality.lossy), columns, side, side * _factor(side))


def encoded(pixels_HWC: npt.NDArray[np.uint8], lossy: int | None) -> bytes:
    """WebP of pixels [H, W, 1 or 3]; with None every pixel comes back as it was."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else np.ascontiguousarray(pixels_HWC))
    settings: dict[str, Any] = {"lossless": True, "quality": 40} if lossy is None else {"quality": lossy}
    image.convert("RGB").save(buffer, "WEBP", method=4, **settings)
    return buffer.getvalue()


def _strip(images: Images, numbers: npt.NDArray[np.int64], quality: Quality) -> Picture:
    tiles = [_tile(np.asarray(images[int(number)]), quality.side) for number in numbers]
    height, _, channels = tiles[0].shape
    gap = np.full((height, 1, channels), GAP_GREY, np.uint8)
    pieces = [part for tile in tiles for part in (gap, tile)][1:]
    pixels_HWC = np.concatenate(pieces, axis=1)
    factor = _factor(height)
    return Picture(encoded(pixels_HWC, quality.lossy), pixels_HWC.shape[1] * factor, height * factor)


def _within(most_bytes: int, pictures: Iterator[Picture]) -> Iterator[Picture]:
    used = 0
    for picture in pictures:
        used += len(picture.content)
        if used > most_bytes:
            return
        yield picture


def _tile(image_CHW: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    pixels_HWC = image_CHW.transpose(1, 2, 0)
    longer = max(pixels_HWC.shape[:2])
    return pixels_HWC if longer <= side else shrunk(pixels_HWC, side / longer)


def _grid(tiles_MHWC: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.uint8]:
    count, height, width, channels = tiles_MHWC.shape
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, height, width, channels), np.uint8)
    filled[:count] = tiles_MHWC
    return filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def _factor(side: int) -> int:
    return -(-SHOWN_SIDE // side) if side < SHOWN_SIDE else 1
