"""PCA from one pass over blocks of rows: memory is a block and a D x D matrix for each thread, whatever N is.

The covariance is accumulated in float64 about the mean of the first block, so a large offset common to all features
costs no digits. Components, variances and whitened rows equal a float64 PCA of all rows to float32 rounding.
Shapes: N images, D features, d components, B rows of a block.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster.errors import NumericsError
from deepcluster.metrics import refuse_non_finite
from deepcluster.reduction.blockwise import in_order, one_thread_a_product

# A direction whose standard deviation is below a millionth of the features' root mean square norm is taken to have no
# variance: rounding of float32 features alone reaches about a tenth of that, and whitening would blow it up to 1.
_VARIANCE_FLOOR = 1e-12


class PcaFit(NamedTuple):
    """What a fit found; unpacks as a plain tuple."""

    components_dD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    explained_variance_d: NDArray[np.float32]
    total_variance: float


class Moments(NamedTuple):
    """Of all rows seen: how many, their mean, and their covariance with divisor rows - 1."""

    rows: int
    mean_D: NDArray[np.float64]
    covariance_DD: NDArray[np.float64]


def fit_streaming(blocks: Callable[[], Iterator[NDArray[np.float32]]], *, components: int) -> PcaFit:
    """Components (descending variance), mean, explained variance and total variance of the rows of `blocks()`.

    `blocks` is called once. Directions without variance get variance 0 and a component of zeros.
    NumericsError: rows that are not finite, fewer than two rows, `components` over min(N, D).
    """
    count, mean_D, covariance_DD = moments(_checked(blocks()))
    check_components(components, count, len(mean_D))
    basis_dD, variance_d = principal_axes(covariance_DD, components)
    total = float(np.trace(covariance_DD))
    basis_dD, variance_d = canonical(basis_dD, variance_d, energy=total + float(mean_D @ mean_D))
    return PcaFit(basis_dD.astype(np.float32), mean_D.astype(np.float32), variance_d.astype(np.float32), total)


def project(
    block_BD: NDArray[np.float32],
    components_dD: NDArray[np.float32],
    mean_D: NDArray[np.float32],
    explained_variance_d: NDArray[np.float32],
    *,
    whiten: bool,
    normalize: bool,
) -> NDArray[np.float32]:
    """Centred, projected, then whitened and L2-normalised if asked for: float32 [B, d].

    Whitening divides by sqrt(explained variance); components with variance 0 give zeros.
    """
    centred_BD = np.subtract(block_BD, mean_D, dtype=np.float32)
    reduced_Bd: NDArray[np.float32] = np.matmul(centred_BD, components_dD.T, dtype=np.float32)
    if whiten:
        deviation_d = np.sqrt(explained_variance_d.astype(np.float64))
        scale_d = np.divide(1.0, deviation_d, out=np.zeros_like(deviation_d), where=deviation_d > 0)
        reduced_Bd *= scale_d.astype(np.float32)
    return l2_normalize(reduced_Bd) if normalize else reduced_Bd


def l2_normalize(rows_Nd: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their Euclidean norm (summed in float64), float32; rows of zeros stay zeros."""
    norms_N = np.sqrt(np.einsum("nd,nd->n", rows_Nd, rows_Nd, dtype=np.float64)).astype(np.float32)
    norms_N[norms_N == 0] = 1.0
    return np.asarray(np.divide(rows_Nd, norms_N[:, None], dtype=np.float32))


def moments(blocks: Iterable[NDArray[np.floating]]) -> Moments:
    """Count, mean and covariance (divisor N - 1) of the rows of all blocks, one pass, float64."""
    with one_thread_a_product():  # also what `blocks` computes
        blocks = iter(blocks)
        first_BD = next(blocks, None)
        if first_BD is None:
            raise NumericsError("pca: needs at least 2 images; got 0")
        shift_D = first_BD.mean(axis=0, dtype=np.float64)
        count, sum_D, products_DD = 0, np.zeros_like(shift_D), np.zeros((len(shift_D), len(shift_D)))

        def sums(block_BD: NDArray[np.floating]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
            shifted_BD = np.subtract(block_BD, shift_D, dtype=np.float64)
            return len(shifted_BD), shifted_BD.sum(axis=0), shifted_BD.T @ shifted_BD

        for rows, block_sum_D, block_products_DD in in_order(sums, chain([first_BD], blocks)):
            count += rows
            sum_D += block_sum_D
            products_DD += block_products_DD
    if count < 2:
        raise NumericsError(f"pca: needs at least 2 images; got {count}")
    products_DD -= np.outer(sum_D, sum_D / count)
    products_DD /= count - 1
    return Moments(count, shift_D + sum_D / count, products_DD)


def principal_axes(
    covariance_DD: NDArray[np.float64], components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The `components` leading eigenvectors as rows, and their eigenvalues, descending."""
    from scipy.linalg import eigh

    size = len(covariance_DD)
    with one_thread_a_product():
        values, vectors = eigh(covariance_DD, subset_by_index=[size - components, size - 1])
    return np.ascontiguousarray(vectors[:, ::-1].T), values[::-1]


def canonical(
    basis_dD: NDArray[np.float64], variance_d: NDArray[np.float64], *, energy: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sign and floor rules, the same for every backend.

    The loading of largest magnitude (the first, if tied) is positive. A variance not above 1e-12 x `energy`, the mean
    squared norm of a row, is 0 and its component all zeros: it is rounding, and its direction arbitrary.
    """
    largest_d = basis_dD[np.arange(len(basis_dD)), np.abs(basis_dD).argmax(axis=1)]
    kept_d = variance_d > _VARIANCE_FLOOR * energy
    sign_d = np.where(largest_d < 0, -1.0, 1.0)
    return np.where(kept_d[:, None], basis_dD * sign_d[:, None], 0.0), np.where(kept_d, variance_d, 0.0)


def check_components(components: int, count: int, features: int) -> None:
    """NumericsError unless 1 <= components <= min(N, D)."""
    limit = min(count, features)
    if components > limit:
        text = f"must be <= min(N, D) = min({count}, {features}); got {components}"
        raise NumericsError(f"pca.components: {text}")
    if components < 1:
        raise NumericsError(f"pca.components: must be >= 1; got {components}")


def _checked(blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The non-empty blocks; the first row that is not finite stops the pass."""
    row = 0
    for block_BD in blocks:
        refuse_non_finite(block_BD, "features", first_row=row)
        row += len(block_BD)
        if len(block_BD):
            yield block_BD
