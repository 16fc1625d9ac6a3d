"""prepare: the data set, decoded once to uint8 arrays."""

from stages.common import main, stage


def prepare() -> None:
    """Decode the images once, to uint8 [N, C, S, S].

    Reads the images that params.yaml's section `data` names. Writes data/dataset/images.zarr (images, sample ids,
    mean and standard deviation) and data/dataset/targets.zarr (true labels, if any, which nothing but evaluate reads).

    DVC does not watch the images themselves: after changing them, run `dvc repro -s -f prepare`, then `dvc repro`.
    """
    from pathlib import Path

    import numpy as np

    from deepcluster import artifacts, layout
    from deepcluster.datasets.load import load_dataset
    from deepcluster.progress import reporting

    with stage("prepare") as params:
        data = params.data
        with reporting("prepare: decode", "images") as report:
            found = load_dataset(
                data.name,
                root=Path(data.root).expanduser(),
                split=data.split,
                image_size=data.image_size,
                grayscale=data.grayscale,
                max_unreadable=data.max_unreadable,
                progress=report,
            )
        count = len(found.sample_ids)
        provenance = artifacts.Provenance(count, artifacts.ids_hash(found.sample_ids), params=data.model_dump())
        statistics = {"mean": found.mean, "std": found.std, "skipped": found.skipped}
        with artifacts.write_store(layout.IMAGES, "images", provenance, **statistics) as store:
            store.array("images", found.images_NCHW, ("sample", "channel", "row", "column"))
            store.strings("sample_ids", found.sample_ids, ("sample",))
        targets = found.targets_N if found.targets_N is not None else np.empty(0, np.int64)
        names = {"labelled": found.targets_N is not None, "class_names": found.class_names}
        with artifacts.write_store(layout.TARGETS, "targets", provenance, **names) as store:
            store.array("targets", targets, ("labelled_sample",))
        channels, size = found.images_NCHW.shape[1:3]
        print(f"{count:,} images of {size}x{size}, {channels} channels; {len(found.skipped)} files skipped")


if __name__ == "__main__":
    main(prepare)
