"""What a run's numbers warn of, in sentences that say what happened and what to try."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.health import Limits
from deepcluster.inspection.tables import Row
from deepcluster.metrics import collapse_warning

RESTLESS = 0.75  # share of images that change cluster, from which on labels cannot be called settled


def warnings_of(
    *,
    epochs: Sequence[Row],
    lineage: Sequence[Row],
    sizes_K: NDArray[np.integer[Any]],
    final: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    limits: Limits,
    classes: int | None,
) -> list[str]:
    """Sentences, the gravest first; none for a sound run.

    epochs, lineage: rows of epochs.csv and lineage.csv. sizes_K: of the final clustering. final, baselines: scores.
    limits: those of `cluster.collapse`. classes: how many different true labels there are; None without.
    """
    found = [*_of_epochs(epochs, int(np.sum(sizes_K)), limits), *_of_the_result(sizes_K)]
    if classes == 1:
        found.append("All images have the same true label, so nmi, ari and accuracy say nothing about the clusters.")
    elif classes is not None:
        found += _beaten(final, baselines)
    churn = lineage[-1].get("churn") if lineage else None
    if churn is not None and churn > RESTLESS:
        found.append(
            f"In the last epoch {churn:.0%} of the images went to another cluster: the pseudo-labels have not settled; "
            "try more epochs, a lower train.optimizer.lr or a smaller cluster.k."
        )
    return found


def _of_the_result(sizes_K: NDArray[np.integer[Any]]) -> Iterator[str]:
    if problem := collapse_warning(sizes_K):
        yield f"Final clustering: {problem}; try an earlier epoch, a lower train.optimizer.lr or more augmentation."
    single = int(np.count_nonzero(np.asarray(sizes_K) == 1))
    if single:
        yield (
            f"{single:,} of the {len(sizes_K):,} final clusters {'holds' if single == 1 else 'hold'} a single image: "
            "outliers, or evaluate.k is too large for this data set."
        )


def _beaten(final: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Of each baseline with a higher NMI."""
    ours = final.get("nmi")
    for name, scores in baselines.items():
        if ours is not None and scores.get("nmi", -1.0) > ours:
            yield (
                f"{name} gives better clusters than the trained features (nmi {scores['nmi']:.4f} against {ours:.4f}): "
                "this training did not help; try more epochs, a larger cluster.k or other augmentation."
            )


def _of_epochs(epochs: Sequence[Row], images: int, limits: Limits) -> Iterator[str]:
    """A sentence for each way in which epochs collapsed, with the worst value."""
    tests: list[tuple[Callable[[Row], float | None], Callable[[float, Row], bool], str]] = [
        (
            lambda row: row.get("feature_rank"),
            lambda rank, row: rank < limits.min_feature_rank,
            "the features varied along as few as {:.2f} directions (effective rank), so all images looked alike to the "
            "backbone; try a lower train.optimizer.lr, more augmentation, or pca.whiten",
        ),
        (
            lambda row: _share(row.get("largest"), images),
            lambda share, row: share > limits.max_largest_share + (1 - limits.max_largest_share) / (row.get("k") or 2),
            "one cluster held up to {:.0%} of the images; try another cluster.k, pca.whiten, cluster.restarts, or a "
            "lower train.optimizer.lr",
        ),
        (
            lambda row: _share(row.get("effective_k"), row.get("k")),
            lambda share, row: share < limits.min_effective_k,
            "the clusters were as uneven as if only {:.0%} of them were used (effective k); try a smaller cluster.k, "
            "pca.whiten, or a lower train.optimizer.lr",
        ),
        (
            lambda row: _share(row.get("empty"), row.get("k")),
            lambda share, row: share > limits.max_empty,
            "up to {:.0%} of the clusters were empty, since there were fewer distinct images than clusters; try a "
            "smaller cluster.k, or look for duplicated images",
        ),
    ]
    for value_of, bad, sentence in tests:
        values = [(row, value) for row in epochs if (value := value_of(row)) is not None]
        hit = [(int(row["epoch"] or 0), value) for row, value in values if bad(value, row)]
        if hit:
            low = "as few" in sentence or "only" in sentence
            worst = (min if low else max)(value for _, value in hit)
            yield f"{_when([epoch for epoch, _ in hit])}: collapse: {sentence.format(worst)}."


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _when(epochs: Sequence[int]) -> str:
    """`Epoch 3`, `Epochs 3 to 7`, `Epochs 1, 4 and 3 more`."""
    if len(epochs) == 1:
        return f"Epoch {epochs[0]}"
    if list(epochs) == list(range(epochs[0], epochs[-1] + 1)):
        return f"Epochs {epochs[0]} to {epochs[-1]}"
    named = ", ".join(map(str, epochs[:5]))
    return f"Epochs {named}" + (f" and {len(epochs) - 5} more" if len(epochs) > 5 else "")
