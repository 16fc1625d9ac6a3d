"""The reported result: k-means on the last backbone's L2-normalised features; beside it the baselines."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.checkpoint import Checkpoint, load_checkpoint
from deepcluster.clustering.kmeans import Clustering
from deepcluster.evaluation.baselines import (
    filtered_baseline,
    final_clusters,
    memory_needed,
    pixel_baseline,
    score,
)
from deepcluster.evaluation.places import Places, find_places
from deepcluster.features import extract_features
from deepcluster.images import open_rows
from deepcluster.memory import too_large
from deepcluster.metrics import cluster_statistics


@dataclass(frozen=True)
class Result:
    """The clustering to use, the numbers to report, and where images lie among the clusters."""

    clustering: Clustering
    metrics: dict[str, Any]
    places: Places


def evaluate_backbones(
    images: artifacts.Store,
    *,
    last_epoch: int,
    targets_N: NDArray[np.int64] | None,
    k: int,
    restarts: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    gpu: bool | None,
) -> Result:
    """Cluster the last backbone's features; with targets, score that and the baselines, clustered alike.

    Baselines: "pixels", "untrained" (the backbone of epoch 0) and, where that has Sobel filters, "sobel"; one that does
    not fit into memory is left out, and said.
    """
    pixels_NCHW = open_rows(images)

    def cluster_features(checkpoint: Checkpoint) -> Clustering:
        features_ND = _features(images, pixels_NCHW, checkpoint, batch_size, device)
        return final_clusters(features_ND, k=k, seed=seed, restarts=restarts, gpu=gpu)

    features_ND = _features(images, pixels_NCHW, _checkpoint(images, last_epoch), batch_size, device)
    clustering = final_clusters(features_ND, k=k, seed=seed, restarts=restarts, gpu=gpu)
    places = find_places(features_ND, clustering)
    del features_ND  # the baselines need the memory
    statistics = cluster_statistics(clustering.sizes_K)
    metrics: dict[str, Any] = {"epoch": last_epoch, "k": k, "final": {}, "baselines": {}}
    if targets_N is not None:
        metrics["final"] = score(clustering.labels_N, targets_N)
        untrained = _checkpoint(images, 0)
        count, channels, size, _ = pixels_NCHW.shape
        settings: dict[str, Any] = {"k": k, "seed": seed, "restarts": restarts, "gpu": gpu}
        if _affordable("pixels", count, channels * size**2):
            metrics["baselines"]["pixels"] = pixel_baseline(pixels_NCHW, targets_N, **settings)
        metrics["baselines"]["untrained"] = score(cluster_features(untrained).labels_N, targets_N)
        if untrained.description.sobel and _affordable("Sobel-filtered pixels", count, 2 * size**2):
            filters = untrained.backbone.front_end
            metrics["baselines"]["sobel"] = filtered_baseline(pixels_NCHW, filters, targets_N, **settings)
    metrics["clusters"] = {name: statistics[name] for name in ("smallest", "largest", "empty", "effective_k")}
    return Result(clustering, metrics, places)


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
    """sample, cluster, squared distance to the centroid: a row an image, in data set order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", "cluster", "squared_distance"])
    for sample, label, distance in zip(sample_ids, clustering.labels_N, clustering.distances_N, strict=True):
        writer.writerow([sample.encode(errors="replace").decode(), int(label), f"{distance:.6g}"])
    return text.getvalue()


def _affordable(what: str, count: int, width: int) -> bool:
    """Whether a baseline fits into memory; said if not, since a long run must not end without its result for it."""
    problem = too_large(memory_needed(count, width))
    if problem:
        print(f"evaluate: no baseline on {what}: {count:,} x {width:,} values {problem}")
    return problem is None


def _checkpoint(images: artifacts.Store, epoch: int) -> Checkpoint:
    made_by = layout.made_by_checkpoint(epoch)
    return load_checkpoint(layout.checkpoint(epoch), made_by=made_by, ids=images.ids, epoch=epoch)


def _features(
    images: artifacts.Store,
    pixels_NCHW: NDArray[np.uint8],
    checkpoint: Checkpoint,
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float32]:
    blocks = extract_features(
        checkpoint.backbone,
        pixels_NCHW,
        batch_size=batch_size,
        mean=images.attributes["mean"],
        std=images.attributes["std"],
        device=device,
    )
    return np.concatenate(list(blocks))
