"""Scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that come with the package, no network needed."""

import numpy as np
import numpy.typing as npt

from deepcluster.errors import DataError

SPLITS = ("all", "train")


def read_digits(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Images uint8 [1797, 1, 8, 8], targets int64 [1797], class names.

    The set has no split of its own: "all" and "train" both mean every image. Its grey levels 0..16 become 0..255.
    """
    if split not in SPLITS:
        raise DataError(f"digits has no split {split!r}: expected all or train (both mean all 1,797 images)")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    return images, bunch.target.astype(np.int64), [str(name) for name in bunch.target_names]
