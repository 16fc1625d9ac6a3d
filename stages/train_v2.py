"""What train@e does for DeepCluster-v2, and what it shares with DeepCluster."""

from typing import TYPE_CHECKING

from stages.common import device
from stages.resuming import take_steps

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch.optim import Optimizer

    from deepcluster import params
    from deepcluster.artifacts import Store
    from deepcluster.checkpoint import Checkpoint
    from deepcluster.params import Params
    from deepcluster.params.sections import Train
    from deepcluster.resuming import Progress
    from deepcluster.training import OptimizerSettings, StepResult


def train_v2(
    params: "Params", epoch: int, images: "Store", checkpoint: "Checkpoint", clusters: "Store", progress: "Progress"
) -> "list[StepResult]":
    """DeepCluster-v2: a projector in front of the centroids; publishes the checkpoint, with the bank."""
    from functools import partial

    import numpy as np

    from deepcluster.augment import augmentation_of
    from deepcluster.images import open_rows
    from deepcluster.prototypes import prototypes_of
    from deepcluster.sampling import each_in_turn
    from deepcluster.schedules import LearningRate
    from deepcluster.seeding import numpy_generator
    from deepcluster.training import batches
    from deepcluster.training_state import TrainingState
    from deepcluster.training_v2 import Crops, train_epoch_v2

    settings, projector = params.train, checkpoint.projector
    assert projector is not None
    labels_NH, centroids_HKP = _clusterings(clusters, projector.outputs)
    _refuse_crops(settings, checkpoint)
    checkpoint.backbone.to(device()), projector.to(device())
    both = _optimizers(settings, checkpoint)
    optimizers = [optimizer for optimizer in both if optimizer]
    bank_NP = np.zeros((images.samples, projector.outputs), np.float32)
    size = round(settings.epoch_size * images.samples)
    indices = each_in_turn(images.samples, size=size, rng=numpy_generator(params.seed, "sampler", epoch))
    crops = settings.v2.model_dump(include={"global_crops", "small_crops", "small_size", "small_scale"})
    generators = augmenting(params, epoch)

    def begin(taken: int) -> "Generator[StepResult]":
        return train_epoch_v2(
            checkpoint.backbone,
            projector,
            open_rows(images),
            labels_NH,
            prototypes_of(centroids_HKP),
            bank_NP,
            indices=indices,
            batch_size=settings.batch_size,
            crops=Crops(**crops),
            temperature=settings.v2.temperature,
            bank_rows=settings.v2.bank,
            augmentation=augmentation_of(params.augment, images.attributes["params"]["name"]),
            mean=images.attributes["mean"],
            std=images.attributes["std"],
            optimizers=optimizers,
            generator=generators["augment"],
            colour_generator=generators["colour"],
            device=device(),
            precision=settings.precision,
            lr_factor=partial(LearningRate(**settings.schedule.model_dump(exclude={"head"})).in_step, epoch),
            clip_norm=settings.clip_norm,
            compile=settings.compile,
            taken=taken,
        )

    modules = {"backbone": checkpoint.backbone, "projector": projector}
    state = TrainingState(modules, optimizers, generators, {"bank": bank_NP})
    count = len(batches(indices, settings.batch_size))
    results = take_steps(begin, state, progress, steps=count, images=len(indices))
    _publish(params, epoch, images, checkpoint, both, bank_NP)
    return results


def augmenting(params: "Params", epoch: int) -> "dict[str, torch.Generator]":
    """The generators that training draws from."""
    from deepcluster.seeding import torch_generator

    return {
        "augment": torch_generator(params.seed, "augment", epoch),
        "colour": torch_generator(params.seed, "colour", epoch),
    }


def optimizer_settings(section: "params.Optimizer") -> "OptimizerSettings":
    """Of a section of params.yaml."""
    from deepcluster.training import OptimizerSettings

    betas = (section.beta1, section.beta2)
    return OptimizerSettings(section.name, section.lr, section.momentum, section.weight_decay, betas)


def refuse_other_method(settings: "Train", checkpoint: "Checkpoint") -> None:
    """ArtifactError for a checkpoint of the other method, or one with a projector of other size."""
    from deepcluster.errors import ArtifactError

    found, wanted = "no projector", "no projector"
    if checkpoint.projector:
        found = f"a projector of {checkpoint.projector.hidden} and {checkpoint.projector.outputs} outputs"
    if settings.method == "deepcluster_v2":
        wanted = f"a projector of {settings.v2.hidden} and {settings.v2.outputs} outputs"
    if found != wanted:
        raise ArtifactError(
            f"{checkpoint.path}: train.method {settings.method} expects {wanted}, got {found}; "
            "run `dvc repro initialise` and the stages after it (`dvc repro` does)"
        )


def _clusterings(clusters: "Store", outputs: int) -> "tuple[NDArray[np.int32], NDArray[np.float32]]":
    """Labels [N, H] and centroids [H, K, P]; ArtifactError for centroids of other rows than projections."""
    from deepcluster.errors import ArtifactError

    if clusters.has("labels_all"):
        labels_HN, centroids_HKP = clusters.read("labels_all"), clusters.read("centroids_all")
    else:
        labels_HN, centroids_HKP = clusters.read("labels")[None], clusters.read("centroids")[None]
    if centroids_HKP.shape[2] != outputs:
        raise ArtifactError(
            f"{clusters.path}: expected centroids of {outputs} values, as projections have, got "
            f"{centroids_HKP.shape[2]}; run the stages before it (`dvc repro` does)"
        )
    return labels_HN.T.copy(), centroids_HKP


def _refuse_crops(settings: "Train", checkpoint: "Checkpoint") -> None:
    """Small crops that this backbone does not take."""
    from deepcluster.models.sizes import refuse_small_crops

    made_for = checkpoint.description
    if settings.v2.small_crops:
        refuse_small_crops(
            settings.v2.small_size,
            made_for.build,
            arch=made_for.arch,
            channels=made_for.channels,
            image_size=made_for.image_size,
        )


def _optimizers(settings: "Train", checkpoint: "Checkpoint") -> "tuple[Optimizer | None, Optimizer]":
    """The backbone's (None if all of it is frozen) and the projector's: the same settings, both carried on.

    Two, because their states lie in two files; they change every weight as one would.
    """
    from deepcluster.checkpoint import restore_optimizer
    from deepcluster.models.freezing import freeze
    from deepcluster.models.heads import trainable
    from deepcluster.training import build_optimizer

    optimizer, projector = None, checkpoint.projector
    assert projector is not None
    freeze(checkpoint.backbone, settings.freeze)
    if weights := trainable(checkpoint.backbone):
        optimizer = build_optimizer(weights, optimizer_settings(settings.optimizer))
        restore_optimizer(optimizer, checkpoint.backbone, checkpoint.optimizer, checkpoint.path)
    of_projector = build_optimizer(projector.parameters(), optimizer_settings(settings.optimizer))
    restore_optimizer(of_projector, projector, checkpoint.head_optimizer, checkpoint.path)
    return optimizer, of_projector


def _publish(
    params: "Params",
    epoch: int,
    images: "Store",
    checkpoint: "Checkpoint",
    optimizers: "tuple[Optimizer | None, Optimizer]",
    bank_NP: "NDArray[np.float32]",
) -> None:
    """The checkpoint: backbone, projector, both optimizers, and the rows that the next epoch clusters."""
    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import optimizer_state, save_checkpoint

    projector = checkpoint.projector
    assert projector is not None
    used = {"train": params.train.model_dump(), "augment": params.augment.model_dump()}
    save_checkpoint(
        layout.checkpoint(epoch),
        checkpoint.description,
        checkpoint.backbone,
        artifacts.Provenance(images.samples, images.ids, epoch, params.seed, used),
        optimizers[0],
        head_optimizer=optimizer_state(optimizers[1], projector),
        projector=projector,
        bank_NP=bank_NP,
    )
