"""Which images supervised measures learn from, and which they are scored on.

With a test split they learn from all training images and are scored on the test images. Without one, a stratified
fifth of the training images is set aside: the backbone has seen those, though without their labels.
Shapes: N training images, M test images, D features, L rows to learn from, S rows to score.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIFTH = 0.2
TEST_SPLIT = "the test split, which nothing was trained on"
A_FIFTH = "a fifth of the images, which the backbone has seen without labels"


@dataclass(frozen=True)
class Examples:
    """Rows with their true labels, to learn from (L) and to score (S): float32 and int64."""

    learn_LD: NDArray[np.float32]
    learn_targets_L: NDArray[np.int64]
    score_SD: NDArray[np.float32]
    score_targets_S: NDArray[np.int64]


@dataclass(frozen=True)
class HeldOut:
    """targets_N: of the training images. test_targets_M: of the test split, None if there is none. See `held_out`."""

    targets_N: NDArray[np.int64]
    test_targets_M: NDArray[np.int64] | None
    learn_L: NDArray[np.int64]
    score_S: NDArray[np.int64]

    @property
    def described(self) -> dict[str, str | int]:
        """Which images are scored, in words, and how many."""
        if self.test_targets_M is None:
            return {"what": A_FIFTH, "images": len(self.score_S)}
        return {"what": TEST_SPLIT, "images": len(self.test_targets_M)}

    def examples(self, rows_ND: NDArray[np.float32], test_MD: NDArray[np.float32] | None) -> Examples:
        """The rows of training and test images as what to learn from and what to score."""
        if self.test_targets_M is None:
            learn_L, score_S = self.learn_L, self.score_S
            return Examples(rows_ND[learn_L], self.targets_N[learn_L], rows_ND[score_S], self.targets_N[score_S])
        if test_MD is None:
            raise ValueError("there are test targets, but no rows of the test images")
        return Examples(rows_ND, self.targets_N, test_MD, self.test_targets_M)


def held_out(targets_N: NDArray[np.int64], test_targets_M: NDArray[np.int64] | None, *, seed: int) -> HeldOut:
    """The test split if there is one, else `stratified_fifth`."""
    score_S = stratified_fifth(targets_N, seed=seed)
    learn_L = np.setdiff1d(np.arange(len(targets_N)), score_S)
    return HeldOut(targets_N, test_targets_M, learn_L, score_S)


def stratified_fifth(targets_N: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Row numbers, ascending, of a random fifth of each class, rounded to the nearest.

    Of a class with two images or more at least one is taken and one left; a single one is left.
    """
    rng = np.random.default_rng(seed)
    taken = []
    for name in np.unique(targets_N):
        rows = np.flatnonzero(targets_N == name)
        count = min(max(1, round(FIFTH * len(rows))), len(rows) - 1)
        taken.append(rng.permutation(rows)[:count])
    return np.sort(np.concatenate(taken)).astype(np.int64)
