"""prepare: the data set, decoded once to uint8 arrays."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import main, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Provenance
    from deepcluster.datasets import Dataset
    from deepcluster.params.sections import Data


def prepare() -> None:
    """Decode the images once, to uint8 [N, C, S, S].

    Reads the images that params.yaml's section `data` names. Writes data/dataset/images.zarr (images, sample ids,
    mean and standard deviation), data/dataset/targets.zarr (true labels, if any, which nothing but evaluate reads), and
    the same of the test split, which nothing else reads either: data/dataset/test.zarr and
    data/dataset/test_targets.zarr, with no rows where there is none.

    DVC does not watch the images themselves: after changing them, run `dvc repro -s -f prepare`, then `dvc repro`.
    """
    from deepcluster import artifacts, layout
    from deepcluster.datasets.held_out import test_split_of

    with stage("prepare") as params:
        data = params.data
        root = Path(data.root).expanduser()
        test_split = test_split_of(
            data.name, root=root, split=data.split, test_split=data.test_split, follow_links=data.follow_links
        )
        found = _load(data, data.split, "decode")
        test, test_targets = _test(data, test_split, found)
        # without the name of the test split, which trains nothing: another one leaves these bytes as they are
        used = data.recorded(test_split=False)
        ids = artifacts.ids_hash(found.sample_ids)
        provenance = artifacts.Provenance(len(found.sample_ids), ids, params=used)
        statistics = {"mean": found.mean, "std": found.std, "skipped": found.skipped}
        with artifacts.write_store(layout.IMAGES, "images", provenance, **statistics) as store:
            store.array("images", found.images_NCHW, ("sample", "channel", "row", "column"))
            store.strings("sample_ids", found.sample_ids, ("sample",))
        _write_targets(layout.TARGETS, provenance, found.targets_N, found.class_names)
        images, sample_ids = (found.images_NCHW[:0], []) if test is None else (test.images_NCHW, test.sample_ids)
        of_test = artifacts.Provenance(len(sample_ids), artifacts.ids_hash(sample_ids), params=data.recorded())
        described = {"split": test_split if test else None, "train_ids": ids, "skipped": test.skipped if test else []}
        with artifacts.write_store(layout.TEST_IMAGES, "test_images", of_test, **described) as store:
            store.array("images", images, ("sample", "channel", "row", "column"))
            store.strings("sample_ids", sample_ids, ("sample",))
        _write_targets(layout.TEST_TARGETS, of_test, test_targets, found.class_names)
        _report(found, test, test_split)


def _load(data: "Data", split: str, label: str) -> "Dataset":
    from deepcluster.datasets.load import load_dataset
    from deepcluster.progress import reporting

    with reporting(f"prepare: {label}", "images") as report:
        return load_dataset(
            data.name,
            root=Path(data.root).expanduser(),
            split=split,
            image_size=data.image_size,
            grayscale=data.grayscale,
            max_unreadable=data.max_unreadable,
            follow_links=data.follow_links,
            progress=report,
        )


def _test(data: "Data", test_split: str | None, train: "Dataset") -> "tuple[Dataset | None, NDArray[np.int64] | None]":
    """The test split and its targets. One that nobody asked for by name may be missing; that is said, and no error."""
    from deepcluster.datasets.held_out import aligned
    from deepcluster.errors import MissingDataError

    if test_split is None:
        return None, None
    try:
        test = _load(data, test_split, f"decode {test_split}")
    except MissingDataError as error:
        if data.test_split is not None:
            raise
        print(f"no test images: {error}; data.test_split: none leaves them out without a word")
        return None, None
    return test, aligned(test, train)


def _write_targets(
    target: Path, provenance: "Provenance", targets_N: "NDArray[np.int64] | None", names: "Sequence[str] | None"
) -> None:
    import numpy as np

    from deepcluster import artifacts

    labelled = targets_N is not None
    with artifacts.write_store(target, "targets", provenance, labelled=labelled, class_names=names) as store:
        store.array("targets", np.empty(0, np.int64) if targets_N is None else targets_N, ("labelled_sample",))


def _report(found: "Dataset", test: "Dataset | None", test_split: str | None) -> None:
    channels, size = found.images_NCHW.shape[1:3]
    count = len(found.sample_ids)
    print(f"{count:,} images of {size}x{size}, {channels} channels; {len(found.skipped)} files skipped")
    if test is not None:
        print(f"{len(test.sample_ids):,} test images ({test_split}), for evaluate alone; {len(test.skipped)} skipped")


if __name__ == "__main__":
    main(prepare)
