"""Images in memory, in whatever form, as uint8 [N, C, S, S].

Shapes: N images, C channels (1 or 3), H and W pixels, S pixels a side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.datasets.decoding import as_square, decode, strict_pillow
from deepcluster.datasets.resizing import allocate

CHANNELS = (1, 3)
FORMS = "uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3, or a list of PIL images or of paths"


def as_images(images: Any, *, image_size: int | None, grayscale: bool = False) -> NDArray[np.uint8]:
    """uint8 [N, C, S, S] of an array of any of the forms, or of a list of PIL images or paths.

    Arrays keep their channels; those that are not square, or not of side `image_size`, are cut to the centre square and
    scaled if that is given. Lists need it, and have 3 channels, or 1 if `grayscale`; they are decoded as a folder is.
    ValueError or TypeError for anything else, files that cannot be read among them.
    """
    if isinstance(images, Sequence) and not isinstance(images, str):
        return _listed(images, image_size, 1 if grayscale else 3)
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(
            f"images must be {FORMS}; got an array of {array.dtype} {list(array.shape)}. Of values in [0, 1] make "
            "(255 * images).round().astype('uint8')"
        )
    images_NCHW = _channels_first(array)
    if not len(images_NCHW):
        raise ValueError("images: there are none")
    return _scaled(images_NCHW, image_size)


def _channels_first(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    match array.ndim:
        case 3:
            return array[:, None]
        case 4 if (array.shape[1] in CHANNELS) != (array.shape[3] in CHANNELS):
            return array if array.shape[1] in CHANNELS else array.transpose(0, 3, 1, 2)
    raise ValueError(f"images must be {FORMS}; got an array of shape {list(array.shape)}")


def _scaled(images_NCHW: NDArray[np.uint8], image_size: int | None) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = images_NCHW.shape[2:]
    if height != width and image_size is None:
        raise ValueError(f"images must be square; got {height}x{width}: set image_size, and their centre is taken")
    if image_size is None or (height, width) == (image_size, image_size):
        return np.ascontiguousarray(images_NCHW)
    number, channels = images_NCHW.shape[:2]
    result = allocate(number, channels, image_size)
    for index, image_CHW in enumerate(images_NCHW):
        plain = image_CHW[0] if channels == 1 else np.ascontiguousarray(image_CHW.transpose(1, 2, 0))
        result[index] = as_square(Image.fromarray(plain), image_size, channels)
    return result


def _listed(images: Sequence[Any], image_size: int | None, channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    if not images:
        raise ValueError("images: there are none")
    if image_size is None:
        raise ValueError("image_size: must be given for a list of images, since each may have another size")
    squares = []
    with strict_pillow():
        for index, image in enumerate(images):
            if not isinstance(image, str | Path | Image.Image):
                raise TypeError(f"images must be {FORMS}; item {index} is a {type(image).__name__}")
            try:
                if isinstance(image, Image.Image):
                    squares.append(as_square(image, image_size, channels))
                else:
                    squares.append(decode(Path(image), image_size, channels))
            except Exception as problem:  # Pillow's readers raise nearly every kind of error on damaged files
                raise ValueError(f"images: item {index} cannot be read: {problem}") from problem
    return np.stack(squares)
