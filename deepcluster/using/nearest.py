"""Images to clusters: features, reduced, and the two nearest centroids, by the code that the stages run.

Labels of the training images in their order are those of the artifact: batches have the size that they had there, the
last one is filled up as there, rows are reduced in the same blocks, and the nearest centroid is exact
(`clustering.assignment`).
Shapes: N images, C channels, S pixels a side, D features, d components, K clusters, B rows of a block.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster.artifacts.shards import joined, regroup
from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.assignment import assign, slices, squared_distances
from deepcluster.features import extract_features
from deepcluster.reduction.pca import reduce
from deepcluster.using.bundle import Bundle, Clusters, Reduction

_IMAGES_AT_ONCE = 1024
_SCORES = 1 << 21


@dataclass(frozen=True)
class Placement:
    """Of N images: the nearest cluster and the Euclidean distance to its centroid, the second nearest and its distance.

    labels_N, second_N: int32; second_N is -1, and its distance NaN, where there is one cluster only.
    distances_N, second_distances_N: float64, of float32 squares. outliers_N: beyond the cluster's threshold.
    """

    labels_N: NDArray[np.int32]
    distances_N: NDArray[np.float64]
    second_N: NDArray[np.int32]
    second_distances_N: NDArray[np.float64]
    outliers_N: NDArray[np.bool_]


def place(bundle: Bundle, images: Iterable[NDArray[np.uint8]], device: torch.device) -> Placement:
    """The clusters of images that come in blocks uint8 [B, C, S, S] of any size; only some blocks are held at once."""
    features = features_of(bundle, images, device)
    parts = [nearest(rows, bundle.clusters, bundle.reduction) for rows in reduced(features, bundle.reduction)]
    return joined_placements(parts)


def joined_placements(parts: Sequence[Placement]) -> Placement:
    """One placement of the images of all; of no parts, one of no images."""
    nothing = Placement(*(np.empty(0, dtype) for dtype in (np.int32, float, np.int32, float, bool)))
    columns = zip(*(vars(part).values() for part in [nothing, *parts]), strict=True)
    return Placement(*(np.concatenate(column) for column in columns))


def features_of(
    bundle: Bundle, images: Iterable[NDArray[np.uint8]], device: torch.device
) -> Iterator[NDArray[np.float32]]:
    """The backbone's features, float32 [B, D], every batch filled up to the size that it had in training."""
    size, preprocessing = bundle.features.batch_size, bundle.preprocessing
    for _, pieces in regroup(images, size * max(1, _IMAGES_AT_ONCE // size)):
        rows = joined(pieces)
        missing = -len(rows) % size
        blocks = extract_features(
            bundle.backbone,
            np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows,
            batch_size=size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            device=device,
            precision=bundle.features.precision,
        )
        yield np.concatenate(list(blocks))[: len(rows)]


def reduced(features: Iterable[NDArray[np.float32]], reduction: Reduction) -> Iterator[NDArray[np.float32]]:
    """Features [B, D] in the space of the centroids, float32 [B, d].

    Each block on its own: a reduction keeps libraries to one thread while it is open, and the network wants them all.
    """
    for _, pieces in regroup(features, reduction.block_rows):
        block_BD = joined(pieces)
        settings = {"whiten": reduction.whiten, "normalize": reduction.normalize}
        for rows_Bd in reduce(partial(_only, block_BD), block_BD.shape[1], reduction.components, **settings):
            yield l2_normalize(rows_Bd) if reduction.spherical else rows_Bd


def _only(block_BD: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.floating]]:
    """One block whole, however many rows are asked for."""
    yield block_BD


def nearest(rows_Nd: NDArray[np.float32], clusters: Clusters, reduction: Reduction) -> Placement:
    """The two nearest centroids of each row. Clusters that no training image is in are not asked.

    k-means leaves a cluster empty only where every row lies on a centroid; its own centroid then is a leftover, maybe a
    copy of another.
    """
    numbers_A = np.flatnonzero(clusters.sizes_K).astype(np.int32)
    centroids_Ad = clusters.centroids_Kd[numbers_A]
    origin_d = np.zeros(rows_Nd.shape[1], np.float32)
    if not reduction.spherical:
        origin_d = np.average(centroids_Ad, axis=0, weights=clusters.sizes_K[numbers_A]).astype(np.float32)
    places_N, squared_N = assign(rows_Nd, centroids_Ad, origin_d=origin_d)
    distances_N, labels_N = _root(squared_N), numbers_A[places_N]
    if len(numbers_A) < 2:
        second_N, second_distances_N = np.full(len(rows_Nd), -1, np.int32), np.full(len(rows_Nd), np.nan)
    else:
        others_N = _second(rows_Nd, centroids_Ad, places_N, origin_d)
        second_N, second_distances_N = numbers_A[others_N], _root(squared_distances(rows_Nd, centroids_Ad[others_N]))
    return Placement(labels_N, distances_N, second_N, second_distances_N, distances_N > clusters.thresholds_K[labels_N])


def _second(
    rows_Nd: NDArray[np.float32],
    centroids_Kd: NDArray[np.float32],
    labels_N: NDArray[np.int32],
    origin_d: NDArray[np.float32],
) -> NDArray[np.int32]:
    """The nearest centroid but the row's own, by float64 products; the lowest number if tied."""
    nearby_Kd = np.subtract(centroids_Kd, origin_d, dtype=np.float64)
    norms_K = np.einsum("kd,kd->k", nearby_Kd, nearby_Kd)
    second_N = np.empty(len(rows_Nd), np.int32)
    for rows in slices(len(rows_Nd), max(1, _SCORES // len(centroids_Kd))):
        scores_BK = norms_K - 2 * (np.subtract(rows_Nd[rows], origin_d, dtype=np.float64) @ nearby_Kd.T)
        scores_BK[np.arange(len(scores_BK)), labels_N[rows]] = np.inf
        second_N[rows] = scores_BK.argmin(axis=1)
    return second_N


def _root(squared_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """The distance, of the float32 square that artifacts hold: thresholds of these and distances compare exactly."""
    return np.sqrt(squared_N.astype(np.float32).astype(np.float64))
