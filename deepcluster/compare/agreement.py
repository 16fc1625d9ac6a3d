"""Two clusterings A and B of the same images: which cluster continues which, what moved, split and merged.

Every cluster keeps the number that it has on its own side. Shapes: N images, F pairs of clusters that share images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.matching import match_labels
from deepcluster.metrics import ari, nmi


@dataclass(frozen=True)
class Flow:
    """So many images are in cluster `a` of A and in cluster `b` of B; `matched`: b continues a."""

    a: int
    b: int
    images: int
    matched: bool


@dataclass(frozen=True)
class Parts:
    """A cluster of so many images, and its images by the cluster of the other side: only those above the threshold."""

    cluster: int
    images: int
    parts: Mapping[int, int]


@dataclass(frozen=True)
class Agreement:
    """flows: largest first. moved_N: bool [N], in another cluster than the one that continues the image's own.

    split: clusters of A of which at least two clusters of B hold the threshold's share each; merged: clusters of B to
    which at least two clusters of A give that share each. vanished, appeared: clusters that have images and no partner.
    """

    ari: float
    nmi: float
    flows: list[Flow]
    moved_N: NDArray[np.bool_]
    split: list[Parts]
    merged: list[Parts]
    vanished: list[int]
    appeared: list[int]


def agreement(
    labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer], *, threshold: float = 0.25
) -> Agreement:
    """Of two labelings >= 0 of the same images; clusters matched one to one so that most images stay (Hungarian).

    Takes memory for a table of the larger number of clusters squared (`matching.memory_needed`); threshold in (0, 0.5].
    """
    if not 0 < threshold <= 0.5:
        raise ValueError(f"threshold must be > 0 and <= 0.5; got {threshold}")
    k = int(max(labels_a_N.max(), labels_b_N.max())) + 1
    name_b_K = match_labels(labels_b_N.astype(np.int32), labels_a_N.astype(np.int32), k)
    renamed_N = name_b_K[labels_b_N]
    a_F, b_F, count_F = _pairs(labels_a_N, labels_b_N, k)
    found = zip(a_F.tolist(), b_F.tolist(), count_F.tolist(), (name_b_K[b_F] == a_F).tolist(), strict=True)
    flows = sorted((Flow(*values) for values in found), key=lambda flow: (-flow.images, flow.a, flow.b))
    forward = [(flow.a, flow.b, flow.images) for flow in flows]
    backward = [(flow.b, flow.a, flow.images) for flow in flows]
    return Agreement(
        ari=ari(labels_a_N, labels_b_N),
        nmi=nmi(labels_a_N, labels_b_N),
        flows=flows,
        moved_N=np.asarray(renamed_N != labels_a_N),
        split=_in_parts(forward, threshold),
        merged=_in_parts(backward, threshold),
        vanished=sorted({flow.a for flow in flows} - {flow.a for flow in flows if flow.matched}),
        appeared=sorted({flow.b for flow in flows} - {flow.b for flow in flows if flow.matched}),
    )


def _pairs(
    labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each pair of clusters that share images, and how many: int64 [F] three times."""
    codes_F, count_F = np.unique(labels_a_N.astype(np.int64) * k + labels_b_N, return_counts=True)
    return codes_F // k, codes_F % k, count_F.astype(np.int64)


def _in_parts(flows: Sequence[tuple[int, int, int]], threshold: float) -> list[Parts]:
    """Clusters of the first side with two or more parts of the threshold's share, by number; parts largest first."""
    sizes: dict[int, int] = {}
    for cluster, _, images in flows:
        sizes[cluster] = sizes.get(cluster, 0) + images
    parts: dict[int, dict[int, int]] = {}
    for cluster, other, images in flows:
        if images >= threshold * sizes[cluster]:
            parts.setdefault(cluster, {})[other] = images
    return [Parts(cluster, sizes[cluster], parts[cluster]) for cluster in sorted(parts) if len(parts[cluster]) > 1]
