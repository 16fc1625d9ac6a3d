"""extract@e: features of every image."""

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from stages.common import Epoch, device, main, open_images
from stages.resuming import noting, progress_of
from stages.together import refuse_idle, started, together, write_shards

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Provenance, Store, StoreWriter
    from deepcluster.checkpoint import Checkpoint
    from deepcluster.distributed import Process
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

    if started("extract", epoch):
        return
    with together("extract", epoch) as (params, process):
        images, before = open_images(), epoch - 1
        made_by = layout.made_by_checkpoint(before)
        checkpoint = load_checkpoint(layout.checkpoint(before), made_by=made_by, ids=images.ids, epoch=before)
        used = params.extract.model_dump()
        provenance = artifacts.Provenance(images.samples, images.ids, epoch, params.seed, used)
        bank_NP = artifacts.read_bank(checkpoint.path)
        if bank_NP is None:
            _write_computed(provenance, epoch, images, checkpoint, params.extract, process)
        elif process.first:
            with artifacts.write_store(layout.features(epoch), "features", provenance) as store:
                rows = counted([bank_NP], f"extract@{epoch}", images.samples, "images")
                store.rows("features", rows, total=images.samples, dimensions=AXES)


def _write_computed(
    provenance: "Provenance",
    epoch: int,
    images: "Store",
    checkpoint: "Checkpoint",
    settings: "Extract",
    process: "Process",
) -> None:
    """The features' store, going on after the rows that an interrupted run has written."""
    from functools import partial

    from deepcluster import artifacts
    from deepcluster.features import extract_features
    from deepcluster.images import rows_in_order
    from deepcluster.models.projector import ProjectedBackbone
    from deepcluster.progress import counted

    label = f"extract@{epoch}"
    process.agree(label, {"images": images.attributes["digest"], "checkpoint": checkpoint.digest})
    backbone = checkpoint.backbone
    if checkpoint.projector:  # DeepCluster-v2's, before there is a bank
        backbone = ProjectedBackbone(backbone, checkpoint.projector)
    shape = images.samples, backbone.feature_dim
    refuse_idle(process, label, artifacts.shard_count(shape, "float32"), "shard")
    rows_NCHW = rows_in_order(images, process)

    def compute(rows: slice) -> "Iterator[NDArray[np.float32]]":
        blocks = extract_features(
            backbone,
            rows_NCHW,
            batch_size=settings.batch_size,
            mean=images.attributes["mean"],
            std=images.attributes["std"],
            device=device(),
            precision=settings.precision,
            compile=settings.compile,
            first=rows.start,
            last=rows.stop,
        )
        noted = noting(blocks, progress)
        return counted(noted, process.label(label), rows.stop, "images", start=rows.start) if process.first else noted

    # checkpoint.json has the checksums of the other files, which were verified
    inputs = {"images": images.path, "checkpoint": checkpoint.path / "checkpoint.json"}
    settings_used = settings.model_dump(mode="json")
    with progress_of("extract", epoch, settings_used, inputs, process, once=True) as progress:
        left, folder = _kept(progress, images.samples)
        with _writing(provenance, epoch, folder, process) as store, progress.catching():
            waiting = partial(progress.boundary, dict)
            write_shards(process, store, "features", shape, AXES, compute, left=left, meanwhile=waiting)
        progress.clear()


def _writing(
    provenance: "Provenance", epoch: int, folder: "Path | None", process: "Process"
) -> "AbstractContextManager[StoreWriter | None]":
    """The store, where it is kept if there is such a folder; None for all processes but the first."""
    from deepcluster import artifacts, layout

    if not process.first:
        return nullcontext()
    target = layout.features(epoch)
    if folder is None:
        return artifacts.write_store(target, "features", provenance)
    return artifacts.continue_store(folder, target, "features", provenance)


def _kept(progress: "Progress", images: int) -> "tuple[list[slice] | None, Path | None]":
    """Rows that are not there yet (None: all), and where to write; None if progress cannot be kept."""
    from deepcluster import artifacts
    from deepcluster.progress import reporting

    found = progress.found()
    if not progress.claim():
        return None, None
    folder = progress.folder / "features.zarr"
    if found is None or not folder.is_dir():
        return None, folder
    with reporting(f"{progress.label}: check", "images") as report:
        left = artifacts.keep_intact(folder, "features", report)
    if left is not None:
        print(f"{progress.label}: continues at image {left[0].start:,} of {images:,}", file=sys.stderr)
    return left, folder


if __name__ == "__main__":
    main(extract)
