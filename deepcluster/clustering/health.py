"""Whether a clustering can be trained on, or has collapsed.

Shapes: N images, d components, K clusters.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.remedies import remedies
from deepcluster.metrics import cluster_statistics, collapse_warning, nmi
from deepcluster.params import ClusterMethod

_SAMPLE = 1024


@dataclass(frozen=True)
class Health:
    """What tells a collapsed clustering from a sound one.

    effective_k: exp of the entropy of the sizes, 1 to K. largest_share: of the images, in the largest cluster.
    empty: clusters without an image. feature_rank: effective rank of the features (`effective_rank`).
    drift: 1 - NMI with the labels of the epoch before, 0 (the same) to 1 (unrelated); None in the first epoch.
    """

    effective_k: float
    largest_share: float
    empty: int
    feature_rank: float
    drift: float | None

    def attributes(self) -> Mapping[str, float | int | None]:
        """For an artifact: six significant digits, since the last ones of a BLAS sum depend on its threads."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Limits:
    """What counts as collapsed; see `params.Collapse`."""

    min_effective_k: float
    max_largest_share: float
    max_empty: float
    min_feature_rank: float
    max_drift: float


def health(
    sizes_K: NDArray[np.int64],
    labels_N: NDArray[np.int32],
    previous_N: NDArray[np.int32] | None,
    variance_d: NDArray[np.floating],
) -> Health:
    """Of a clustering, the labels of the epoch before (if any) and the variances of the features' components."""
    found = cluster_statistics(sizes_K)
    return Health(
        effective_k=found["effective_k"],
        largest_share=found["largest_share"],
        empty=int(found["empty"]),
        feature_rank=effective_rank(variance_d),
        drift=None if previous_N is None else 1.0 - nmi(labels_N, previous_N),
    )


def effective_rank(variance_d: NDArray[np.floating]) -> float:
    """exp of the entropy of the shares of standard deviation: 1 for one direction, d for d equal ones.

    Roy and Vetterli (2007), whose singular values are proportional to the standard deviations. 0 without variance.
    """
    deviation_d = np.sqrt(np.clip(np.asarray(variance_d, np.float64), 0, None))
    if not deviation_d.any():
        return 0.0
    share_d = deviation_d / deviation_d.sum()
    share_d = share_d[share_d > 0]
    return float(np.exp(-np.sum(share_d * np.log(share_d))))


def variances(rows_Nd: NDArray[np.float32]) -> NDArray[np.float64]:
    """The variances along the principal axes of at most 1,024 rows, evenly spaced: for rows that no PCA has seen."""
    return variances_of(rows_Nd[spread(len(rows_Nd))])


def spread(count: int) -> NDArray[np.int64]:
    """The numbers of at most 1,024 of so many rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)


def variances_of(rows_Sd: NDArray[np.float32]) -> NDArray[np.float64]:
    """The variances along the principal axes of these rows."""
    centred_Sd = rows_Sd.astype(np.float64)
    centred_Sd -= centred_Sd.mean(axis=0)
    return np.asarray(np.linalg.svd(centred_Sd, compute_uv=False) ** 2 / max(1, len(centred_Sd) - 1))


def collapsed(
    found: Health,
    sizes_K: NDArray[np.int64],
    components: int,
    limits: Limits,
    *,
    method: ClusterMethod = "kmeans",
    refined: bool = False,
) -> str | None:
    """A sentence that says what is wrong and what to try, or None. With one component no rank is asked for.

    method, refined: how the clusters were found, and whether by section `refine`; these decide what to try.
    """
    k, advice = len(sizes_K), remedies(method, refined=refined)
    if components > 1 and found.feature_rank < limits.min_feature_rank:
        return (
            f"collapse: the features vary along {found.feature_rank:.2f} directions (effective rank; least allowed "
            f"{limits.min_feature_rank:g}), so all images look alike to the backbone; try a lower train.optimizer.lr, "
            f"more augmentation, or pca.components > 1 with {advice.whiten}"
        )
    if found.empty > limits.max_empty * k:
        return (
            f"collapse: {found.empty} of {k} clusters are empty, since there are fewer distinct images than clusters; "
            f"try {advice.k}: {max(2, k - found.empty)}, or look for duplicated images"
        )
    sizes = {"min_effective_share": limits.min_effective_k, "max_largest_share": limits.max_largest_share}
    if warning := collapse_warning(sizes_K, **sizes):
        return f"{warning}; try {advice.others}, or a lower train.optimizer.lr"
    if found.drift is not None and found.drift > limits.max_drift:
        return (
            f"drift: the labels share {1 - found.drift:.2f} NMI with those of the epoch before "
            f"(drift {found.drift:.2f}, most allowed {limits.max_drift:g}); "
            f"try {advice.fewer} or a lower train.optimizer.lr"
        )
    return None
