"""The most central images of each cluster, and contact strips of them.

Shapes: N samples, M images in a strip, C channels (1 or 3), H and W pixels.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

SMALLEST_SIDE = 48
GAP_PIXELS = 2
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
    from PIL import Image

    if images_MCHW.dtype != np.uint8 or images_MCHW.ndim != 4 or images_MCHW.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 [M, 1 or 3, H, W]; got {images_MCHW.dtype} {images_MCHW.shape}")
    if len(images_MCHW) == 0:
        raise ValueError("a strip needs at least one image")
    tiles = [_tile(image, max_side) for image in images_MCHW]
    height, _, channels = tiles[0].shape
    gap = np.full((height, GAP_PIXELS, channels), GAP_GREY, np.uint8)
    strip = np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(strip[:, :, 0] if channels == 1 else strip).save(buffer, "PNG")
    return buffer.getvalue()


def _tile(image_CHW: npt.NDArray[np.uint8], max_side: int) -> npt.NDArray[np.uint8]:
    """One image as [H, W, C] at its size in the strip."""
    pixels = image_CHW.transpose(1, 2, 0)
    longer = max(pixels.shape[:2])
    if longer > max_side:
        pixels = _shrunk(pixels, max_side / longer)
    factor = -(-SMALLEST_SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _shrunk(pixels_HWC: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    from PIL import Image

    height, width, channels = pixels_HWC.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else np.ascontiguousarray(pixels_HWC))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], channels)
