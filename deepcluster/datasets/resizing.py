"""uint8 images of one size made grey, or scaled, without a float copy. Shapes: N images, C channels, H and W pixels."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

REPORT_EVERY = 1024
BLOCK_BYTES = 2**22
# ITU-R 601 in 65,536ths, as Pillow's convert("L") has it.
RED, GREEN, BLUE, HALF = 19595, 38470, 7471, 1 << 15


def grey(images_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """One channel, the luma 0.299 R + 0.587 G + 0.114 B rounded as Pillow does; grey images as they are."""
    number, channels, height, width = images_NCHW.shape
    if channels == 1:
        return images_NCHW
    result = np.empty((number, 1, height, width), np.uint8)
    step = max(1, BLOCK_BYTES // images_NCHW[0].size)
    for start in range(0, number, step):
        red, green, blue = images_NCHW[start : start + step].astype(np.uint32).swapaxes(0, 1)
        result[start : start + step, 0] = (RED * red + GREEN * green + BLUE * blue + HALF) >> 16
    return result


def resized(
    images_NCHW: npt.NDArray[np.uint8],
    image_size: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Square images at image_size pixels (bilinear, antialiased when shrinking); None: as they are."""
    number, channels = images_NCHW.shape[:2]
    if image_size is None or images_NCHW.shape[2:] == (image_size, image_size):
        result = images_NCHW
    else:
        from PIL import Image

        result = np.empty((number, channels, image_size, image_size), np.uint8)
        for index in range(number):
            for channel in range(channels):  # Pillow scales the channels of a colour image one by one too
                plane = Image.fromarray(np.ascontiguousarray(images_NCHW[index, channel]))
                scaled = plane.resize((image_size, image_size), Image.Resampling.BILINEAR)
                result[index, channel] = np.asarray(scaled)
            if progress is not None and index % REPORT_EVERY == 0:
                progress(index, number)
    if progress is not None:
        progress(number, number)
    return result
