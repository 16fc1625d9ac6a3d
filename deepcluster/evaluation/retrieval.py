"""Retrieval: how far images of the same class lead when the training images are ranked by similarity to one.

Average precision of a query: the mean, over the ranked images of its class, of the precision down to each (Manning et
al. 2008, section 8.4); equally similar images share the last of their ranks, as in scikit-learn's
`average_precision_score`, which this equals at a fraction of its time. mAP: the mean over the queries.
Shapes: L ranked rows, S rows to score, D features, B queries of a block, R relevant rows of a query.
"""

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import in_order, l2_normalize, one_thread_a_product
from deepcluster.clustering.assignment import slices
from deepcluster.evaluation.held_out import Examples

MOST_QUERIES = 2000
_BLOCK_BYTES = 32 << 20


def mean_average_precision(examples: Examples, *, seed: int, most_queries: int = MOST_QUERIES) -> float | None:
    """mAP in (0, 1] of the rows to learn from, ranked by cosine similarity to each row to score.

    More than `most_queries` rows to score: that many, drawn by `seed`. Queries of whose class there is nothing to find
    are left out; None if that leaves none.
    """
    queries_Q = chosen_queries(len(examples.score_SD), seed=seed, most=most_queries)
    queries_Q = queries_Q[np.isin(examples.score_targets_S[queries_Q], examples.learn_targets_L)]
    if not len(queries_Q):
        return None
    ranked_LD, query_QD = l2_normalize(examples.learn_LD), l2_normalize(examples.score_SD[queries_Q])
    classes_Q = examples.score_targets_S[queries_Q]

    def work(rows: slice) -> list[float]:
        similarities_BL = query_QD[rows] @ ranked_LD.T
        return [
            average_precision(similarities_L, examples.learn_targets_L == name)
            for similarities_L, name in zip(similarities_BL, classes_Q[rows], strict=True)
        ]

    step = max(1, _BLOCK_BYTES // (4 * len(ranked_LD)))
    with one_thread_a_product():
        return float(np.mean([value for block in in_order(work, slices(len(queries_Q), step)) for value in block]))


def average_precision(scores_L: NDArray[np.floating], relevant_L: NDArray[np.bool_]) -> float:
    """Average precision in (0, 1] of a ranking by descending score; at least one entry must be relevant."""
    if not relevant_L.any():
        raise ValueError("average precision is of rankings with at least one relevant entry")
    ascending_L, found_R = np.sort(scores_L), np.sort(scores_L[relevant_L])
    down_to_R = len(ascending_L) - np.searchsorted(ascending_L, found_R, side="left")
    relevant_R = len(found_R) - np.searchsorted(found_R, found_R, side="left")
    return float(np.mean(relevant_R / down_to_R))


def chosen_queries(count: int, *, seed: int, most: int) -> NDArray[np.int64]:
    """Row numbers, ascending: all of them, or `most` drawn without replacement."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
