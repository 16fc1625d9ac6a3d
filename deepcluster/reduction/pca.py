"""PCA of features that come in blocks, with one result whatever the backend.

"streaming" never holds more than some blocks. The libraries want all rows in memory and only find the subspace. The
rows are centred on their float64 mean before they see them, since uncentred float32 sums whiten features that share
an offset wrongly; variances and axes within the subspace are then recomputed in float64 (Rayleigh-Ritz), so whitened
features have unit variance and no correlation.
Shapes: N images, D features, d components, B rows of a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import in_order, l2_normalize, one_thread_a_product
from deepcluster.distributed import ALONE, Process, processes_here
from deepcluster.errors import NumericsError
from deepcluster.memory import refuse_too_large
from deepcluster.metrics import refuse_non_finite
from deepcluster.reduction.moments import moments
from deepcluster.reduction.streaming import (
    PcaFit,
    canonical,
    check_components,
    checked,
    fit_streaming,
    principal_axes,
    project,
)

__all__ = [
    "Backend",
    "Blocks",
    "Components",
    "Reduction",
    "fit",
    "fit_transform",
    "l2_normalize",
    "reduce",
    "transform",
]

Backend = Literal["sklearn", "faiss", "streaming"]
Blocks = Callable[[int], Iterator[NDArray[np.floating]]]
"""Called with about how many rows a block shall have; gives all rows, in order, in blocks [B, D]."""

_BLOCK_ROWS = 4096
_FIT_BYTES = 64 << 20  # a block of the fit: large, since each is added to a D x D matrix
_REDUCE_BYTES = 16 << 20  # a block of the projection: every thread has one


@dataclass(frozen=True)
class Components:
    """What reduces features; all float32.

    Components are rows of norm 1 in descending order of variance. `explained_variance_d` has divisor N - 1;
    the ratio is to the variance of all D features.
    """

    components_dD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    explained_variance_d: NDArray[np.float32]
    explained_variance_ratio_d: NDArray[np.float32]


@dataclass(frozen=True)
class Reduction(Components):
    """Reduced features, float32, and what is needed to reduce others alike."""

    reduced_Nd: NDArray[np.float32]


def fit(
    blocks: Blocks,
    shape: tuple[int, ...],
    *,
    backend: Backend,
    components: int,
    seed: int,
    device: str | None = None,
    process: Process = ALONE,
    first_row: int = 0,
) -> Components:
    """Centred PCA of the rows [N, D] (`shape`) that `blocks` gives.

    Each component's largest loading is positive. A direction with no variance (see `streaming.canonical`) has
    variance 0 and a component of zeros.
    All backends give the same bytes on any number of cores: "streaming" uses all of them, the libraries one.
    `device`: a torch device that the streaming backend multiplies on if D >= 1,024; its last digits may differ.
    `seed` goes to scikit-learn, whose exact solvers do not draw from it. Of several processes, for "streaming" alone,
    `blocks` gives the own rows, from row `first_row` on.
    NumericsError: rows that are not finite, fewer than two rows, `components` over min(N, D).
    ResourceError: more than the available memory is needed; raised before the first block is asked for.
    """
    count, features = shape
    check_components(components, count, features)
    rows = _rows(features, _FIT_BYTES)
    needed = memory_needed(backend, count, features)
    what = f"pca.backend {backend}: {count:,} x {features:,} features"
    if backend == "streaming":
        refuse_too_large(needed * processes_here(), what, "reduce the features' number, or take a machine with more")
        found = fit_streaming(
            lambda: blocks(rows), components=components, device=device, process=process, first_row=first_row
        )
    else:
        streaming = memory_needed("streaming", count, features)
        refuse_too_large(needed, what, f"pca.backend streaming needs {streaming / 1e9:.2f} GB whatever their number")
        found = _fit_in_memory(_gathered(blocks(rows), count, features), backend, components, seed)
    components_dD, mean_D, variance_d, total = found
    ratio_d = variance_d / np.float32(total) if variance_d.any() else np.zeros_like(variance_d)
    return Components(components_dD, mean_D, variance_d, ratio_d)


def reduce(
    blocks: Blocks,
    features: int,
    found: Components | None,
    *,
    whiten: bool,
    normalize: bool,
    first_row: int = 0,
) -> Iterator[NDArray[np.float32]]:
    """Blocks [B, D] reduced as `found` says: whitened to variance 1 and L2-normalised, in that order, if asked.

    Without components the rows stay as they are, L2-normalised if asked. Float32 [B, d], on all cores; the same bytes
    on any number of them, and with any size of block to rounding. `first_row`: of the first block, for messages.
    NumericsError: rows that are not finite, before or after.
    """
    with one_thread_a_product():
        numbered = _numbered(blocks(_rows(features, _REDUCE_BYTES)), first_row)
        yield from in_order(lambda block: _reduced(*block, found, whiten, normalize), numbered)


def fit_transform(
    features_ND: NDArray[np.float32], *, backend: Backend, components: int, whiten: bool, normalize: bool, seed: int
) -> Reduction:
    """`fit` and `transform` of float32 [N, D] in memory. Constant features give zeros."""
    found = fit(_of(features_ND), features_ND.shape, backend=backend, components=components, seed=seed)
    parameters = (found.components_dD, found.mean_D, found.explained_variance_d)
    reduced_Nd = transform(features_ND, *parameters, whiten=whiten, normalize=normalize)
    return Reduction(*parameters, found.explained_variance_ratio_d, reduced_Nd)


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
    found = Components(components_dD, mean_D, explained_variance_d, explained_variance_d)
    blocks = reduce(_of(features_ND), features_ND.shape[1], found, whiten=whiten, normalize=normalize)
    reduced_Nd = np.empty((len(features_ND), len(components_dD)), dtype=np.float32)
    start = 0
    for block_Bd in blocks:
        reduced_Nd[start : start + len(block_Bd)] = block_Bd
        start += len(block_Bd)
    return reduced_Nd


def memory_needed(backend: Backend, count: int, features: int) -> float:
    """About how many bytes a fit takes at its peak, rows included: from measurements at D = 2,048 and 4,096."""
    square, rows = 8.0 * features**2, 4.0 * count * features
    if backend == "streaming":
        return 1.3 * square + 4 * min(_FIT_BYTES, 4.0 * _BLOCK_ROWS * features, rows)
    if count < features:
        return 3 * rows + 21.0 * count**2
    return rows + (6 if backend == "sklearn" else 3.5) * square


def _reduced(
    first_row: int, block: NDArray[np.floating], found: Components | None, whiten: bool, normalize: bool
) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        block_BD = np.asarray(block, dtype=np.float32)
    refuse_non_finite(block_BD, "features", first_row=first_row)
    if found is None:
        return l2_normalize(block_BD) if normalize else block_BD
    parameters = (found.components_dD, found.mean_D, found.explained_variance_d)
    reduced_Bd = project(block_BD, *parameters, whiten=whiten, normalize=normalize)
    if not np.isfinite(reduced_Bd).all():
        raise NumericsError("pca: features are too large for float32; scale them down")
    return reduced_Bd


def _fit_in_memory(
    rows_ND: NDArray[np.float32], backend: Literal["sklearn", "faiss"], components: int, seed: int
) -> PcaFit:
    """The same as `fit_streaming` finds, from the subspace that a library finds. Centres the rows in place."""
    count = len(rows_ND)
    if count < 2:
        raise NumericsError(f"pca: needs at least 2 images; got {count}")
    mean_D = rows_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows_ND -= mean_D
    match backend:
        case "faiss":
            basis_dD = _faiss_basis(rows_ND, components)
        case "sklearn":
            basis_dD = _sklearn_basis(rows_ND, components, seed)
    axes_dD, variance_d = _rayleigh_ritz(rows_ND, basis_dD)
    blocks = _of(rows_ND)(_BLOCK_ROWS)
    total = sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks) / (count - 1)
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
    blocks = _of(centred_ND)(_rows(centred_ND.shape[1], _REDUCE_BYTES))
    projected = (np.matmul(block, frame_Dd, dtype=np.float64) for block in blocks)
    rotation_dd, variance_d = principal_axes(moments(projected).covariance_DD, len(basis_dD))
    with one_thread_a_product():
        return rotation_dd @ frame_Dd.T, variance_d


def _gathered(blocks: Iterator[NDArray[np.floating]], count: int, features: int) -> NDArray[np.float32]:
    """All rows in one new array, each checked."""
    rows_ND, start = np.empty((count, features), np.float32), 0
    for block_BD in checked(blocks):
        rows_ND[start : start + len(block_BD)] = block_BD
        start += len(block_BD)
    return rows_ND


def _of(rows_ND: NDArray[np.float32]) -> Blocks:
    """Blocks of an array in memory."""

    def blocks(row_count: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(rows_ND), row_count):
            yield rows_ND[start : start + row_count]

    return blocks


def _rows(features: int, block_bytes: int) -> int:
    """How many rows a block has."""
    return max(1, min(_BLOCK_ROWS, block_bytes // (4 * features)))


def _numbered(blocks: Iterator[NDArray[np.floating]], row: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """(number of its first row, block) of every block, the first of which begins with `row`."""
    for block_BD in blocks:
        yield row, block_BD
        row += len(block_BD)
