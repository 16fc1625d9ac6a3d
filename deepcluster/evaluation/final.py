"""The reported result: k-means on the last backbone's L2-normalised features; beside it the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.blockwise import l2_normalize
from deepcluster.checkpoint import Checkpoint, load_checkpoint
from deepcluster.clustering.kmeans import Clustering
from deepcluster.evaluation.baselines import (
    best_of,
    filtered_baseline,
    final_clusters,
    memory_needed,
    pixel_rows,
    score,
)
from deepcluster.evaluation.measures import Found, Rows, Truth, sections
from deepcluster.evaluation.places import Places, find_places
from deepcluster.features import all_features
from deepcluster.memory import too_large
from deepcluster.metrics import cluster_statistics
from deepcluster.models.blocks import blocks, cut_off
from deepcluster.models.build import Backbone
from deepcluster.progress import reporting
from deepcluster.spreadsheets import csv_line, harmless


@dataclass(frozen=True)
class Result:
    """The clustering to use, the numbers to report, and where images lie among the clusters."""

    clustering: Clustering
    metrics: dict[str, Any]
    places: Places


@dataclass(frozen=True)
class Images:
    """Training and test images, test_MCHW None where there are none, and what normalises both."""

    store: artifacts.Store
    train_NCHW: NDArray[np.uint8]
    test_MCHW: NDArray[np.uint8] | None
    batch_size: int
    device: torch.device

    def features(self, backbone: Backbone, what: str) -> tuple[Rows, Rows | None]:
        """The backbone's features of both."""
        return self._features(backbone, self.train_NCHW, what), (
            None if self.test_MCHW is None else self._features(backbone, self.test_MCHW, f"{what}, test images")
        )

    def _features(self, backbone: Backbone, images: NDArray[np.uint8], what: str) -> Rows:
        return all_features(
            backbone,
            images,
            batch_size=self.batch_size,
            mean=self.store.attributes["mean"],
            std=self.store.attributes["std"],
            device=self.device,
            label=f"evaluate: {what}",
        )


def evaluate_backbones(
    images: Images,
    *,
    last_epoch: int,
    targets_N: NDArray[np.int64] | None,
    truth: Truth | None,
    k: int,
    restarts: int,
    seed: int,
    gpu: bool | None,
) -> Result:
    """Cluster the last backbone's features; with targets, score that and the baselines, clustered alike.

    Baselines: "pixels", "untrained" (the backbone of epoch 0) and, where that has Sobel filters, "sobel"; one that does
    not fit into memory is left out, and said. `truth`: what to judge by beyond the clusters' own scores, if anything.
    """
    trained = _checkpoint(images.store, last_epoch)
    untrained = None if targets_N is None else _checkpoint(images.store, 0)
    settings: dict[str, Any] = {"k": k, "seed": seed, "restarts": restarts, "gpu": gpu}
    clustering, found, places = _of_backbone(images, trained, "trained features", settings, targets_N, truth)
    by_kind = {"final": found}
    if targets_N is not None and untrained is not None:
        count, channels, size, _ = images.train_NCHW.shape
        if _affordable("pixels", count, channels * size**2):
            by_kind["pixels"] = _of_pixels(images, settings, targets_N, truth)
        _, by_kind["untrained"], _ = _of_backbone(images, untrained, "untrained features", settings, targets_N, truth)
        if untrained.description.sobel and _affordable("Sobel-filtered pixels", count, 2 * size**2):
            filters = untrained.backbone.front_end
            by_kind["sobel"] = {"scores": filtered_baseline(images.train_NCHW, filters, targets_N, **settings)}
    statistics = cluster_statistics(clustering.sizes_K)
    metrics: dict[str, Any] = {
        "epoch": last_epoch,
        "k": k,
        "final": found.get("scores", {}),
        "baselines": {kind: found["scores"] for kind, found in by_kind.items() if kind != "final"},
        "clusters": {name: statistics[name] for name in ("smallest", "largest", "empty", "effective_k")},
    }
    return Result(clustering, metrics | _judged(by_kind, truth), places)


def _of_backbone(
    images: Images,
    checkpoint: Checkpoint,
    what: str,
    settings: dict[str, Any],
    targets_N: NDArray[np.int64] | None,
    truth: Truth | None,
) -> tuple[Clustering, Found, Places]:
    """The final clustering of a backbone's features, what there is to say of them by the targets, and their places."""
    rows_ND, test_MD = images.features(checkpoint.backbone, what)
    with reporting(f"evaluate: {settings['k']} clusters of {what}", "rows"):
        clustering = final_clusters(rows_ND, **settings)
    places = find_places(rows_ND, clustering)
    found: Found = {} if targets_N is None else {"scores": score(clustering.labels_N, targets_N)}
    if truth is None:
        return clustering, found, places
    unit_ND, unit_MD = l2_normalize(rows_ND), None if test_MD is None else l2_normalize(test_MD)
    found |= truth.of_clusters(clustering, unit_MD) | truth.of_overclustering(what, unit_ND, unit_MD)
    found |= truth.of_features(what, rows_ND, test_MD)
    if truth.settings.probe == "blocks":
        del rows_ND, test_MD, unit_ND, unit_MD
        found["probe"] = _of_blocks(images, checkpoint, what, truth) | found["probe"]
    return clustering, found, places


def _of_blocks(images: Images, checkpoint: Checkpoint, what: str, truth: Truth) -> dict[str, float]:
    """Accuracy of a probe on each block; one whose values do not fit into memory is left out, and said."""
    description, found = checkpoint.description, {}
    for name, end in blocks(description.arch, checkpoint.backbone.body).items():
        cut = cut_off(checkpoint.backbone, end, channels=description.channels, image_size=description.image_size)
        place = f"{what} of {name}"
        if problem := too_large(4.0 * len(images.train_NCHW) * cut.feature_dim * 1.5):
            print(f"evaluate: no linear probe of {place}: {cut.feature_dim:,} values an image {problem}")
            continue
        found[name] = truth.probe(place, *images.features(cut, place))
    return found


def _of_pixels(images: Images, settings: dict[str, Any], targets_N: NDArray[np.int64], truth: Truth | None) -> Found:
    """The same of the pixels themselves, which are clustered without being divided by their norm."""
    rows_ND = pixel_rows(images.train_NCHW)
    with reporting(f"evaluate: {settings['k']} clusters of pixels", "rows"):
        clustering = best_of(rows_ND, **settings)
    found: Found = {"scores": score(clustering.labels_N, targets_N)}
    if truth is None:
        return found
    test_MD = None if images.test_MCHW is None else pixel_rows(images.test_MCHW)
    found |= truth.of_clusters(clustering, test_MD) | truth.of_overclustering("pixels", rows_ND, test_MD)
    return found | truth.of_features("pixels", rows_ND, test_MD)


def _judged(by_kind: dict[str, Found], truth: Truth | None) -> dict[str, Any]:
    """metrics.json's sections that need a truth."""
    if truth is None:
        return {}
    found = sections(by_kind)
    if "overclustering" in found:
        found["overclustering"] = {"k": truth.overclusters} | found["overclustering"]
    return {"held_out": truth.held_out.described} | found


def write_clusters(
    target: Path,
    provenance: artifacts.Provenance,
    result: Result,
    targets_N: NDArray[np.int64] | None,
    class_names: Sequence[str] | None,
) -> None:
    """Publish the final clustering, with the targets that the report shows beside it."""
    extra = {"labelled": targets_N is not None, "class_names": class_names}
    with artifacts.write_store(target, "final_clusters", provenance, **extra) as store:
        store.array("labels", result.clustering.labels_N, ("sample",))
        store.array("distances", result.clustering.distances_N, ("sample",))
        store.array("centroids", result.clustering.centroids_Kd, ("cluster", "feature"))
        store.array("sizes", result.clustering.sizes_K, ("cluster",))
        store.array("targets", np.empty(0, np.int64) if targets_N is None else targets_N, ("labelled_sample",))


def clusters_csv(sample_ids: Sequence[str], clustering: Clustering) -> str:
    """sample, cluster, squared distance to the centroid: a row an image, in data set order.

    Names that a spreadsheet would take for formulas begin with ./ (`spreadsheets.harmless`).
    """
    columns = zip(sample_ids, clustering.labels_N, clustering.distances_N, strict=True)
    rows = [[harmless(sample), int(label), f"{distance:.6g}"] for sample, label, distance in columns]
    return csv_line(["sample", "cluster", "squared_distance"]) + "".join(map(csv_line, rows))


def _affordable(what: str, count: int, width: int) -> bool:
    """Whether a baseline fits into memory; said if not, since a long run must not end without its result for it."""
    problem = too_large(memory_needed(count, width))
    if problem:
        print(f"evaluate: no baseline on {what}: {count:,} x {width:,} values {problem}")
    return problem is None


def _checkpoint(images: artifacts.Store, epoch: int) -> Checkpoint:
    made_by = layout.made_by_checkpoint(epoch)
    return load_checkpoint(layout.checkpoint(epoch), made_by=made_by, ids=images.ids, epoch=epoch)
