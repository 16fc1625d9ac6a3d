"""A bundle of the project in the current folder, from its artifacts alone."""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster import artifacts, layout
from deepcluster.artifacts.store import CHUNK_BYTES
from deepcluster.checkpoint import Checkpoint, load_checkpoint
from deepcluster.errors import UserError
from deepcluster.images import open_rows
from deepcluster.params import load_params
from deepcluster.params.sections import Extract
from deepcluster.progress import counted
from deepcluster.reduction.pca import Components
from deepcluster.using.bundle import (
    BLOCK_ROWS,
    Bundle,
    Clusters,
    Features,
    Preprocessing,
    Reduction,
    outlier_thresholds,
    without_paths,
)
from deepcluster.using.nearest import place

Labels = Literal["final", "pseudo"]
_FINAL = layout.EVALUATION / "clusters.zarr"
_REDUCE_BYTES = 16 << 20  # of `reduction.pca`
_ROWS = 1024


def in_project() -> bool:
    """Whether the current folder holds a project's images."""
    return layout.IMAGES.exists()


def project_bundle(labels: Labels, epoch: int | None) -> Bundle:
    """The final clustering, or the pseudo-labels of an epoch with the backbone and PCA that they were made by.

    UserError for a folder that is no project, an epoch that was not run, a clustering that no centroids define.
    """
    if not in_project():
        raise UserError(f"{layout.IMAGES}: not found; run this in the folder of a project that has run")
    match labels:
        case "final":
            return _final(epoch)
        case "pseudo":
            return _pseudo(epoch)


def differing(bundle: Bundle, labels: Labels, device: torch.device) -> tuple[int, int]:
    """(training images whose cluster by the bundle is another than the artifact's, training images)."""
    images = _images()
    path, schema = (_FINAL, "final_clusters") if labels == "final" else (_clusters_path(bundle), "clusters")
    labels_N = artifacts.open_store(path, schema, made_by="evaluate", ids=images.ids).read("labels")
    rows = open_rows(images)
    blocks = (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
    found = place(bundle, counted(blocks, "bundle: check", len(rows), "images"), device)
    return int((found.labels_N != labels_N).sum()), len(labels_N)


def stored_rows(count: int, width: int, wanted: int) -> int:
    """How many rows a block of float32 features [count, width] has, as `Store.blocks(wanted)` gives them."""
    chunk = min(count, max(1, CHUNK_BYTES // (4 * width)))
    return max(1, wanted // chunk) * chunk


def _final(epoch: int | None) -> Bundle:
    images = _images()
    found = artifacts.open_store(_FINAL, "final_clusters", made_by="evaluate", ids=images.ids)
    last = int(found.attributes["epoch"])
    if epoch not in (None, last):
        raise UserError(
            f"--epoch: the final clustering is of epoch {last}; got {epoch}, of which --labels pseudo has pseudo-labels"
        )
    checkpoint = _checkpoint(images, last)
    # final_clusters normalises all rows at once, each by itself: blocks make no difference
    about = {
        "clustering": f"the final clustering of epoch {last}",
        "labels": "final",
        "epoch": last,
        "backbone_epoch": last,
        "provenance": _provenance(images, found, last, {"evaluate": found.attributes["params"]}, _FINAL),
    }
    settings = _extract_settings(last)
    features = Features(min(settings.batch_size, images.samples))  # evaluate extracts in float32
    return _bundle(images, checkpoint, features, Reduction(), _clusters(found), about)


def _pseudo(epoch: int | None) -> Bundle:
    images, epoch = _images(), _run_epoch(epoch)
    found = artifacts.open_store(
        layout.clusters(epoch), "clusters", made_by=f"cluster@{epoch}", ids=images.ids, epoch=epoch
    )
    used = found.attributes["params"]
    if (method := used.get("method", "kmeans")) != "kmeans":
        raise UserError(
            f"--labels pseudo: the clusters of epoch {epoch} were made by method {method}, which joins images along "
            "their neighbours, so no centroid tells where another image belongs; bundle --labels final"
        )
    checkpoint, settings = _checkpoint(images, epoch - 1), _extract_settings(epoch)
    if checkpoint.projector:
        raise UserError(
            f"--labels pseudo: the clusters of epoch {epoch} were made by DeepCluster-v2, of projections that training "
            "computed on its way, of augmented images, so no other image has such; bundle --labels final"
        )
    pca = artifacts.open_store(layout.pca(epoch), "pca", made_by=f"pca@{epoch}", ids=images.ids, epoch=epoch)
    params = {"extract": settings.model_dump(), "pca": pca.attributes["params"], "cluster": used}
    about = {
        "clustering": f"the pseudo-labels of epoch {epoch}",
        "labels": "pseudo",
        "epoch": epoch,
        "backbone_epoch": epoch - 1,
        "provenance": _provenance(images, found, epoch - 1, params, layout.pca(epoch), layout.clusters(epoch)),
    }
    width = checkpoint.backbone.feature_dim
    wanted = max(1, min(BLOCK_ROWS, _REDUCE_BYTES // (4 * width)))
    reduction = Reduction(
        _components(pca),
        whiten=pca.attributes["params"]["whiten"],
        normalize=pca.attributes["params"]["normalize"],
        spherical=used["spherical"],
        block_rows=stored_rows(images.samples, width, wanted),
    )
    features = Features(min(settings.batch_size, images.samples), settings.precision)
    return _bundle(images, checkpoint, features, reduction, _clusters(found), about)


def _bundle(
    images: artifacts.Store,
    checkpoint: Checkpoint,
    features: Features,
    reduction: Reduction,
    clusters: Clusters,
    about: Mapping[str, Any],
) -> Bundle:
    _, channels, side, _ = images.shape("images")
    crop = images.attributes["params"]["name"] != "gtsrb"  # whose signs are squeezed, as everybody does with them
    mean, std = (tuple(images.attributes[name]) for name in ("mean", "std"))
    preprocessing = Preprocessing(side, channels, crop, mean, std)
    return Bundle(checkpoint.description, checkpoint.backbone, preprocessing, features, reduction, clusters, about)


def _clusters(found: artifacts.Store) -> Clusters:
    labels_N, sizes_K = found.read("labels"), found.read("sizes")
    distances_N: NDArray[np.float64] = np.sqrt(found.read("distances").astype(np.float64))
    return Clusters(found.read("centroids"), sizes_K, outlier_thresholds(distances_N, labels_N, sizes_K))


def _components(pca: artifacts.Store) -> Components | None:
    if not pca.has("components"):
        return None
    names = ("components", "mean", "explained_variance", "explained_variance_ratio")
    return Components(*(pca.read(name) for name in names))


def _images() -> artifacts.Store:
    return artifacts.open_store(layout.IMAGES, "images", made_by="prepare")


def _checkpoint(images: artifacts.Store, epoch: int) -> Checkpoint:
    made_by = layout.made_by_checkpoint(epoch)
    return load_checkpoint(layout.checkpoint(epoch), made_by=made_by, ids=images.ids, epoch=epoch)


def _clusters_path(bundle: Bundle) -> Path:
    return layout.clusters(int(bundle.about["epoch"]))


def _run_epoch(epoch: int | None) -> int:
    """The epoch asked for; UserError that says which there are, if there is no clustering of it."""
    folders = layout.HISTORY.glob("*/clusters.zarr")
    found = sorted({int(path.parent.name) for path in folders if path.parent.name.isdecimal()} - {0})
    if not found:
        raise UserError("--epoch: no epoch was run yet; run `deepcluster run`")
    gapless = len(found) > 2 and found == list(range(found[0], found[-1] + 1))
    there = f"{found[0]} to {found[-1]}" if gapless else ", ".join(map(str, found))
    if epoch is None:
        raise UserError(f"--epoch: --labels pseudo needs one of the epochs that were run ({there})")
    if epoch not in found:
        raise UserError(f"--epoch: must be one that was run ({there}); got {epoch}")
    return epoch


def _extract_settings(epoch: int) -> Extract:
    """Those that the features were extracted with; params.yaml's, where the dump was deleted."""
    if not layout.features(epoch).exists():
        return load_params().extract
    features = artifacts.open_store(layout.features(epoch), "features", made_by=f"extract@{epoch}", epoch=epoch)
    return Extract(**features.attributes["params"])


def _provenance(
    images: artifacts.Store, clusters: artifacts.Store, backbone_epoch: int, params: Mapping[str, Any], *used: Path
) -> dict[str, Any]:
    """What the artifacts say of their origin, git's commit, and what dvc.lock has for them, where there are these."""
    checkpoint = layout.checkpoint(backbone_epoch)
    initial = artifacts.checkpoint_params(layout.checkpoint(0))
    trained = artifacts.checkpoint_params(checkpoint) if backbone_epoch else {}
    origin = {"data": without_paths(images.attributes["params"]), "model": without_paths(initial)}
    return {
        "seed": clusters.attributes.get("seed"),
        "samples": images.samples,
        "ids": images.ids,
        "params": origin | trained | dict(params),
        "packages": clusters.attributes["packages"],
        "commit": _commit(),
        "dvc_lock": dict(_locked({path.as_posix() for path in (layout.IMAGES, checkpoint, *used)})),
    }


def _commit() -> str | None:
    """git's commit of the current folder, with "-dirty" after changes; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _locked(paths: set[str]) -> Iterator[tuple[str, str]]:
    """(path, DVC's hash) of those that dvc.lock has as outputs."""
    try:
        content = YAML(typ="safe").load(Path("dvc.lock").read_text(encoding="utf-8"))
        for stage in content["stages"].values():
            for out in stage.get("outs", []):
                if out["path"] in paths and "md5" in out:
                    yield out["path"], out["md5"]
    except (OSError, YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return
