"""extract@e: features of every image."""

from typing import TYPE_CHECKING

from stages.common import Epoch, device, main, open_images, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Store
    from deepcluster.checkpoint import Checkpoint
    from deepcluster.params.sections import Extract


def extract(epoch: Epoch) -> None:
    """Compute the features of every image with the backbone of the epoch before; of DeepCluster-v2 hand over its bank.

    Reads data/dataset/images.zarr, data/epochs/E-1/checkpoint and params.yaml's section `extract`.
    Writes data/epochs/E/features.zarr: float32 [N, D], row i belonging to image i.
    """
    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import load_checkpoint
    from deepcluster.progress import counted

    with stage("extract", epoch) as params:
        images, settings, before = open_images(), params.extract, epoch - 1
        made_by = layout.made_by_checkpoint(before)
        checkpoint = load_checkpoint(layout.checkpoint(before), made_by=made_by, ids=images.ids, epoch=before)
        bank_NP = artifacts.read_bank(checkpoint.path)
        blocks = _computed(images, checkpoint, settings) if bank_NP is None else iter([bank_NP])
        provenance = artifacts.Provenance(images.samples, images.ids, epoch, params.seed, settings.model_dump())
        with artifacts.write_store(layout.features(epoch), "features", provenance) as store:
            rows = counted(blocks, f"extract@{epoch}", images.samples, "images")
            store.rows("features", rows, total=images.samples, dimensions=("sample", "feature"))


def _computed(images: "Store", checkpoint: "Checkpoint", settings: "Extract") -> "Iterator[NDArray[np.float32]]":
    """Blocks of features, or of projections before there is a bank of them."""
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
    )


if __name__ == "__main__":
    main(extract)
