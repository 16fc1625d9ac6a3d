"""What a run's numbers warn of, in sentences that say what happened and what to try."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.health import Limits
from deepcluster.clustering.remedies import Remedies, remedies
from deepcluster.inspection.tables import Row
from deepcluster.metrics import collapse_warning
from deepcluster.params import ClusterMethod

Test = tuple[
    Callable[[Row], float | None], Callable[[float, Row], bool], Callable[[Iterable[float]], float], str
]  # the value of an epoch, whether it is bad, which value is the worst, and the sentence

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
    components: int,
    methods: Mapping[str, ClusterMethod],
    refined_after: int | None,
) -> list[str]:
    """Sentences, the gravest first; none for a sound run.

    epochs, lineage: rows of epochs.csv and lineage.csv. sizes_K: of the final clustering. final, baselines: scores.
    limits: those of `cluster.collapse`. classes: how many different true labels there are; None without. components:
    of the features that were clustered; with one no rank is asked for. methods: of the sections cluster and refine, as
    `params.refine.clustering_methods` tells them. refined_after: params' refine.after.
    """
    early = remedies(methods["cluster"])
    late = remedies(methods["refine"], refined=True) if "refine" in methods else early
    found = [
        *_of_epochs(epochs, int(np.sum(sizes_K)), components, limits, (early, late), refined_after),
        *_of_the_result(sizes_K, limits),
    ]
    if classes == 1:
        found.append("All images have the same true label, so nmi, ari and accuracy say nothing about the clusters.")
    elif classes is not None:
        found += _beaten(final, baselines)
    churn = lineage[-1].get("churn") if lineage else None
    last = len(lineage)
    other_k = refined_after is not None and last == refined_after + 1  # then images must move
    if churn is not None and churn > RESTLESS and not other_k:
        advice = late if _refined(last, refined_after) else early
        found.append(
            f"In the last epoch {churn:.0%} of the images went to another cluster: the pseudo-labels have not settled; "
            f"try more epochs, a lower train.optimizer.lr or {advice.fewer}."
        )
    return found


def _of_the_result(sizes_K: NDArray[np.integer[Any]], limits: Limits) -> Iterator[str]:
    shares = {"min_effective_share": limits.min_effective_k, "max_largest_share": limits.max_largest_share}
    if problem := collapse_warning(sizes_K, **shares):
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


def _of_epochs(
    epochs: Sequence[Row],
    images: int,
    components: int,
    limits: Limits,
    advice: tuple[Remedies, Remedies],
    refined_after: int | None,
) -> Iterator[str]:
    """A sentence for each way in which epochs collapsed, with the worst value; those of section `refine` apart."""
    early, late = list[Row](), list[Row]()
    for row in epochs:
        (late if _refined(int(row["epoch"] or 0), refined_after) else early).append(row)
    for rows, own in zip((early, late), advice, strict=True):
        for value_of, bad, worst_of, sentence in _tests(images, components, limits):
            values = [(row, value) for row in rows if (value := value_of(row)) is not None]
            hit = [(int(row["epoch"] or 0), value) for row, value in values if bad(value, row)]
            if hit:
                worst = worst_of(value for _, value in hit)
                yield f"{_when([epoch for epoch, _ in hit])}: {sentence.format(worst=worst, **asdict(own))}."


def _tests(images: int, components: int, limits: Limits) -> list[Test]:
    """The same limits as `clustering.health.collapsed`, which stops a run unless `fail_on_collapse` is off."""
    return [
        (
            lambda row: row.get("feature_rank") if components > 1 else None,
            lambda rank, row: rank < limits.min_feature_rank,
            min,
            "collapse: the features varied along as few as {worst:.2f} directions (effective rank), so all images "
            "looked alike to the backbone; try a lower train.optimizer.lr, more augmentation, or {whiten}",
        ),
        (
            lambda row: _share(row.get("largest"), images),
            lambda share, row: share > limits.max_largest_share + (1 - limits.max_largest_share) / (row.get("k") or 2),
            max,
            "collapse: one cluster held up to {worst:.0%} of the images; try {others}, or a lower train.optimizer.lr",
        ),
        (
            lambda row: _share(row.get("effective_k"), row.get("k")),
            lambda share, row: share < limits.min_effective_k,
            min,
            "collapse: the clusters were as uneven as if only {worst:.0%} of them were used (effective k); try "
            "{fewer}, {whiten}, or a lower train.optimizer.lr",
        ),
        (
            lambda row: _share(row.get("empty"), row.get("k")),
            lambda share, row: share > limits.max_empty,
            max,
            "collapse: up to {worst:.0%} of the clusters were empty, since there were fewer distinct images than "
            "clusters; try {fewer}, or look for duplicated images",
        ),
        (
            lambda row: row.get("nmi_previous"),
            lambda nmi, row: 1 - nmi > limits.max_drift,
            min,
            "drift: the labels shared as little as {worst:.2f} NMI with those of the epoch before; try {fewer} "
            "or a lower train.optimizer.lr",
        ),
    ]


def _refined(epoch: int, refined_after: int | None) -> bool:
    return refined_after is not None and epoch > refined_after


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
