"""train@e: one epoch on the pseudo-labels."""

import csv
import io
from typing import TYPE_CHECKING

from stages.common import Epoch, device, main, open_images
from stages.resuming import progress_of, take_steps
from stages.together import started, together
from stages.train_v2 import augmenting, optimizer_settings, refuse_other_method, train_v2

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray
    from torch.optim import Optimizer

    from deepcluster.artifacts import Store
    from deepcluster.checkpoint import Checkpoint
    from deepcluster.distributed import Process
    from deepcluster.models.build import Backbone
    from deepcluster.models.heads import Heads
    from deepcluster.params import Params
    from deepcluster.resuming import Progress
    from deepcluster.training import StepResult


def train(epoch: Epoch) -> None:
    """Train the backbone for one epoch to predict the pseudo-labels, under a new head unless the params keep it.

    DeepCluster-v2 trains a projector in front of fixed prototypes in the place of a head, and fills its bank.
    Reads data/dataset/images.zarr, data/epochs/E-1/checkpoint, data/history/E/clusters.zarr and params.yaml's sections
    `train` and `augment`. Writes data/epochs/E/checkpoint, data/history/E/train.json (means of the epoch) and
    data/history/E/steps.csv (a row a step).
    """
    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import load_checkpoint

    if started("train", epoch, _alone):
        return
    with together("train", epoch, _alone) as (params, process):
        images, before = open_images(), epoch - 1
        made_by = layout.made_by_checkpoint(before)
        checkpoint = load_checkpoint(
            layout.checkpoint(before), made_by=made_by, ids=images.ids, epoch=before, to_train=True
        )
        clusters = artifacts.open_store(
            layout.clusters(epoch), "clusters", made_by=f"cluster@{epoch}", ids=images.ids, epoch=epoch
        )
        refuse_other_method(params.train, checkpoint)
        _refuse_small_batch(params, epoch, process)
        told = {"images": images.attributes["digest"], "clusters": clusters.attributes["digest"]}
        process.agree(f"train@{epoch}", told | {"checkpoint": checkpoint.digest})
        with _progress(params, epoch, images, checkpoint, clusters, process) as progress:
            if params.train.method == "deepcluster_v2":
                results = train_v2(params, epoch, images, checkpoint, clusters, progress)
            else:
                results = _train(params, epoch, images, checkpoint, clusters, progress, process)
            if not process.first:
                return
            artifacts.write_text(layout.train_steps(epoch), _steps_csv(results))
            summary = _summary(epoch, results)
            artifacts.write_json(layout.train_summary(epoch), summary)
            progress.clear()
        print(f"train@{epoch}: {_described(summary)}")


def _alone(params: "Params") -> str | None:
    return "train.method deepcluster_v2" if params.train.method == "deepcluster_v2" else None


def _refuse_small_batch(params: "Params", epoch: int, process: "Process") -> None:
    from deepcluster.errors import DistributedError
    from deepcluster.training_parts import LEAST_IMAGES

    if process.count > 1 and params.train.batch_size < LEAST_IMAGES * process.count:
        raise DistributedError(
            f"train@{epoch}: train.batch_size {params.train.batch_size} is shared by {process.count} processes, which "
            f"need {LEAST_IMAGES} images each; start fewer, or raise it"
        )


def _progress(
    params: "Params", epoch: int, images: "Store", checkpoint: "Checkpoint", clusters: "Store", process: "Process"
) -> "Progress":
    """What an interrupted run of this epoch kept, and what this one keeps."""
    settings = params.model_dump(mode="json", include={"seed", "train", "augment"})
    # checkpoint.json has the checksums of the other files, which were verified
    inputs = {"images": images.path, "checkpoint": checkpoint.path / "checkpoint.json", "clusters": clusters.path}
    return progress_of("train", epoch, settings, inputs, process)


def _train(
    params: "Params",
    epoch: int,
    images: "Store",
    checkpoint: "Checkpoint",
    clusters: "Store",
    progress: "Progress",
    process: "Process",
) -> "list[StepResult]":
    """DeepCluster: a head over the pseudo-labels; publishes the checkpoint."""
    from functools import partial

    from deepcluster.augment import augmentation_of
    from deepcluster.contrastive import Objective
    from deepcluster.images import open_rows
    from deepcluster.schedules import LearningRate
    from deepcluster.training import averaged, batches, train_epoch
    from deepcluster.training_state import TrainingState

    settings, labels_N = params.train, clusters.read("labels")
    backbone = checkpoint.backbone.to(device())
    heads = _heads(params, checkpoint, epoch, len(clusters.read("sizes"))).to(device())
    optimizer, head_optimizer = _optimizers(params, checkpoint, heads)
    optimizers = [optimizer, head_optimizer] if optimizer else [head_optimizer]
    average = None if settings.average is None else _average(checkpoint).to(device())
    indices, generators = _indices(params, epoch, images, clusters), augmenting(params, epoch)

    def begin(taken: int) -> "Generator[StepResult]":
        steps = train_epoch(
            backbone,
            heads,
            open_rows(images, process),
            labels_N,
            indices=indices,
            batch_size=settings.batch_size,
            augmentation=augmentation_of(params.augment, images.attributes["params"]["name"]),
            mean=images.attributes["mean"],
            std=images.attributes["std"],
            optimizers=optimizers,
            generator=generators["augment"],
            colour_generator=generators["colour"],
            device=device(),
            precision=settings.precision,
            objective=Objective(settings.loss, **settings.contrastive.model_dump(exclude={"projection"})),
            lr_factor=partial(LearningRate(**settings.schedule.model_dump(exclude={"head"})).in_step, epoch),
            unscheduled=[] if settings.schedule.head else [head_optimizer],
            clip_norm=settings.clip_norm,
            compile=settings.compile,
            taken=taken,
            process=process,
            sync_batch_norm=settings.sync_batch_norm,
        )
        return averaged(steps, backbone, average, decay=settings.average or 0.0) if average else steps

    modules = {"backbone": backbone, "heads": heads} | ({"average": average} if average else {})
    count = len(batches(indices, settings.batch_size))
    state = TrainingState(modules, optimizers, generators)
    results = take_steps(begin, state, progress, steps=count, images=len(indices), process=process)
    if process.first:
        _publish(params, epoch, images, checkpoint, heads, optimizer, head_optimizer, average)
    return results


def _indices(params: "Params", epoch: int, images: "Store", clusters: "Store") -> "NDArray[np.int64]":
    """The images of the epoch, in the order in which they are trained on."""
    from deepcluster.sampling import nearest_of_each, uniform_over_clusters
    from deepcluster.seeding import numpy_generator

    labels_N, kept_N, share = clusters.read("labels"), None, params.train.keep
    if share < 1:
        kept_N = nearest_of_each(labels_N, clusters.read("distances"), share=share)
    size = max(2, round(params.train.epoch_size * images.samples))
    rng = numpy_generator(params.seed, "sampler", epoch)
    return uniform_over_clusters(labels_N, size=size, rng=rng, among_N=kept_N)


def _heads(params: "Params", checkpoint: "Checkpoint", epoch: int, k: int) -> "Heads":
    """Fresh heads, or from epoch 2 on with what the epoch before left of them."""
    from deepcluster.checkpoint import restore_heads
    from deepcluster.models.heads import build_heads
    from deepcluster.seeding import seed_torch

    settings = params.train
    seed_torch(params.seed, "head", epoch)
    contrastive = settings.contrastive
    projection = None if contrastive.strategy == "none" else contrastive.projection
    heads = build_heads(checkpoint.backbone.feature_dim, k, projection=projection)
    if epoch > 1:
        restore_heads(heads, checkpoint, classifier=not settings.head.reset)
    return heads


def _optimizers(params: "Params", checkpoint: "Checkpoint", heads: "Heads") -> "tuple[Optimizer | None, Optimizer]":
    """The backbone's, over the parts that are not frozen (None if all are), and the heads'; with what is carried on."""
    from deepcluster.checkpoint import restore_optimizer
    from deepcluster.errors import UserError
    from deepcluster.models.freezing import freeze
    from deepcluster.models.heads import trainable
    from deepcluster.training import build_optimizer

    settings, backbone, optimizer = params.train, checkpoint.backbone, None
    freeze(backbone, settings.freeze)
    if weights := trainable(backbone):
        optimizer = build_optimizer(weights, optimizer_settings(settings.optimizer))
        restore_optimizer(optimizer, backbone, checkpoint.optimizer, checkpoint.path)
    elif settings.contrastive.strategy != "none" and not settings.contrastive.label_weight:
        raise UserError("train.freeze: leaves nothing to train, as train.contrastive.label_weight is 0")
    head_optimizer = build_optimizer(heads.parameters(), optimizer_settings(settings.head))
    if settings.head.carry_optimizer:
        restore_optimizer(head_optimizer, heads, checkpoint.head_optimizer, checkpoint.path)
    return optimizer, head_optimizer


def _average(checkpoint: "Checkpoint") -> "Backbone":
    """The averaged backbone to go on with; where there is none, one that starts from the weights."""
    from copy import deepcopy

    from deepcluster.checkpoint import load_weights

    average = deepcopy(checkpoint.backbone)
    if checkpoint.average:
        load_weights(average, checkpoint.average, checkpoint.path)
    return average


def _publish(
    params: "Params",
    epoch: int,
    images: "Store",
    checkpoint: "Checkpoint",
    heads: "Heads",
    optimizer: "Optimizer | None",
    head_optimizer: "Optimizer",
    average: "Backbone | None",
) -> None:
    """The checkpoint: the backbone and what the next epoch goes on with."""
    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import kept_weights, optimizer_state, save_checkpoint

    settings = params.train
    used = {"train": settings.model_dump(), "augment": params.augment.model_dump()}
    save_checkpoint(
        layout.checkpoint(epoch),
        checkpoint.description,
        checkpoint.backbone,
        artifacts.Provenance(images.samples, images.ids, epoch, params.seed, used),
        optimizer,
        kept=kept_weights(heads, classifier=not settings.head.reset),
        head_optimizer=optimizer_state(head_optimizer, heads) if settings.head.carry_optimizer else None,
        average=average,
    )


def _summary(epoch: int, results: "list[StepResult]") -> dict[str, float | None]:
    """Means over the epoch's images, each step's measured before its update; None for what is not trained on."""
    images = sum(step.images for step in results)

    def mean(values: "list[float]") -> float:
        return sum(value * step.images for value, step in zip(values, results, strict=True)) / images

    contrastive = [step.contrastive_loss for step in results if step.contrastive_loss is not None]
    return {
        "epoch": epoch,
        "steps": len(results),
        "images": images,
        "loss": mean([step.loss for step in results]),
        "accuracy": mean([step.accuracy for step in results]),
        "pseudo_label_loss": mean([step.pseudo_label_loss for step in results]),
        "contrastive_loss": mean(contrastive) if contrastive else None,
    }


def _described(summary: "dict[str, float | None]") -> str:
    terms = ""
    if summary["contrastive_loss"] is not None:
        terms = f" (pseudo-labels {summary['pseudo_label_loss']:.4f}, contrastive {summary['contrastive_loss']:.4f})"
    return f"loss {summary['loss']:.4f}{terms}, pseudo-label accuracy {summary['accuracy']:.3f}"


def _steps_csv(results: "list[StepResult]") -> str:
    """A row a step; contrastive_loss is empty without a strategy."""
    text = io.StringIO()
    columns = ["step", "images", "loss", "accuracy", "pseudo_label_loss", "contrastive_loss", "lr"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(step) for step in results)
    return text.getvalue()


if __name__ == "__main__":
    main(train)
