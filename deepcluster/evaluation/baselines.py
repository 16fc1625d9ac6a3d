"""Clusterings to judge by true labels, made the same way for trained features, untrained features and pixels.

Shapes: N images, D features, C channels, H x W pixels.
"""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.kmeans import Clustering, kmeans
from deepcluster.clustering.kmeans import memory_needed as kmeans_memory
from deepcluster.metrics import ari, hungarian_accuracy, nmi
from deepcluster.pixels import to_float

_ITERATIONS = 50
_FILTERED_AT_ONCE = 512


def final_clusters(
    features_ND: NDArray[np.float32], *, k: int, seed: int, restarts: int = 20, gpu: bool | None = None
) -> Clustering:
    """`best_of` the features with each row divided by its L2 norm.

    The features are taken as they are otherwise: not centred, no PCA, no whitening. Rows of zeros stay zeros.
    """
    rows_ND = l2_normalize(features_ND)
    return best_of(rows_ND, k=k, seed=seed, restarts=restarts, gpu=gpu)


def score(labels_N: NDArray[np.integer], targets_N: NDArray[np.integer]) -> dict[str, float]:
    """NMI, ARI and Hungarian accuracy of labels against true labels, as "nmi", "ari", "accuracy"; higher is better."""
    return {
        "nmi": nmi(labels_N, targets_N),
        "ari": ari(labels_N, targets_N),
        "accuracy": hungarian_accuracy(labels_N, targets_N),
    }


def pixel_rows(images_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 divided by 255, flattened: float32 [N, C x H x W]."""
    pixels_ND = images_NCHW.reshape(len(images_NCHW), -1).astype(np.float32)
    pixels_ND /= np.float32(255)
    return pixels_ND


def memory_needed(count: int, width: int) -> float:
    """About how many bytes a baseline on `width` values an image takes at its peak: those values and their k-means."""
    return 4.0 * count * width + kmeans_memory("faiss", count, width)


def filtered_pixels(images_NCHW: NDArray[np.uint8], front_end: nn.Module) -> NDArray[np.float32]:
    """What a backbone's fixed front end makes of uint8 divided by 255, flattened: float32 [N, D]. Nothing else is done.

    Sobel gives D = 2 x H x W: all horizontal differences of an image (of its grey values, if it is coloured), row by
    row, then the vertical ones. On the CPU, whatever the backbone is on, so that every machine has the same numbers.
    """
    front_end = copy.deepcopy(front_end).cpu()
    blocks = []
    with torch.inference_mode():
        for start in range(0, len(images_NCHW), _FILTERED_AT_ONCE):
            block = torch.from_numpy(np.array(images_NCHW[start : start + _FILTERED_AT_ONCE]))
            blocks.append(front_end(to_float(block)).flatten(1).numpy())
    return np.concatenate(blocks)


def filtered_baseline(
    images_NCHW: NDArray[np.uint8],
    front_end: nn.Module,
    targets_N: NDArray[np.integer],
    *,
    k: int,
    seed: int,
    restarts: int = 20,
    gpu: bool | None = None,
) -> dict[str, float]:
    """`score` of `best_of` the `filtered_pixels`."""
    pixels_ND = filtered_pixels(images_NCHW, front_end)
    found = best_of(pixels_ND, k=k, seed=seed, restarts=restarts, gpu=gpu)
    return score(found.labels_N, targets_N)


def best_of(rows_ND: NDArray[np.float32], *, k: int, seed: int, restarts: int, gpu: bool | None) -> Clustering:
    """faiss k-means, the lowest objective of `restarts` runs of 50 iterations from k-means++ starts.

    With few clusters random starts put two into one class so often that ten of them may all miss the optimum; the
    accuracy then falls by a tenth for no fault of the features (docs/results.md).
    """
    settings: dict[str, Any] = {"backend": "faiss", "init": "k-means++", "iterations": _ITERATIONS}
    return kmeans(rows_ND, k=k, restarts=restarts, seed=seed, gpu=gpu, **settings)
