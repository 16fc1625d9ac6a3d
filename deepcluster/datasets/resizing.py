"""uint8 images of one size made grey, or scaled, without a float copy. Shapes: N images, C channels, H and W pixels."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from deepcluster.errors import ResourceError
from deepcluster.memory import refuse_too_large

REPORT_EVERY = 1024
BLOCK_BYTES = 2**22
# ITU-R 601 in 65,536ths, as Pillow's convert("L") has it.
RED, GREEN, BLUE, HALF = 19595, 38470, 7471, 1 << 15


def allocate(number: int, channels: int, side: int) -> npt.NDArray[np.uint8]:
    """Room for images uint8 [N, C, S, S]. ResourceError if there is not so much memory.

    Asked beforehand, as the system would hand out more than there is and end the process once it is written to.
    """
    needed, what = number * channels * side * side, f"data: {number:,} images of {channels} x {side} x {side}"
    remedy = f"set data.image_size below {side}{' or data.grayscale: true' if channels > 1 else ''}"
    refuse_too_large(needed, what, remedy)
    try:
        return np.empty((number, channels, side, side), np.uint8)
    except MemoryError as problem:  # where the system keeps count of what it hands out
        raise ResourceError(f"{what} need about {needed / 1e9:.2f} GB of memory, refused; {remedy}") from problem


def grey(images_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """One channel, the luma 0.299 R + 0.587 G + 0.114 B rounded as Pillow does; grey images as they are."""
    number, channels, height, width = images_NCHW.shape
    if channels == 1:
        return images_NCHW
    what = f"data.grayscale: {number:,} images of {height}x{width}"
    refuse_too_large(number * height * width, what, "take a machine with more")
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

        result = allocate(number, channels, image_size)
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
