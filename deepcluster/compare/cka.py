"""How alike two sets of features of the same images are: linear CKA (Kornblith et al. 2019, section 3).

Shapes: B rows of a block, D and E features.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Pair = tuple[NDArray[np.floating], NDArray[np.floating]]


def linear_cka(pairs: Iterable[Pair]) -> tuple[float | None, int]:
    """(CKA in [0, 1], rows that it is of), of blocks [B, D] and [B, E] of the same images; float64, in one pass.

    |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms of centred columns: 1 for features that differ by rotation, scale and
    offset alone. Rows with NaN or infinity in either are left out. None where features do not vary, and without rows.
    """
    sums: _Products | None = None
    for x_BD, y_BE in pairs:
        finite_B = np.isfinite(x_BD).all(axis=1) & np.isfinite(y_BE).all(axis=1)
        if not finite_B.any():
            continue
        x_BD, y_BE = x_BD[finite_B], y_BE[finite_B]
        if sums is None:
            sums = _Products(x_BD, y_BE)
        sums.add(x_BD, y_BE)
    return (None, 0) if sums is None else (sums.cka(), sums.rows)


def memory_needed(width_a: int, width_b: int) -> float:
    """Bytes that `linear_cka` takes: the three products, and one more while a block's is added."""
    return 8.0 * (width_a**2 + width_b**2 + width_a * width_b + max(width_a, width_b) ** 2)


class _Products:
    """Sums of products about the means of the first block, so that an offset of all rows costs no digits."""

    def __init__(self, x_BD: NDArray[np.floating], y_BE: NDArray[np.floating]) -> None:
        self.rows = 0
        self._shift_D, self._shift_E = (block.mean(axis=0, dtype=np.float64) for block in (x_BD, y_BE))
        width_x, width_y = x_BD.shape[1], y_BE.shape[1]
        self._sum_D, self._sum_E = np.zeros(width_x), np.zeros(width_y)
        self._xx_DD, self._yy_EE = np.zeros((width_x, width_x)), np.zeros((width_y, width_y))
        self._xy_DE = np.zeros((width_x, width_y))

    def add(self, x_BD: NDArray[np.floating], y_BE: NDArray[np.floating]) -> None:
        shifted_BD = np.subtract(x_BD, self._shift_D, dtype=np.float64)
        shifted_BE = np.subtract(y_BE, self._shift_E, dtype=np.float64)
        self.rows += len(shifted_BD)
        self._sum_D += shifted_BD.sum(axis=0)
        self._sum_E += shifted_BE.sum(axis=0)
        self._xx_DD += shifted_BD.T @ shifted_BD
        self._yy_EE += shifted_BE.T @ shifted_BE
        self._xy_DE += shifted_BD.T @ shifted_BE

    def cka(self) -> float | None:
        mean_D, mean_E = self._sum_D / self.rows, self._sum_E / self.rows
        xx = np.linalg.norm(self._xx_DD - self.rows * np.outer(mean_D, mean_D))
        yy = np.linalg.norm(self._yy_EE - self.rows * np.outer(mean_E, mean_E))
        xy = np.linalg.norm(self._xy_DE - self.rows * np.outer(mean_D, mean_E))
        return min(float(xy**2 / (xx * yy)), 1.0) if xx > 0 and yy > 0 else None
