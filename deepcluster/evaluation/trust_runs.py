"""A finished run's artifacts as the arrays that `trust` measures: images, features of an epoch, features of views.

Shapes: N images, D features, V images with a view, C channels, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.augment import Augmentation, augment, augmentation_of
from deepcluster.checkpoint import Checkpoint, load_checkpoint
from deepcluster.clustering.kmeans import Clustering
from deepcluster.errors import UserError
from deepcluster.evaluation.baselines import final_clusters
from deepcluster.evaluation.trust import Trust, Views, kmeans_runs, measured
from deepcluster.features import all_features
from deepcluster.images import open_rows
from deepcluster.params import PARAMS_FILE, Augment, Params, final_k, load_params
from deepcluster.pixels import to_float
from deepcluster.seeding import derive_seed, torch_generator

HALVINGS = 5
SILHOUETTE_ROWS = 2000
VIEWED = 2000
SECTION_ROWS = 5000


@dataclass(frozen=True)
class Run:
    """The artifacts of a run, below the project's folder `root`. `k`: of the final clustering, as evaluate takes it."""

    root: Path
    params: Params
    images: artifacts.Store
    k: int

    @property
    def epochs(self) -> list[int]:
        """Epochs whose checkpoint is there, ascending; not 0, the untrained backbone."""
        folders = (self.root / layout.EPOCHS).glob("*/checkpoint/checkpoint.json")
        found = sorted(int(path.parts[-3]) for path in folders if path.parts[-3].isdecimal())
        return [epoch for epoch in found if 1 <= epoch <= self.params.epochs]

    def clusters(self, epoch: int) -> artifacts.Store:
        path = self.root / layout.clusters(epoch)
        return artifacts.open_store(path, "clusters", made_by=f"cluster@{epoch}", ids=self.images.ids, epoch=epoch)

    def checkpoint(self, epoch: int) -> Checkpoint:
        path, made_by = self.root / layout.checkpoint(epoch), layout.made_by_checkpoint(epoch)
        return load_checkpoint(path, made_by=made_by, ids=self.images.ids, epoch=epoch)

    def augmentation(self, epoch: int) -> Augmentation:
        """What the epoch was trained with; by params.yaml, where the checkpoint does not tell."""
        used = artifacts.checkpoint_params(self.root / layout.checkpoint(epoch)).get("augment")
        settings = Augment.model_validate(used) if used else self.params.augment
        return augmentation_of(settings, self.images.attributes["params"]["name"])

    def targets(self) -> NDArray[np.int64] | None:
        """The true labels, if there are any. Nothing but the correlations that are reported may ask for them."""
        path = self.root / layout.TARGETS
        if not path.exists():
            return None
        truth = artifacts.open_store(path, "targets", made_by="prepare", ids=self.images.ids)
        return np.asarray(truth.read("targets")) if truth.attributes["labelled"] else None


@dataclass(frozen=True)
class Judged:
    """Final labels of an epoch, and what is measured of them."""

    labels_N: NDArray[np.int32]
    trust: Trust
    drift: float | None


def open_run(root: Path = Path()) -> Run:
    """The run in a project's folder; UserError where there is none, or it has fewer images than the measures need."""
    params = load_params(root / PARAMS_FILE)
    images = artifacts.open_store(root / layout.IMAGES, "images", made_by="prepare")
    truth = artifacts.open_store(root / layout.TARGETS, "targets", made_by="prepare", ids=images.ids)
    class_names = truth.attributes["class_names"]
    k = final_k(params, len(class_names or ()))
    if images.samples <= k:
        raise UserError(f"{root / layout.IMAGES}: trust needs more images than clusters; got {images.samples}, k = {k}")
    return Run(root, params, images, k)


def judge(
    run: Run,
    epoch: int,
    pixels_NCHW: NDArray[np.uint8],
    augmentations: Sequence[Augmentation],
    *,
    restarts: int,
    seed: int,
    device: torch.device,
    gpu: bool | None,
) -> Judged:
    """The final clustering of an epoch's backbone, best of `restarts` as evaluate makes it, and all measures of it.

    `seed` draws images, halves and views: the same for all that are to be compared. k-means has the run's own.
    """
    checkpoint = run.checkpoint(epoch)
    features_ND = _features(run, checkpoint, epoch, pixels_NCHW, device)
    cluster = partial(final_clusters, k=run.k, gpu=gpu)
    kmeans_seed = derive_seed(run.params.seed, "evaluate", 0)
    best, runs = kmeans_runs(features_ND, cluster=cluster, restarts=restarts, seed=kmeans_seed)
    views = [_views(run, checkpoint, pixels_NCHW, features_ND, kind, seed, device) for kind in augmentations]
    trust = measured(
        features_ND,
        best,
        runs,
        views,
        cluster=cluster,
        halvings=HALVINGS,
        silhouette_rows=SILHOUETTE_ROWS,
        seed=derive_seed(seed, "trust", 0),
    )
    return Judged(best.labels_N, trust, drift(run, epoch))


def drift(run: Run, epoch: int) -> float | None:
    """1 - NMI of the epoch's pseudo-labels with those of the epoch before, as cluster@E recorded it."""
    recorded = run.clusters(epoch).attributes["health"]["drift"] if epoch else None
    return None if recorded is None else float(recorded)


def still(augmentation: Augmentation) -> bool:
    """Whether it leaves every image as it is."""
    unused = Augmentation()
    same = replace(augmentation, padding=unused.padding, crop_scale=unused.crop_scale, crop_ratio=unused.crop_ratio)
    return same == unused


def sampled_rows(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """At most `wanted` of `count` row numbers, ascending, drawn without replacement."""
    rng = np.random.default_rng(derive_seed(seed, "trust", 0))
    return np.sort(rng.choice(count, min(count, wanted), replace=False))


def views_of(
    pixels_NCHW: NDArray[np.uint8],
    rows_V: NDArray[np.int64],
    augmentation: Augmentation,
    *,
    seed: int,
    at_once: int = 256,
) -> NDArray[np.uint8]:
    """One augmented view of each of these images: uint8 [V, C, H, W], so rounded, which training's are not."""
    generator, colour_generator = (torch_generator(seed, "trust", stream) for stream in (0, 1))
    blocks = []
    for start in range(0, len(rows_V), at_once):
        images_BCHW = to_float(torch.from_numpy(np.array(pixels_NCHW[rows_V[start : start + at_once]])))
        views_BCHW = augment(images_BCHW, augmentation, generator, colour_generator)
        blocks.append(views_BCHW.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy())
    return np.concatenate(blocks)


def _views(
    run: Run,
    checkpoint: Checkpoint,
    pixels_NCHW: NDArray[np.uint8],
    features_ND: NDArray[np.float32],
    augmentation: Augmentation,
    seed: int,
    device: torch.device,
) -> Views:
    """Of at most 2,000 images."""
    rows_V = sampled_rows(len(features_ND), VIEWED, seed)
    views_VD = _extract(run, checkpoint, views_of(pixels_NCHW, rows_V, augmentation, seed=seed), device)
    return Views(rows_V, features_ND[rows_V], views_VD)


def _features(
    run: Run, checkpoint: Checkpoint, epoch: int, pixels_NCHW: NDArray[np.uint8], device: torch.device
) -> NDArray[np.float32]:
    """As evaluate takes them: in float32. The next epoch's dump has the same, where it is there and not of bfloat16.

    Not that of DeepCluster-v2, which holds projections.
    """
    dump = run.root / layout.features(epoch + 1)
    if checkpoint.projector is None and dump.exists():
        store = artifacts.open_store(
            dump, "features", made_by=f"extract@{epoch + 1}", ids=run.images.ids, epoch=epoch + 1
        )
        if store.attributes["params"]["precision"] == "fp32":
            return np.asarray(store.read("features"))
    return _extract(run, checkpoint, pixels_NCHW, device)


def _extract(
    run: Run, checkpoint: Checkpoint, pixels_NCHW: NDArray[np.uint8], device: torch.device
) -> NDArray[np.float32]:
    return all_features(
        checkpoint.backbone,
        pixels_NCHW,
        batch_size=run.params.extract.batch_size,
        mean=run.images.attributes["mean"],
        std=run.images.attributes["std"],
        device=device,
    )


def trust_section(
    images: artifacts.Store,
    clustering: Clustering,
    *,
    params: Params,
    epoch: int,
    device: torch.device,
    gpu: bool | None,
) -> dict[str, float | int | None]:
    """Measures of the reported clustering for metrics.json, on at most 5,000 images: the cost does not grow with N.

    Of up to 5,000 images they are those of `judge`. "images": how many there were. None where a measure is not defined:
    see `trust`.
    """
    run = Run(Path(), params, images, len(clustering.sizes_K))
    rows_S = sampled_rows(images.samples, SECTION_ROWS, params.seed)
    pixels_SCHW, checkpoint = np.array(open_rows(images)[rows_S]), run.checkpoint(epoch)
    features_SD = _extract(run, checkpoint, pixels_SCHW, device)
    sample = replace(clustering, labels_N=clustering.labels_N[rows_S], distances_N=clustering.distances_N[rows_S])
    kind = run.augmentation(epoch)
    views = [] if still(kind) else [_views(run, checkpoint, pixels_SCHW, features_SD, kind, params.seed, device)]
    found = measured(
        features_SD,
        sample,
        [],
        views,
        cluster=partial(final_clusters, k=run.k, gpu=gpu),
        halvings=HALVINGS,
        silhouette_rows=SILHOUETTE_ROWS,
        seed=derive_seed(params.seed, "trust", 0),
    )
    values = {name: getattr(found, name) for name in ("view_agreement", "silhouette", "half_stability")}
    return {"images": len(rows_S), **values, "drift": drift(run, epoch)}
