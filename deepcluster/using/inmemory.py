"""The epochs in memory: what the stages extract, pca, cluster and train do one after the other, without artifacts.

The same functions with the same random streams in the same blocks, so the same settings give the same labels as the
pipeline. What the stages offer beyond the paper's course (contrastive losses, heads that are kept, frozen parts,
power-iteration clustering, warm starts) is theirs alone.
Shapes: N images, C channels, S pixels a side, D features, d components, K clusters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster.augment import Augmentation
from deepcluster.checkpoint import BackboneDescription, OptimizerState, optimizer_state, restore_optimizer
from deepcluster.clustering.health import Limits, collapsed, health, variances
from deepcluster.clustering.kmeans import Clustering, Init, kmeans
from deepcluster.clustering.spectral import spectral
from deepcluster.errors import CollapseError
from deepcluster.features import all_features
from deepcluster.models.build import Backbone
from deepcluster.models.heads import build_heads
from deepcluster.params import Collapse, Spectral
from deepcluster.reduction.pca import Components, fit, reduce
from deepcluster.sampling import uniform_over_clusters
from deepcluster.schedules import LearningRate
from deepcluster.seeding import derive_seed, numpy_generator, seed_torch, torch_generator
from deepcluster.training import OptimizerSettings, StepResult, build_optimizer, train_epoch
from deepcluster.using.project import stored_rows

LIMITS = Limits(**Collapse().model_dump())
UNTRAINED = OptimizerState({}, None)


@dataclass(frozen=True)
class Images:
    """uint8 [N, C, S, S], and what normalises them, as `datasets.load.Dataset` has it."""

    images_NCHW: NDArray[np.uint8]
    mean: Sequence[float]
    std: Sequence[float]


def initial_backbone(description: BackboneDescription, seed: int) -> Backbone:
    """The backbone of epoch 0. Torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, "backbone", 0)
        return description.build()


def features(backbone: Backbone, images: Images, *, batch_size: int, device: torch.device) -> NDArray[np.float32]:
    """Of every image: float32 [N, D]."""
    pixels_NCHW, mean, std = images.images_NCHW, images.mean, images.std
    return all_features(backbone, pixels_NCHW, batch_size=batch_size, mean=mean, std=std, device=device)


def pseudo_labels(
    features_ND: NDArray[np.float32],
    *,
    epoch: int,
    seed: int,
    k: int,
    components: int | None,
    whiten: bool = True,
    normalize: bool = True,
    method: Literal["kmeans", "spectral"] = "kmeans",
    iterations: int = 20,
    restarts: int = 1,
    init: Init = "random",
    previous_N: NDArray[np.int32] | None = None,
    refined: bool = False,
    gpu: bool | None = None,
) -> Clustering:
    """PCA (none, if `components` is None), whitening, L2, clusters. CollapseError where the pipeline would stop.

    Spectral clustering has the defaults of `params.Spectral`, or all others as neighbours where images are fewer.
    refined: as beyond refine.after; it decides which settings an error names.
    """
    blocks, width = partial(_blocks_as_stored, features_ND), features_ND.shape[1]
    found: Components | None = None
    if components is not None:
        pca_seed = derive_seed(seed, "pca", epoch)
        found = fit(blocks, features_ND.shape, backend="streaming", components=components, seed=pca_seed)
    rows_Nd = np.concatenate(list(reduce(blocks, width, found, whiten=whiten, normalize=normalize)))
    run = partial(kmeans, backend="faiss")
    if method == "spectral":
        settings = Spectral()
        neighbours = min(settings.neighbours, len(rows_Nd) - 1)
        run = partial(spectral, neighbours=neighbours, extra_vectors=settings.extra_vectors)
    clustering = run(
        rows_Nd,
        k=k,
        iterations=iterations,
        restarts=restarts,
        init=init,
        seed=derive_seed(seed, "kmeans", epoch),
        gpu=gpu,
    )
    variance_d = variances(rows_Nd) if found is None else found.explained_variance_d
    state = health(clustering.sizes_K, clustering.labels_N, previous_N, variance_d)
    if problem := collapsed(state, clustering.sizes_K, rows_Nd.shape[1], LIMITS, method=method, refined=refined):
        raise CollapseError(f"epoch {epoch}: {problem}")
    return clustering


def train(
    backbone: Backbone,
    images: Images,
    labels_N: NDArray[np.int32],
    state: OptimizerState,
    *,
    epoch: int,
    seed: int,
    k: int,
    epoch_size: float,
    batch_size: int,
    augmentation: Augmentation,
    optimizer: OptimizerSettings,
    head_optimizer: OptimizerSettings,
    rate: LearningRate,
    device: torch.device,
) -> tuple[list[StepResult], OptimizerState]:
    """One epoch under a new head, the backbone in place; its steps, and the state of its optimizer for the next one."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, "head", epoch)
        heads = build_heads(backbone.feature_dim, k)
    heads, backbone = heads.to(device), backbone.to(device)
    own, other = build_optimizer(backbone.parameters(), optimizer), build_optimizer(heads.parameters(), head_optimizer)
    restore_optimizer(own, backbone, state, Path("the epoch before"))
    size = max(2, round(epoch_size * len(labels_N)))
    steps = train_epoch(
        backbone,
        heads,
        images.images_NCHW,
        labels_N,
        indices=uniform_over_clusters(labels_N, size=size, rng=numpy_generator(seed, "sampler", epoch)),
        batch_size=batch_size,
        augmentation=augmentation,
        mean=images.mean,
        std=images.std,
        optimizers=[own, other],
        generator=torch_generator(seed, "augment", epoch),
        colour_generator=torch_generator(seed, "colour", epoch),
        device=device,
        lr_factor=partial(rate.in_step, epoch),
    )
    return list(steps), optimizer_state(own, backbone)


def _blocks_as_stored(features_ND: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.floating]]:
    """The blocks that a features.zarr of these would give: other blocks, other rounding."""
    count, width = features_ND.shape
    step = stored_rows(count, width, rows)
    for start in range(0, count, step):
        yield features_ND[start : start + step]
