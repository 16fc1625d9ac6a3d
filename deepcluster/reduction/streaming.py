"""PCA from one pass over blocks of rows: memory is some blocks and a D x D matrix, whatever N is.

Components, variances and whitened rows equal a float64 PCA of all rows to float32 rounding (see `moments`).
Shapes: N images, D features, d components, B rows of a block.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import l2_normalize, one_thread_a_product
from deepcluster.distributed import ALONE, Process
from deepcluster.errors import NumericsError
from deepcluster.metrics import refuse_beyond_float32, refuse_non_finite
from deepcluster.reduction.moments import Moments, moments

# A direction whose standard deviation is below a millionth of the features' root mean square norm is taken to have no
# variance: rounding of float32 features alone reaches about a tenth of that, and whitening would blow it up to 1.
_VARIANCE_FLOOR = 1e-12


class PcaFit(NamedTuple):
    """What a fit found; unpacks as a plain tuple."""

    components_dD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    explained_variance_d: NDArray[np.float32]
    total_variance: float


def fit_streaming(
    blocks: Callable[[], Iterator[NDArray[np.floating]]],
    *,
    components: int,
    device: str | None = None,
    process: Process = ALONE,
    first_row: int = 0,
) -> PcaFit:
    """Components (descending variance), mean, explained variance and total variance of the rows of `blocks()`.

    `blocks` is called once. Directions without variance get variance 0 and a component of zeros. Of several processes
    each gives its own rows, from row `first_row` of all on, and all get what the first finds for all rows.
    NumericsError: rows that are not finite, fewer than two rows, `components` over min(N, D).
    """
    found = moments(checked(blocks(), first_row), device=device, process=process)
    fit = _fit(found, components) if process.first else None
    if process.count == 1:
        assert fit is not None
        return fit
    return PcaFit(
        process.shared(fit and fit.components_dD),
        process.shared(fit and fit.mean_D),
        process.shared(fit and fit.explained_variance_d),
        process.from_first(fit and fit.total_variance),
    )


def _fit(found: Moments, components: int) -> PcaFit:
    count, mean_D, covariance_DD = found
    check_components(components, count, len(mean_D))
    total = float(np.trace(covariance_DD))
    basis_dD, variance_d = principal_axes(covariance_DD, components)
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


def principal_axes(
    covariance_DD: NDArray[np.float64], components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The `components` leading eigenvectors as rows, and their eigenvalues, descending. Destroys the covariance."""
    from scipy.linalg import eigh

    size = len(covariance_DD)
    with one_thread_a_product():  # symmetric, so its transpose serves: LAPACK wants columns and works in place
        values, vectors = eigh(covariance_DD.T, subset_by_index=[size - components, size - 1], overwrite_a=True)
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


def checked(blocks: Iterator[NDArray[np.floating]], row: int = 0) -> Iterator[NDArray[np.float32]]:
    """The non-empty blocks as float32; the first row that is not finite (there), or far too large, stops the pass.

    `row`: the number of the first row, for the message.
    """
    for block in blocks:
        with np.errstate(over="ignore"):
            block_BD = np.asarray(block, dtype=np.float32)
        refuse_non_finite(block_BD, "features", first_row=row)
        refuse_beyond_float32(block_BD, "features")
        row += len(block_BD)
        if len(block_BD):
            yield block_BD
