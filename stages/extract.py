"""extract@e: features of every image."""

from stages.common import Epoch, device, main, open_images, stage


def extract(epoch: Epoch) -> None:
    """Compute the features of every image with the backbone of the epoch before.

    Reads data/dataset/images.zarr, data/epochs/E-1/checkpoint and params.yaml's section `extract`.
    Writes data/epochs/E/features.zarr: float32 [N, D], row i belonging to image i.
    """
    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import load_checkpoint
    from deepcluster.features import extract_features
    from deepcluster.images import open_rows
    from deepcluster.progress import counted

    with stage("extract", epoch) as params:
        images, settings, before = open_images(), params.extract, epoch - 1
        made_by = layout.made_by_checkpoint(before)
        checkpoint = load_checkpoint(layout.checkpoint(before), made_by=made_by, ids=images.ids, epoch=before)
        blocks = extract_features(
            checkpoint.backbone,
            open_rows(images),
            batch_size=settings.batch_size,
            mean=images.attributes["mean"],
            std=images.attributes["std"],
            device=device(),
            precision=settings.precision,
            compile=settings.compile,
        )
        provenance = artifacts.Provenance(images.samples, images.ids, epoch, params.seed, settings.model_dump())
        with artifacts.write_store(layout.features(epoch), "features", provenance) as store:
            rows = counted(blocks, f"extract@{epoch}", images.samples, "images")
            store.rows("features", rows, total=images.samples, dimensions=("sample", "feature"))


if __name__ == "__main__":
    main(extract)
