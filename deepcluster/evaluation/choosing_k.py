"""Measures for choosing the number of clusters, label-free ones first.

Shapes: N rows, d components.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.kmeans import Clustering
from deepcluster.metrics import ari, cluster_statistics, nmi


@dataclass(frozen=True)
class Choice:
    """One k. Of the run with the lowest objective, but for stability.

    objective: sum of squared distances; falls with k. explained: 1 - objective / (the same for k = 1), in [0, 1].
    silhouette: mean over sampled rows, -1 to 1 (Rousseeuw 1987); None where fewer than two clusters are in the sample.
    stability: mean ARI over all pairs of runs; None for one run. nmi: with the true labels; None without.
    """

    k: int
    objective: float
    explained: float
    silhouette: float | None
    stability: float | None
    effective_k: float
    largest_share: float
    empty: int
    nmi: float | None


def choices(
    rows_Nd: NDArray[np.float32],
    ks: Sequence[int],
    *,
    cluster: Callable[[int, int], Clustering],
    runs: int,
    silhouette_rows: int,
    seed: int,
    targets_N: NDArray[np.integer] | None,
) -> Iterator[Choice]:
    """Yields one `Choice` for each k, as they are done. `cluster(k, run)` makes run 0, 1, ... of a k."""
    total = total_squares(rows_Nd)
    for k in ks:
        found = [cluster(k, run) for run in range(runs)]
        best = min(found, key=lambda clustering: float(clustering.objective[-1]))
        statistics = cluster_statistics(best.sizes_K)
        objective = float(best.distances_N.sum(dtype=np.float64))
        pairs = [ari(a.labels_N, b.labels_N) for a, b in combinations(found, 2)]
        yield Choice(
            k=k,
            objective=objective,
            explained=1 - objective / total if total else 1.0,
            silhouette=sampled_silhouette(rows_Nd, best.labels_N, count=silhouette_rows, seed=seed),
            stability=float(np.mean(pairs)) if pairs else None,
            effective_k=statistics["effective_k"],
            largest_share=statistics["largest_share"],
            empty=int(statistics["empty"]),
            nmi=None if targets_N is None else nmi(best.labels_N, targets_N),
        )


def sampled_silhouette(
    rows_Nd: NDArray[np.float32], labels_N: NDArray[np.integer], *, count: int, seed: int
) -> float | None:
    """scikit-learn's silhouette of `count` rows drawn without replacement, among themselves, Euclidean."""
    from sklearn.metrics import silhouette_score

    size = min(count, len(rows_Nd))
    chosen_S = np.sort(np.random.default_rng(seed).choice(len(rows_Nd), size, replace=False))
    if not 2 <= len(np.unique(labels_N[chosen_S])) < size:
        return None
    return float(silhouette_score(rows_Nd[chosen_S], labels_N[chosen_S]))


def total_squares(rows_Nd: NDArray[np.float32]) -> float:
    """Sum of squared distances to the mean: what one cluster would leave."""
    mean_d = rows_Nd.mean(axis=0, dtype=np.float64)
    return sum(float(np.square(rows_Nd[start : start + 4096] - mean_d).sum()) for start in range(0, len(rows_Nd), 4096))
