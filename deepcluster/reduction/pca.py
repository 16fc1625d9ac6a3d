"""PCA of features in memory, with one result whatever the backend.

A backend only finds the subspace. Features are centred on their float64 mean before it sees them, since uncentred
float32 sums whiten features that share an offset wrongly; variances and axes within the subspace are then
recomputed in float64 (Rayleigh-Ritz), so whitened features have unit variance and no correlation.
Shapes: N images, D features, d components.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepcluster.errors import NumericsError
from deepcluster.metrics import refuse_non_finite
from deepcluster.reduction.blockwise import in_order, one_thread_a_product
from deepcluster.reduction.streaming import (
    PcaFit,
    canonical,
    check_components,
    fit_streaming,
    l2_normalize,
    moments,
    principal_axes,
    project,
)

__all__ = ["Backend", "Reduction", "fit_transform", "l2_normalize", "transform"]

Backend = Literal["sklearn", "faiss", "streaming"]

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Reduction:
    """Reduced features and what is needed to reduce others alike; all float32.

    Components are rows of norm 1 in descending order of variance. `explained_variance_d` has divisor N - 1;
    the ratio is to the variance of all D features.
    """

    reduced_Nd: NDArray[np.float32]
    components_dD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    explained_variance_d: NDArray[np.float32]
    explained_variance_ratio_d: NDArray[np.float32]


def fit_transform(
    features_ND: NDArray[np.float32], *, backend: Backend, components: int, whiten: bool, normalize: bool, seed: int
) -> Reduction:
    """Centred PCA of float32 [N, D]; whitened to variance 1 (divisor N - 1) and L2-normalised, in that order, if asked.

    Each component's largest loading is positive. A direction with no variance (see `streaming.canonical`) has
    variance 0, a component of zeros and reduced values of 0, so constant features give zeros.
    All backends give the same bytes on any number of cores: "streaming" uses all of them, the libraries one.
    `seed` goes to scikit-learn, whose exact solvers do not draw from it.
    NumericsError: rows that are not finite, fewer than two rows, `components` over min(N, D).
    """
    count, features = features_ND.shape
    check_components(components, count, features)
    refuse_non_finite(features_ND, "features")
    if backend == "streaming":
        fit = fit_streaming(lambda: _blocks(features_ND), components=components)
    else:
        fit = _fit_in_memory(features_ND, backend, components, seed)
    components_dD, mean_D, variance_d, total = fit
    reduced_Nd = transform(features_ND, components_dD, mean_D, variance_d, whiten=whiten, normalize=normalize)
    ratio_d = variance_d / np.float32(total) if variance_d.any() else np.zeros_like(variance_d)
    return Reduction(reduced_Nd, components_dD, mean_D, variance_d, ratio_d)


def transform(
    features_ND: NDArray[np.float32],
    components_dD: NDArray[np.float32],
    mean_D: NDArray[np.float32],
    explained_variance_d: NDArray[np.float32],
    *,
    whiten: bool,
    normalize: bool,
) -> NDArray[np.float32]:
    """Features [N, D] reduced as in a fit with these parameters: float32 [N, d]. NumericsError where not finite."""
    refuse_non_finite(features_ND, "features")
    reduced_Nd = np.empty((len(features_ND), len(components_dD)), dtype=np.float32)

    def reduce(rows: slice) -> None:
        reduced_Nd[rows] = project(
            features_ND[rows], components_dD, mean_D, explained_variance_d, whiten=whiten, normalize=normalize
        )

    with one_thread_a_product():
        for _ in in_order(reduce, _block_rows(len(features_ND))):
            pass
    if not np.isfinite(reduced_Nd).all():
        raise NumericsError("pca: features are too large for float32; scale them down")
    return reduced_Nd


def _fit_in_memory(
    features_ND: NDArray[np.float32], backend: Literal["sklearn", "faiss"], components: int, seed: int
) -> PcaFit:
    """The same as `fit_streaming` finds, from the subspace that a library finds."""
    count = len(features_ND)
    if count < 2:
        raise NumericsError(f"pca: needs at least 2 images; got {count}")
    mean_D = features_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred_ND = np.subtract(features_ND, mean_D, dtype=np.float32)
    match backend:
        case "faiss":
            basis_dD = _faiss_basis(centred_ND, components)
        case "sklearn":
            basis_dD = _sklearn_basis(centred_ND, components, seed)
    axes_dD, variance_d = _rayleigh_ritz(centred_ND, basis_dD)
    total = sum(float(np.square(block, dtype=np.float64).sum()) for block in _blocks(centred_ND)) / (count - 1)
    energy = total + float(np.square(mean_D, dtype=np.float64).sum())
    axes_dD, variance_d = canonical(axes_dD, variance_d, energy=energy)
    return PcaFit(axes_dD.astype(np.float32), mean_D, variance_d.astype(np.float32), total)


def _faiss_basis(centred_ND: NDArray[np.float32], components: int) -> NDArray[np.float32]:
    import faiss

    count, features = centred_ND.shape
    pca = faiss.PCAMatrix(features, components)
    pca.max_points_per_d = -(-count // features)  # as many as there are: the default looks at 1,000 x D rows only
    with one_thread_a_product():
        pca.train(centred_ND)
    return np.asarray(faiss.vector_to_array(pca.A), dtype=np.float32).reshape(components, features)


def _sklearn_basis(centred_ND: NDArray[np.float32], components: int, seed: int) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if centred_ND.shape[0] >= centred_ND.shape[1] else "full"
    pca = PCA(components, svd_solver=solver, random_state=seed % 2**32)
    with (
        one_thread_a_product(),
        np.errstate(invalid="ignore"),
    ):  # constant features: its variance ratio is 0 / 0, and not used
        pca.fit(centred_ND)
    return np.asarray(pca.components_, dtype=np.float32)


def _rayleigh_ritz(
    centred_ND: NDArray[np.float32], basis_dD: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal axes of the span of `basis_dD` along which the rows are uncorrelated, and their variances, float64.

    Rows of `basis_dD` that a backend left undefined (rank below d) may be anything, NaN included.
    """
    with one_thread_a_product():
        frame_Dd, _ = np.linalg.qr(np.nan_to_num(basis_dD).T.astype(np.float64))
    projected = (np.matmul(block, frame_Dd, dtype=np.float64) for block in _blocks(centred_ND))
    rotation_dd, variance_d = principal_axes(moments(projected).covariance_DD, len(basis_dD))
    with one_thread_a_product():
        return rotation_dd @ frame_Dd.T, variance_d


def _blocks(rows_ND: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for rows in _block_rows(len(rows_ND)):
        yield rows_ND[rows]


def _block_rows(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK_ROWS):
        yield slice(start, start + _BLOCK_ROWS)
