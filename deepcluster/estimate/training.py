"""A step of training on random labels, as a function of the number of images, for `rates` to take the time of."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcluster.params import Params

if TYPE_CHECKING:
    import torch

    from deepcluster.augment import Augmentation
    from deepcluster.models.build import Backbone

Work = Callable[[int], None]


def training(params: Params, backbone: "Backbone", images_NCHW: NDArray[np.uint8], device: "torch.device") -> Work:
    """Trains on so many of the images in one batch; in two at least, as batch norm wants."""
    match params.train.method:
        case "deepcluster":
            return _deepcluster(params, backbone, images_NCHW, device)
        case "deepcluster_v2":
            return _deepcluster_v2(params, backbone, images_NCHW, device)


def projector_weights(params: Params, features: int) -> int:
    """Parameters of DeepCluster-v2's projector; 0 where there is none."""
    from deepcluster.models.projector import Projector

    v2 = params.train.v2
    if params.train.method != "deepcluster_v2":
        return 0
    return sum(weight.numel() for weight in Projector(features, hidden=v2.hidden, outputs=v2.outputs).parameters())


def _deepcluster(params: Params, backbone: "Backbone", images_NCHW: NDArray[np.uint8], device: "torch.device") -> Work:
    import torch

    from deepcluster.contrastive import Objective
    from deepcluster.models.heads import build_heads
    from deepcluster.training import train_epoch

    settings, k = params.train, params.cluster.k
    contrastive = settings.contrastive
    projection = None if contrastive.strategy == "none" else contrastive.projection
    heads = build_heads(backbone.feature_dim, k, projection=projection)
    optimizers = _optimizers(params, backbone.to(device), heads.to(device))
    labels_N = np.arange(len(images_NCHW), dtype=np.int32) % k
    objective = Objective(settings.loss, **contrastive.model_dump(exclude={"projection"}))

    def work(number: int) -> None:
        steps = train_epoch(
            backbone,
            heads,
            images_NCHW,
            labels_N,
            indices=np.arange(max(2, number), dtype=np.int64),
            batch_size=max(2, number),
            augmentation=_augmentation(params),
            mean=[0.5] * images_NCHW.shape[1],
            std=[0.25] * images_NCHW.shape[1],
            optimizers=optimizers,
            generator=torch.Generator().manual_seed(0),
            device=device,
            precision=settings.precision,
            objective=objective,
        )
        for _ in steps:
            pass

    return work


def _deepcluster_v2(
    params: Params, backbone: "Backbone", images_NCHW: NDArray[np.uint8], device: "torch.device"
) -> Work:
    import torch

    from deepcluster.models.projector import Projector
    from deepcluster.prototypes import prototypes_of
    from deepcluster.training_v2 import Crops, train_epoch_v2

    v2, cluster, count = params.train.v2, params.cluster, len(images_NCHW)
    projector = Projector(backbone.feature_dim, hidden=v2.hidden, outputs=v2.outputs)
    optimizers = _optimizers(params, backbone.to(device), projector.to(device))
    centroids_HKP = np.random.default_rng(0).standard_normal((cluster.clusterings, cluster.k, v2.outputs))
    labels_NH = np.repeat(np.arange(count, dtype=np.int32)[:, None] % cluster.k, cluster.clusterings, axis=1)
    crops = Crops(**v2.model_dump(include={"global_crops", "small_crops", "small_size", "small_scale"}))

    def work(number: int) -> None:
        steps = train_epoch_v2(
            backbone,
            projector,
            images_NCHW,
            labels_NH,
            prototypes_of(centroids_HKP.astype(np.float32)),
            np.zeros((count, v2.outputs), np.float32),
            indices=np.arange(max(2, number), dtype=np.int64),
            batch_size=max(2, number),
            crops=crops,
            temperature=v2.temperature,
            bank_rows=v2.bank,
            augmentation=_augmentation(params),
            mean=[0.5] * images_NCHW.shape[1],
            std=[0.25] * images_NCHW.shape[1],
            optimizers=optimizers,
            generator=torch.Generator().manual_seed(0),
            device=device,
            precision=params.train.precision,
        )
        for _ in steps:
            pass

    return work


def _optimizers(params: Params, *parts: "torch.nn.Module") -> "list[torch.optim.Optimizer]":
    """One for each part that is not wholly frozen, at a rate that changes next to nothing."""
    from deepcluster.models.heads import trainable
    from deepcluster.training import OptimizerSettings, build_optimizer

    used = params.train.optimizer
    rate = OptimizerSettings(used.name, 1e-6, used.momentum, used.weight_decay)
    return [build_optimizer(weights, rate) for part in parts if (weights := trainable(part))]


def _augmentation(params: Params) -> "Augmentation":
    from deepcluster.augment import augmentation_of

    return augmentation_of(params.augment, params.data.name)
