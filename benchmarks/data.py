"""Images to measure with: noise, or MNIST. What is in an image changes no speed here, except of k-means and zstd."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


@dataclass(frozen=True)
class Source:
    """Where images of MNIST's shape come from: a folder with the IDX files, or nowhere."""

    mnist: Path | None = None

    def digits(self, count: int) -> NDArray[np.uint8]:
        """uint8 [count, 28, 28]; beyond the 60,000 of MNIST they repeat."""
        if self.mnist is None:
            return blobs(count)
        from deepcluster.datasets.mnist import read_mnist

        images_N1HW, _, _ = read_mnist(self.mnist, "train")
        return np.resize(images_N1HW[:, 0], (count, 28, 28))


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [count, height, width, 3] whose JPEG files have a photo's size, about 2 bits a pixel, unlike noise's."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (count, -(-height // 25), -(-width // 25), 3), dtype=np.uint8)
    enlarged = coarse.repeat(25, axis=1).repeat(25, axis=2)[:, :height, :width]
    return enlarged + rng.integers(0, 10, enlarged.shape, dtype=np.uint8)


def blobs(count: int, *, kinds: int = 50, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [count, 28, 28]: one of `kinds` coarse patterns with noise, so that k-means has something to find."""
    rng = np.random.default_rng(seed)
    patterns_K = np.kron(rng.integers(0, 180, (kinds, 7, 7), dtype=np.uint8), np.ones((4, 4), np.uint8))
    return patterns_K[rng.integers(kinds, size=count)] + rng.integers(0, 75, (count, 28, 28), dtype=np.uint8)


def write_idx(folder: Path, images_NHW: NDArray[np.uint8]) -> None:
    """MNIST's training files with these images, and labels that nothing measured reads."""
    folder.mkdir(parents=True, exist_ok=True)
    labels_N = (np.arange(len(images_NHW)) % 10).astype(np.uint8)
    for name, array in zip(NAMES, (images_NHW, labels_N), strict=True):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(header + array.tobytes())
