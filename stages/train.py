"""train@e: one epoch on the pseudo-labels."""

import csv
import io
import json
from typing import TYPE_CHECKING

from stages.common import Epoch, device, main, open_images, stage

if TYPE_CHECKING:
    from deepcluster.params import Optimizer
    from deepcluster.training import OptimizerSettings, StepResult


def train(epoch: Epoch) -> None:
    """Train the backbone for one epoch to predict the pseudo-labels, under a new head.

    Reads data/dataset/images.zarr, data/epochs/E-1/checkpoint, data/history/E/clusters.zarr and params.yaml's sections
    `train` and `augment`. Writes data/epochs/E/checkpoint, data/history/E/train.json (means of the epoch) and
    data/history/E/steps.csv (a row a step).
    """
    from deepcluster import artifacts, layout
    from deepcluster.augment import Augmentation
    from deepcluster.checkpoint import load_checkpoint, restore_optimizer, save_checkpoint
    from deepcluster.images import open_rows
    from deepcluster.models.build import build_head
    from deepcluster.params import flips
    from deepcluster.progress import counted
    from deepcluster.sampling import uniform_over_clusters
    from deepcluster.seeding import numpy_generator, seed_torch, torch_generator
    from deepcluster.training import build_optimizer, train_epoch

    with stage("train", epoch) as params:
        images, settings, before = open_images(), params.train, epoch - 1
        made_by = layout.made_by_checkpoint(before)
        checkpoint = load_checkpoint(layout.checkpoint(before), made_by=made_by, ids=images.ids, epoch=before)
        clusters = artifacts.open_store(
            layout.clusters(epoch), "clusters", made_by=f"cluster@{epoch}", ids=images.ids, epoch=epoch
        )
        labels_N = clusters.read("labels")
        backbone = checkpoint.backbone.to(device())
        seed_torch(params.seed, "head", epoch)
        head = build_head(backbone.feature_dim, len(clusters.read("sizes"))).to(device())
        optimizer = build_optimizer(backbone.parameters(), _optimizer(settings.optimizer))
        restore_optimizer(optimizer, checkpoint)
        flip = flips(params.augment, images.attributes["params"]["name"])
        size = max(2, round(settings.epoch_size * images.samples))
        steps = train_epoch(
            backbone,
            head,
            open_rows(images),
            labels_N,
            indices=uniform_over_clusters(labels_N, size=size, rng=numpy_generator(params.seed, "sampler", epoch)),
            batch_size=settings.batch_size,
            augmentation=Augmentation(**params.augment.model_dump() | {"flip": flip}),
            mean=images.attributes["mean"],
            std=images.attributes["std"],
            backbone_optimizer=optimizer,
            head_optimizer=build_optimizer(head.parameters(), _optimizer(settings.head)),
            generator=torch_generator(params.seed, "augment", epoch),
            device=device(),
            precision=settings.precision,
            compile=settings.compile,
            loss=settings.loss,
        )
        results = list(counted(steps, f"train@{epoch}", size, "images", lambda step: step.images))
        used = {"train": settings.model_dump(), "augment": params.augment.model_dump()}
        provenance = artifacts.Provenance(images.samples, images.ids, epoch, params.seed, used)
        save_checkpoint(layout.checkpoint(epoch), checkpoint.description, backbone, provenance, optimizer)
        artifacts.write_text(layout.train_steps(epoch), _steps_csv(results))
        summary = _summary(epoch, results)
        artifacts.write_text(layout.train_summary(epoch), json.dumps(summary, indent=2) + "\n")
        print(f"train@{epoch}: loss {summary['loss']:.4f}, pseudo-label accuracy {summary['accuracy']:.3f}")


def _optimizer(section: "Optimizer") -> "OptimizerSettings":
    from deepcluster.training import OptimizerSettings

    betas = (section.beta1, section.beta2)
    return OptimizerSettings(section.name, section.lr, section.momentum, section.weight_decay, betas)


def _summary(epoch: int, results: "list[StepResult]") -> dict[str, float]:
    """Means over the epoch's images, each step's measured before its update."""
    images = sum(step.images for step in results)
    return {
        "epoch": epoch,
        "steps": len(results),
        "images": images,
        "loss": sum(step.loss * step.images for step in results) / images,
        "accuracy": sum(step.accuracy * step.images for step in results) / images,
    }


def _steps_csv(results: "list[StepResult]") -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "images", "loss", "accuracy"])
    writer.writerows([step.step, step.images, repr(step.loss), repr(step.accuracy)] for step in results)
    return text.getvalue()


if __name__ == "__main__":
    main(train)
