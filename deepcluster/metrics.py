"""Scores of a clustering, with and without true labels; numpy only, scikit-learn and scipy imported when called.

Labels and targets are int arrays of shape [N] whose values are names, not numbers: any renaming gives the same score.
Shapes: N images, D features, K clusters, A and B distinct labels of two labelings.
"""

import numpy as np
from numpy.typing import NDArray

from deepcluster.errors import NumericsError

_NAMED_ROWS = 5
_BLOCK_BYTES = 64 * 2**20
_LARGEST = 1e15  # 1e30 squared, which leaves room for a hundred million summands


def nmi(labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer]) -> float:
    """NMI in [0, 1] of two labelings; arithmetic-mean normalisation (Vinh et al. 2010). Two constant ones score 1."""
    from sklearn.metrics import normalized_mutual_info_score

    _check_pair(labels_a_N, labels_b_N)
    value = normalized_mutual_info_score(labels_a_N, labels_b_N, average_method="arithmetic")
    return min(max(float(value), 0.0), 1.0)


def ari(labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer]) -> float:
    """Adjusted Rand index in [-0.5, 1]; 0 is what chance gives (Hubert and Arabie 1985)."""
    from sklearn.metrics import adjusted_rand_score

    _check_pair(labels_a_N, labels_b_N)
    return float(adjusted_rand_score(labels_a_N, labels_b_N))


def hungarian_accuracy(labels_N: NDArray[np.integer], targets_N: NDArray[np.integer]) -> float:
    """Share in (0, 1] of images right under the best one-to-one matching of clusters with classes.

    With more clusters than classes the clusters left over count as wrong; with fewer, the classes left over do.
    """
    from scipy.optimize import linear_sum_assignment

    table_AB = contingency(labels_N, targets_N)
    rows, columns = linear_sum_assignment(table_AB, maximize=True)
    return float(table_AB[rows, columns].sum() / table_AB.sum())


def purity(labels_N: NDArray[np.integer], targets_N: NDArray[np.integer]) -> float:
    """Share in (0, 1] of images right when each cluster answers its most frequent class (many clusters to one class).

    It grows with the number of clusters, to 1 at one image a cluster: compare only at equal k.
    """
    table_AB = contingency(labels_N, targets_N)
    return float(table_AB.max(axis=1).sum() / table_AB.sum())


def contingency(labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many images have both labels: int64 [A, B], the distinct labels of each side in ascending order."""
    _check_pair(labels_a_N, labels_b_N)
    names_a, index_a_N = np.unique(labels_a_N, return_inverse=True)
    names_b, index_b_N = np.unique(labels_b_N, return_inverse=True)
    cells_N = index_a_N.astype(np.int64) * len(names_b) + index_b_N
    counts = np.bincount(cells_N, minlength=len(names_a) * len(names_b))
    return counts.reshape(len(names_a), len(names_b)).astype(np.int64)


def effective_k(sizes_K: NDArray[np.integer]) -> float:
    """Number of equal clusters that would have the same entropy: exp(-sum p log p), from 1 (collapsed) to K (equal)."""
    share = _shares(sizes_K)
    share = share[share > 0]
    return float(np.exp(-np.sum(share * np.log(share))))


def cluster_statistics(sizes_K: NDArray[np.integer]) -> dict[str, float]:
    """smallest (non-empty) and largest size, number of empty clusters, effective_k, largest_share in (0, 1]."""
    sizes_K = np.asarray(sizes_K)
    return {
        "smallest": int(sizes_K[sizes_K > 0].min(initial=sizes_K.max())),
        "largest": int(sizes_K.max()),
        "empty": int(np.count_nonzero(sizes_K == 0)),
        "effective_k": effective_k(sizes_K),
        "largest_share": float(_shares(sizes_K).max()),
    }


def collapse_warning(
    sizes_K: NDArray[np.integer], *, min_effective_share: float = 0.2, max_largest_share: float = 0.5
) -> str | None:
    """One sentence when the clusters have collapsed, else None.

    Collapsed: effective_k < `min_effective_share` x K, or the largest cluster holds more than `max_largest_share`
    of the images plus its 1/K of the rest (so that two clusters warn from 75 %, a thousand from 50 %).
    """
    k, found = len(sizes_K), cluster_statistics(sizes_K)
    share_limit = max_largest_share + (1 - max_largest_share) / k
    if found["largest_share"] > share_limit:
        return f"collapse: the largest of {k} clusters holds {found['largest_share']:.0%} of the images"
    if found["effective_k"] < min_effective_share * k:
        return f"collapse: {k} clusters are as uneven as {found['effective_k']:.1f} equal ones (effective k)"
    return None


def refuse_non_finite(rows_ND: NDArray[np.floating], name: str, *, first_row: int = 0) -> None:
    """NumericsError naming the first rows of `rows_ND` with NaN or infinity; `first_row` is its first row's number."""
    step = max(1, _BLOCK_BYTES // max(1, rows_ND[:1].nbytes))
    starts = range(0, len(rows_ND), step)
    bad = [start + np.flatnonzero(~np.isfinite(rows_ND[start : start + step]).all(axis=1)) for start in starts]
    bad_rows = np.concatenate(bad) + first_row if bad else np.empty(0, np.int64)
    if len(bad_rows):
        named = ", ".join(map(str, bad_rows[:_NAMED_ROWS]))
        more = f" and {len(bad_rows) - _NAMED_ROWS} more" if len(bad_rows) > _NAMED_ROWS else ""
        raise NumericsError(f"{name}: must be finite; got NaN or infinity in row {named}{more}")


def refuse_beyond_float32(rows_ND: NDArray[np.floating], name: str) -> None:
    """NumericsError for values whose squares, added up over rows and columns, could leave the range of float32.

    faiss would end the process over such a sum.
    """
    if rows_ND.size and (largest := float(max(rows_ND.max(), -rows_ND.min()))) > _LARGEST:
        raise NumericsError(
            f"{name}: values up to {largest:.1e} are too large for sums of squares in float32; scale them down to "
            f"{_LARGEST:.0e} at most"
        )


def _shares(sizes_K: NDArray[np.integer]) -> NDArray[np.float64]:
    total = int(np.sum(sizes_K))
    if total <= 0:
        raise ValueError(f"sizes must hold at least one image; got a total of {total}")
    return np.asarray(np.asarray(sizes_K, dtype=np.float64) / total)


def _check_pair(labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer]) -> None:
    shape_a, shape_b = np.shape(labels_a_N), np.shape(labels_b_N)
    if shape_a != shape_b or len(shape_a) != 1 or shape_a[0] == 0:
        raise ValueError(f"two non-empty labelings of equal shape [N] expected; got {shape_a} and {shape_b}")
