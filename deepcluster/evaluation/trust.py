"""How far a final clustering can be trusted, measured without true labels.

The clusterings are those of `final_clusters`: k-means on L2-normalised features that are neither reduced nor whitened.
"Runs" of k-means differ in their seed alone. A clustering with fewer than two clusters that hold images has collapsed:
every measure of it is None, since it agrees with everything that has collapsed as well.
Shapes: N images, D features, K clusters, R runs of k-means, V images with a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.assignment import assign
from deepcluster.clustering.kmeans import Clustering, run_seed
from deepcluster.evaluation.choosing_k import sampled_silhouette, total_squares
from deepcluster.metrics import ari

SAME = 0.99
"""ARI from which on two clusterings count as one local optimum: a few images at a border do not make another."""
HALF_RESTARTS = 5
_BLOCK_VALUES = 1 << 20


class Cluster(Protocol):
    """`final_clusters` with k and the device fixed."""

    def __call__(self, features_ND: NDArray[np.float32], *, seed: int, restarts: int) -> Clustering: ...


@dataclass(frozen=True)
class Views:
    """Features [V, D] of images and of one augmented view of each; `rows_V` are the images' numbers."""

    rows_V: NDArray[np.int64]
    features_VD: NDArray[np.float32]
    views_VD: NDArray[np.float32]


@dataclass(frozen=True)
class Trust:
    """Measures of one final clustering, each explained at its function; None where it is not defined."""

    stability: float | None
    half_stability: float | None
    rival_gap: float | None
    explained: float | None
    silhouette: float | None
    margin: float | None
    view_agreement: float | None
    view_cosine: float | None


COLLAPSED = Trust(*[None] * 8)


def kmeans_runs(
    features_ND: NDArray[np.float32], *, cluster: Cluster, restarts: int, seed: int
) -> tuple[Clustering, list[Clustering]]:
    """(the run with the lowest objective, all runs). It has the labels of `cluster(features_ND, restarts=restarts)`."""
    runs = [cluster(features_ND, seed=run_seed(seed, run), restarts=1) for run in range(restarts)]
    return min(runs, key=_objective), runs


def measured(
    features_ND: NDArray[np.float32],
    best: Clustering,
    runs: Sequence[Clustering],
    views: Sequence[Views],
    *,
    cluster: Cluster,
    halvings: int,
    silhouette_rows: int,
    seed: int,
) -> Trust:
    """All measures of the clustering `best` of `runs`; those of views are means over the kinds of views given."""
    if np.count_nonzero(best.sizes_K) < 2:
        return COLLAPSED
    rows_ND = l2_normalize(features_ND)
    return Trust(
        stability=stability([run.labels_N for run in runs]),
        half_stability=half_stability(features_ND, cluster=cluster, halvings=halvings, k=len(best.sizes_K), seed=seed),
        rival_gap=rival_gap(best, runs),
        explained=explained(rows_ND, best),
        silhouette=sampled_silhouette(rows_ND, best.labels_N, count=silhouette_rows, seed=seed),
        margin=margin(rows_ND, best),
        view_agreement=_mean([view_agreement(best, view) for view in views]),
        view_cosine=_mean([view_cosine(view) for view in views]),
    )


def stability(labelings: Sequence[NDArray[np.integer]]) -> float | None:
    """Mean ARI in [-0.5, 1] over all pairs of labelings of the same images; None for fewer than two of them."""
    return _mean([ari(a_N, b_N) for a_N, b_N in combinations(labelings, 2)])


def half_stability(
    features_ND: NDArray[np.float32], *, cluster: Cluster, halvings: int, k: int, seed: int
) -> float | None:
    """Mean ARI of what two halves of the images make of all images; None where a half has fewer than k images.

    The images are halved at random, each half is clustered (the best of 5 runs), and each half's centroids label all
    images. Mean over `halvings` such pairs. It is the stability of Lange et al. 2004, who transfer a clustering of one
    half to the other, with ARI for their misclassification and nearest centroids for their classifier.
    """
    half = len(features_ND) // 2
    if half < k:
        return None
    rows_ND, rng = l2_normalize(features_ND), np.random.default_rng(seed)
    origin_D = rows_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    found = []
    for halving in range(halvings):
        order_N = rng.permutation(len(features_ND))
        labels = []
        for rows in (np.sort(order_N[:half]), np.sort(order_N[half:])):
            part = cluster(features_ND[rows], seed=run_seed(seed, halving), restarts=HALF_RESTARTS)
            labels.append(assign(rows_ND, part.centroids_Kd, origin_d=origin_D)[0])
        found.append(ari(*labels))
    return _mean(found)


def rival_gap(best: Clustering, runs: Sequence[Clustering]) -> float | None:
    """(objective of the second local optimum - that of the best) / that of the best, >= 0; None without a second one.

    The second is the run with the lowest objective among those whose ARI with the best is below 0.99.
    """
    rivals = [run for run in runs if ari(run.labels_N, best.labels_N) < SAME]
    least = _objective(best)
    if not rivals or least <= 0:
        return None
    return max(0.0, _objective(min(rivals, key=_objective)) / least - 1)


def explained(rows_ND: NDArray[np.float32], clustering: Clustering) -> float | None:
    """Share in [0, 1] of the rows' variance that the clustering accounts for; None for rows that are all the same."""
    total = total_squares(rows_ND)
    return 1 - float(clustering.distances_N.sum(dtype=np.float64)) / total if total else None


def margin(rows_ND: NDArray[np.float32], clustering: Clustering) -> float | None:
    """Mean over the rows of 1 - (distance to the nearest centroid / to the second), in [0, 1].

    The simplified silhouette (Hruschka et al. 2004). The quotient this way up stays finite on a centroid; a row as near
    to two centroids counts 0. Only clusters that hold images have part; None for fewer than two of them.
    """
    from scipy.spatial.distance import cdist

    centroids_KD = clustering.centroids_Kd[clustering.sizes_K > 0]
    if len(centroids_KD) < 2:
        return None
    total, step = 0.0, max(1, _BLOCK_VALUES // max(centroids_KD.shape))
    for start in range(0, len(rows_ND), step):
        two_B2 = np.partition(cdist(rows_ND[start : start + step], centroids_KD), 1, axis=1)[:, :2]
        quotient_B = np.divide(two_B2[:, 0], two_B2[:, 1], out=np.ones(len(two_B2)), where=two_B2[:, 1] > 0)
        total += float((1 - quotient_B).sum())
    return total / len(rows_ND)


def view_agreement(clustering: Clustering, views: Views) -> float:
    """Share in [0, 1] of the images whose augmented view is nearest to the same centroid as the image itself."""
    rows_VD = l2_normalize(views.views_VD)
    labels_V, _ = assign(rows_VD, clustering.centroids_Kd, origin_d=rows_VD.mean(axis=0))
    return float(np.mean(labels_V == clustering.labels_N[views.rows_V]))


def view_cosine(views: Views) -> float:
    """Mean cosine in [-1, 1] of the features of an image and of its view; 0 where one of them is all zeros."""
    images_VD, views_VD = l2_normalize(views.features_VD), l2_normalize(views.views_VD)
    return float(np.einsum("vd,vd->v", images_VD, views_VD, dtype=np.float64).mean())


def agreements(labelings: Sequence[NDArray[np.integer]]) -> list[float | None]:
    """Of each labeling the mean ARI with all the others: how near it is to their consensus. None where it is alone.

    A labeling of one label has None, and no part in the others' means.
    """
    kept = [i for i, labels_N in enumerate(labelings) if np.ptp(labels_N)]
    pairs = {frozenset(pair): ari(labelings[pair[0]], labelings[pair[1]]) for pair in combinations(kept, 2)}
    return [_mean([value for pair, value in pairs.items() if i in pair]) for i in range(len(labelings))]


def neighbour_agreements(labelings: Sequence[NDArray[np.integer]]) -> list[float | None]:
    """Of each labeling the mean ARI with the one before and the one after it, of those that there are.

    A labeling of one label has None, and is nobody's neighbour.
    """
    kept = [i for i, labels_N in enumerate(labelings) if np.ptp(labels_N)]
    steps = {(i, j): ari(labelings[i], labelings[j]) for i, j in pairwise(kept) if j == i + 1}
    return [_mean([value for step, value in steps.items() if i in step]) for i in range(len(labelings))]


def _objective(clustering: Clustering) -> float:
    return float(clustering.objective[-1])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
