"""Filters of a first layer as pictures. Shapes: F filters, C channels, h and w pixels, R rows, M pictures in a row."""

import numpy as np
from numpy.typing import NDArray

from deepcluster.inspection.gallery import GAP_GREY

A_ROW = 16


def filter_pictures(filters_FChw: NDArray[np.float32], *, a_row: int = A_ROW) -> NDArray[np.uint8]:
    """uint8 [R, M, 1 or 3, h, w]: a filter each, grey 128 where its weight is 0, its largest weight black or white.

    Filters of three channels are in colour; of others (two of Sobel's, say) every channel has a picture of its own, one
    after the other, and a row holds whole filters. What is left of the last row is grey.
    """
    count, channels, height, width = filters_FChw.shape
    largest_F = np.abs(filters_FChw).max(axis=(1, 2, 3), keepdims=True)
    scaled = filters_FChw / np.where(largest_F > 0, largest_F, 1)
    pictures = np.clip(np.rint(GAP_GREY + 127 * scaled), 0, 255).astype(np.uint8)
    colours = 3 if channels == 3 else 1
    each = channels // colours
    pictures = pictures.reshape(count * each, colours, height, width)
    columns = max(1, a_row // each) * each
    rows = -(-len(pictures) // columns)
    filled = np.full((rows * columns, colours, height, width), GAP_GREY, np.uint8)
    filled[: len(pictures)] = pictures
    return filled.reshape(rows, columns, colours, height, width)


def excitement_pictures(made_KCSS: NDArray[np.uint8], images_KMCSS: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [K, 1 + M, C, S, S]: a row a channel, the image made for it and then those of the data set."""
    return np.concatenate([made_KCSS[:, None], images_KMCSS], axis=1)
