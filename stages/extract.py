"""extract@e: features of every image."""

import sys
from typing import TYPE_CHECKING

from stages.common import Epoch, device, main, open_images, stage
from stages.resuming import noting, progress_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Provenance, Store
    from deepcluster.checkpoint import Checkpoint
    from deepcluster.params.sections import Extract
    from deepcluster.resuming import Progress

AXES = ("sample", "feature")


def extract(epoch: Epoch) -> None:
    """Compute the features of every image with the backbone of the epoch before; of DeepCluster-v2 hand over its bank.

    Reads data/dataset/images.zarr, data/epochs/E-1/checkpoint and params.yaml's section `extract`.
    Writes data/epochs/E/features.zarr: float32 [N, D], row i belonging to image i.
    """
    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import load_checkpoint
    from deepcluster.progress import counted

    with stage("extract", epoch) as params:
        images, before = open_images(), epoch - 1
        made_by = layout.made_by_checkpoint(before)
        checkpoint = load_checkpoint(layout.checkpoint(before), made_by=made_by, ids=images.ids, epoch=before)
        used = params.extract.model_dump()
        provenance = artifacts.Provenance(images.samples, images.ids, epoch, params.seed, used)
        bank_NP = artifacts.read_bank(checkpoint.path)
        if bank_NP is None:
            _write_computed(provenance, epoch, images, checkpoint, params.extract)
        else:
            with artifacts.write_store(layout.features(epoch), "features", provenance) as store:
                rows = counted([bank_NP], f"extract@{epoch}", images.samples, "images")
                store.rows("features", rows, total=images.samples, dimensions=AXES)


def _write_computed(
    provenance: "Provenance", epoch: int, images: "Store", checkpoint: "Checkpoint", settings: "Extract"
) -> None:
    """The features' store, going on after the rows that an interrupted run has written."""
    from deepcluster import artifacts, layout
    from deepcluster.progress import counted

    target, label = layout.features(epoch), f"extract@{epoch}"
    # checkpoint.json has the checksums of the other files, which were verified
    inputs = {"images": images.path, "checkpoint": checkpoint.path / "checkpoint.json"}
    with progress_of("extract", epoch, settings.model_dump(mode="json"), inputs, once=True) as progress:
        first, folder = _kept(progress, images.samples)
        writing = (
            artifacts.continue_store(folder, target, "features", provenance)
            if folder
            else artifacts.write_store(target, "features", provenance)
        )
        with writing as store, progress.catching():
            blocks = noting(_computed(images, checkpoint, settings, first), progress)
            rows = counted(blocks, label, images.samples, "images", start=first)
            store.rows("features", rows, total=images.samples, dimensions=AXES, start=first)
        progress.clear()


def _kept(progress: "Progress", images: int) -> "tuple[int, Path | None]":
    """How many rows are there already, and where to write; None if progress cannot be kept."""
    from deepcluster import artifacts
    from deepcluster.progress import reporting

    found = progress.found()
    if not progress.claim():
        return 0, None
    folder = progress.folder / "features.zarr"
    if found is None or not folder.is_dir():
        return 0, folder
    with reporting(f"{progress.label}: check", "images") as report:
        first = artifacts.keep_intact(folder, "features", report)
    if first:
        print(f"{progress.label}: continues at image {first:,} of {images:,}", file=sys.stderr)
    return first, folder


def _computed(
    images: "Store", checkpoint: "Checkpoint", settings: "Extract", first: int
) -> "Generator[NDArray[np.float32]]":
    """Blocks of features from image `first` on, or of projections before there is a bank of them."""
    from deepcluster.features import extract_features
    from deepcluster.images import rows_in_order
    from deepcluster.models.projector import ProjectedBackbone

    backbone = checkpoint.backbone
    return extract_features(
        ProjectedBackbone(backbone, checkpoint.projector) if checkpoint.projector else backbone,
        rows_in_order(images),
        batch_size=settings.batch_size,
        mean=images.attributes["mean"],
        std=images.attributes["std"],
        device=device(),
        precision=settings.precision,
        compile=settings.compile,
        first=first,
    )


if __name__ == "__main__":
    main(extract)
