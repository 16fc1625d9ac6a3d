"""The most central images of each cluster, and contact strips and sheets of images.

Shapes: N samples, R rows, M images in a row, C channels (1 or 3), H and W pixels.
"""

import io
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

SMALLEST_SIDE = 48
GAP_PIXELS = 2
SHEET_SIDES = (96, 128)  # of an image in a sheet, which stands alone: at least, at most
SHEET_GAP_PIXELS = 8
GAP_GREY = 128


def most_central(
    labels_N: npt.NDArray[np.integer[Any]], distances_N: npt.NDArray[np.floating[Any]], *, per_cluster: int
) -> dict[int, npt.NDArray[np.int64]]:
    """For each cluster present the indices of its members nearest to the centroid, nearest first, ties by index.

    distances_N: distance (or squared distance) of each sample to its own centroid; NaN counts as farthest.
    """
    if labels_N.ndim != 1 or labels_N.shape != distances_N.shape:
        raise ValueError(f"labels and distances must have one shape [N]; got {labels_N.shape} and {distances_N.shape}")
    if per_cluster < 1:
        raise ValueError(f"per_cluster must be >= 1; got {per_cluster}")
    order = np.lexsort((distances_N, labels_N))  # stable: equal distances stay in index order
    clusters, starts = np.unique(labels_N[order], return_index=True)
    groups = np.split(order, starts[1:])
    return {int(cluster): group[:per_cluster] for cluster, group in zip(clusters, groups, strict=True)}


def contact_png(images_MCHW: npt.NDArray[np.uint8], *, max_side: int = 96) -> bytes:
    """The images side by side as a PNG; small ones enlarged by a whole factor to at least 48 pixels, large ones shrunk.

    The longer side of an image is at most max_side before it is enlarged. Same images, same bytes.
    """
    if images_MCHW.dtype != np.uint8 or images_MCHW.ndim != 4 or images_MCHW.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 [M, 1 or 3, H, W]; got {images_MCHW.dtype} {images_MCHW.shape}")
    if len(images_MCHW) == 0:
        raise ValueError("a strip needs at least one image")
    return _png(_strip(images_MCHW, (SMALLEST_SIDE, max_side)))


def sheet_png(images_RMCHW: npt.NDArray[np.uint8], *, first_gap: int | None = SHEET_GAP_PIXELS) -> bytes:
    """A strip for each row, one below the other, as a PNG; the gap after the first image is wider, unless None is said.

    The longer side of an image is at most 128 pixels before it is enlarged, by a whole factor, to at least 96. Same
    images, same bytes.
    """
    if images_RMCHW.dtype != np.uint8 or images_RMCHW.ndim != 5 or images_RMCHW.shape[2] not in (1, 3):
        raise ValueError(f"images must be uint8 [R, M, 1 or 3, H, W]; got {images_RMCHW.dtype} {images_RMCHW.shape}")
    if 0 in images_RMCHW.shape:
        raise ValueError("a sheet needs at least one image")
    strips = [_strip(images_MCHW, SHEET_SIDES, first_gap=first_gap or GAP_PIXELS) for images_MCHW in images_RMCHW]
    return _png(_joined(strips, axis=0, first_gap=GAP_PIXELS))


def _strip(
    images_MCHW: npt.NDArray[np.uint8], sides: tuple[int, int], *, first_gap: int = GAP_PIXELS
) -> npt.NDArray[np.uint8]:
    """The images side by side, [H, W, C]; `sides`: see `_tile`."""
    return _joined([_tile(image, *sides) for image in images_MCHW], axis=1, first_gap=first_gap)


def _joined(parts: Sequence[npt.NDArray[np.uint8]], *, axis: int, first_gap: int) -> npt.NDArray[np.uint8]:
    """[H, W, C] parts of one size along an axis with grey between; the first gap has a width of its own."""
    pieces = [parts[0]]
    for width, part in zip(chain([first_gap], repeat(GAP_PIXELS)), parts[1:], strict=False):
        shape = [width if along == axis else length for along, length in enumerate(part.shape)]
        pieces += [np.full(shape, GAP_GREY, np.uint8), part]
    return np.concatenate(pieces, axis=axis)


def _png(pixels_HWC: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def _tile(image_CHW: npt.NDArray[np.uint8], min_side: int, max_side: int) -> npt.NDArray[np.uint8]:
    """One image as [H, W, C]: its longer side at most max_side, then times a whole factor to at least min_side."""
    pixels = image_CHW.transpose(1, 2, 0)
    longer = max(pixels.shape[:2])
    if longer > max_side:
        pixels = shrunk(pixels, max_side / longer)
    factor = -(-min_side // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def shrunk(pixels_HWC: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    from PIL import Image

    height, width, channels = pixels_HWC.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else np.ascontiguousarray(pixels_HWC))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], channels)
