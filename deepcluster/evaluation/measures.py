"""What one kind of features (trained, untrained, pixels) is worth by every measure that true labels allow.

Nothing that trains or chooses reads any of it. The true labels of the training images name clusters, vote and train
probes; scores beyond the training images' own clusters are of held-out images (`held_out`).
Shapes: N training images, M test images, D features, K clusters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster.clustering.assignment import assign
from deepcluster.clustering.kmeans import Clustering
from deepcluster.clustering.kmeans import uses_gpu as faiss_uses_gpu
from deepcluster.evaluation.baselines import best_of, score
from deepcluster.evaluation.held_out import HeldOut, held_out
from deepcluster.evaluation.naming import scores_elsewhere
from deepcluster.evaluation.neighbours import knn_accuracies
from deepcluster.evaluation.probe import linear_probe
from deepcluster.evaluation.retrieval import mean_average_precision
from deepcluster.metrics import purity
from deepcluster.params.sections import Evaluate
from deepcluster.progress import reporting
from deepcluster.seeding import derive_seed

Section = Literal["many_to_one", "test", "knn", "probe", "retrieval", "overclustering"]
SECTIONS: tuple[Section, ...] = ("many_to_one", "test", "knn", "probe", "retrieval", "overclustering")
Found = dict[str, Any]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """True labels, and how to judge rows by them.

    held_out: the labels. classes: how many the data set has. seed: the run's.
    """

    held_out: HeldOut
    classes: int
    settings: Evaluate
    seed: int
    device: torch.device
    gpu: bool | None

    @property
    def overclusters(self) -> int | None:
        """k of the over-clustering; None for none, also where it would exceed the number of images."""
        k = self.settings.overclustering * self.classes
        return k if 2 <= k <= len(self.held_out.targets_N) else None

    def about(self) -> Iterator[str]:
        """A sentence for each measure that was asked for and cannot be had."""
        learn = len(self.held_out.learn_L) if self.held_out.test_targets_M is None else len(self.held_out.targets_N)
        for k in self.settings.knn:
            if k > learn:
                yield f"no k-NN with k = {k}: there are {learn:,} images to vote"
        if self.settings.overclustering and self.overclusters is None:
            k = self.settings.overclustering * self.classes
            yield f"no over-clustering: {k:,} clusters of {len(self.held_out.targets_N):,} images"

    def of_clusters(self, clustering: Clustering, test_MD: Rows | None) -> Found:
        """many_to_one; with test images also test, whose rows must be made as those that were clustered."""
        targets_N = self.held_out.targets_N
        found: Found = {"many_to_one": purity(clustering.labels_N, targets_N)}
        if self.held_out.test_targets_M is not None and test_MD is not None:
            found["test"] = self._elsewhere(clustering, test_MD)
        return found

    def of_overclustering(self, what: str, rows_ND: Rows, test_MD: Rows | None) -> Found:
        """overclustering: one k-means run with more clusters than classes, of the rows as they are."""
        if self.overclusters is None:
            return {}
        seed = derive_seed(self.seed, "overclustering", 0)
        with reporting(f"evaluate: {self.overclusters} clusters of {what}", "rows"):
            found = best_of(rows_ND, k=self.overclusters, seed=seed, restarts=1, gpu=self.gpu)
        targets_N = self.held_out.targets_N
        scores = score(found.labels_N, targets_N) | {"many_to_one": purity(found.labels_N, targets_N)}
        if self.held_out.test_targets_M is not None and test_MD is not None:
            scores |= {f"test_{name}": value for name, value in self._elsewhere(found, test_MD).items()}
        return {"overclustering": scores}

    def of_features(self, what: str, rows_ND: Rows, test_MD: Rows | None) -> Found:
        """knn, retrieval and the probe of the features themselves, as far as the settings ask for them."""
        examples, settings, found = self.held_out.examples(rows_ND, test_MD), self.settings, Found()
        if settings.knn:
            with reporting(f"evaluate: nearest neighbours among {what}", "images"):
                shares = knn_accuracies(examples, settings.knn, gpu=faiss_uses_gpu("faiss", self.gpu))
            found["knn"] = {f"k{k}": share for k, share in shares.items()}
        if settings.retrieval:
            with reporting(f"evaluate: retrieval among {what}", "queries"):
                value = mean_average_precision(examples, seed=derive_seed(self.seed, "retrieval", 0))
            found["retrieval"] = {} if value is None else {"map": value}
        if settings.probe != "none":
            found["probe"] = {"features": self.probe(what, rows_ND, test_MD)}
        return found

    def probe(self, what: str, rows_ND: Rows, test_MD: Rows | None) -> float:
        """Accuracy of a linear probe of these rows."""
        with reporting(f"evaluate: linear probe of {what}", "steps") as report:
            found = linear_probe(
                self.held_out.examples(rows_ND, test_MD),
                classes=self.classes,
                seed=derive_seed(self.seed, "probe", 0),
                device=self.device,
                progress=report,
            )
        return found.accuracy

    def _elsewhere(self, clustering: Clustering, test_MD: Rows) -> dict[str, float]:
        assert self.held_out.test_targets_M is not None
        labels_M, _ = assign(test_MD, clustering.centroids_Kd, origin_d=clustering.centroids_Kd.mean(axis=0))
        return scores_elsewhere(
            clustering.labels_N,
            self.held_out.targets_N,
            labels_M,
            self.held_out.test_targets_M,
            k=len(clustering.sizes_K),
        )


def truth(
    targets_N: NDArray[np.int64],
    test_targets_M: NDArray[np.int64] | None,
    *,
    classes: int,
    settings: Evaluate,
    seed: int,
    device: torch.device,
    gpu: bool | None,
) -> Truth | None:
    """What to judge by; None, and said, where all images are of one class, since then everything is right."""
    if len(np.unique(targets_N)) < 2:
        print("evaluate: all images are of one class: no k-NN, probe, retrieval, over-clustering and test scores")
        return None
    split = held_out(targets_N, test_targets_M, seed=derive_seed(seed, "held_out", 0))
    if test_targets_M is None and not len(split.score_S):
        print("evaluate: one image a class, so none can be held out: no k-NN, probe, retrieval and over-clustering")
        return None
    found = Truth(split, classes, settings, seed, device, gpu)
    for sentence in found.about():
        print(f"evaluate: {sentence}")
    return found


def sections(by_kind: Mapping[str, Found]) -> Found:
    """metrics.json's sections, each with "final" and "baselines", from what was found of each kind of features."""

    def section(name: str) -> Found:
        baselines = {kind: found[name] for kind, found in by_kind.items() if kind != "final" and name in found}
        return {"final": by_kind["final"][name], "baselines": baselines}

    return {name: section(name) for name in SECTIONS if by_kind["final"].get(name)}
