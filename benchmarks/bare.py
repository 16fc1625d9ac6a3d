"""`python -m benchmarks.bare PROJECT EPOCHS`: the epochs of a project as a plain loop in memory, no artifacts, no DVC.

The same calls with the same seeds as the stages make, so it ends with the same labels: it prints their sha256.
"""

import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from deepcluster.threads import settle

settle()

import numpy as np
import torch

from deepcluster.augment import augmentation_of
from deepcluster.clustering.kmeans import kmeans
from deepcluster.datasets.load import Dataset, load_dataset
from deepcluster.features import extract_features
from deepcluster.models.build import Backbone, build_backbone
from deepcluster.models.heads import build_heads
from deepcluster.params import Params, load_params
from deepcluster.reduction.pca import fit_transform
from deepcluster.sampling import uniform_over_clusters
from deepcluster.schedules import LearningRate
from deepcluster.seeding import derive_seed, numpy_generator, seed_torch, torch_generator
from deepcluster.training import OptimizerSettings, build_optimizer, train_epoch

CPU = torch.device("cpu")


def main(root: Path, epochs: int) -> None:
    params = load_params(root / "params.yaml")
    data = params.data
    images = load_dataset(
        data.name, root=root / data.root, split=data.split, image_size=data.image_size, grayscale=data.grayscale
    )
    _, channels, size, _ = images.images_NCHW.shape
    seed_torch(params.seed, "backbone", 0)
    backbone = build_backbone(
        params.model.arch, channels=channels, image_size=size, sobel=params.model.sobel, grayscale=False
    )
    optimizer = build_optimizer(backbone.parameters(), _settings(params.train.optimizer))
    labels_N = np.empty(0, np.int32)
    for epoch in range(1, epochs + 1):
        print(f"extract@{epoch}", flush=True)
        labels_N = _labels(params, images, backbone, epoch)
        _train(params, images, backbone, optimizer, labels_N, epoch)
    print(f"labels {hashlib.sha256(labels_N.tobytes()).hexdigest()}", flush=True)


def _labels(params: Params, images: Dataset, backbone: Backbone, epoch: int) -> Any:
    blocks = extract_features(
        backbone,
        images.images_NCHW,
        batch_size=params.extract.batch_size,
        mean=images.mean,
        std=images.std,
        device=CPU,
        precision=params.extract.precision,
    )
    reduced_Nd = fit_transform(
        np.concatenate(list(blocks)),
        backend=params.pca.backend,
        components=params.pca.components,
        whiten=params.pca.whiten,
        normalize=params.pca.normalize,
        seed=derive_seed(params.seed, "pca", epoch),
    ).reduced_Nd
    return kmeans(
        reduced_Nd,
        k=params.cluster.k,
        backend=params.cluster.backend,
        iterations=params.cluster.iterations,
        restarts=params.cluster.restarts,
        seed=derive_seed(params.seed, "kmeans", epoch),
    ).labels_N


def _train(params: Params, images: Dataset, backbone: Backbone, optimizer: Any, labels_N: Any, epoch: int) -> None:
    settings = params.train
    seed_torch(params.seed, "head", epoch)
    heads = build_heads(backbone.feature_dim, params.cluster.k)
    size = max(2, round(settings.epoch_size * len(labels_N)))
    steps = train_epoch(
        backbone,
        heads,
        images.images_NCHW,
        labels_N,
        indices=uniform_over_clusters(labels_N, size=size, rng=numpy_generator(params.seed, "sampler", epoch)),
        batch_size=settings.batch_size,
        augmentation=augmentation_of(params.augment, params.data.name),
        mean=images.mean,
        std=images.std,
        optimizers=[optimizer, build_optimizer(heads.parameters(), _settings(settings.head))],
        generator=torch_generator(params.seed, "augment", epoch),
        device=CPU,
        precision=settings.precision,
        lr_factor=partial(LearningRate(**settings.schedule.model_dump()).in_step, epoch),
    )
    for _ in steps:
        pass


def _settings(section: Any) -> OptimizerSettings:
    betas = (section.beta1, section.beta2)
    return OptimizerSettings(section.name, section.lr, section.momentum, section.weight_decay, betas)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
