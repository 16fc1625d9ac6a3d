"""How large the data set is, as far as that is known without decoding it."""

from dataclasses import dataclass
from pathlib import Path

from deepcluster import artifacts, layout
from deepcluster.artifacts.provenance import plain
from deepcluster.catalogue import known
from deepcluster.datasets.held_out import test_split_of
from deepcluster.errors import DataError
from deepcluster.params.sections import Data

HEADERS = 64  # read of a folder's images, where params leave the size to them


@dataclass(frozen=True)
class DataSize:
    """N images of `channels` x `side` x `side`; classes: how many, None without true labels.

    source: where this is known from. files: some of the images below `folder`, to try how fast they decode; else none.
    test: images of the test split that measures are taken on; 0 where there is none, or it has no true labels.
    """

    count: int
    channels: int
    side: int
    classes: int | None
    source: str
    folder: Path = Path()
    files: tuple[str, ...] = ()
    test: int = 0


def data_size(data: Data) -> DataSize:
    """From images.zarr if it was made with these settings, else from the catalogue, or a folder's names and headers."""
    if found := _prepared(data):
        return found
    root = Path(data.root).expanduser()
    if data.name == "folder":
        return _folder(data, root)
    split = known(data.name, data.split)
    if split is None:
        raise DataError(f"{data.name} has no split {data.split!r}; see docs/data.md")
    channels = 1 if data.grayscale else split.channels
    test = test_split_of(data.name, root=root, split=data.split, test_split=data.test_split)
    held_out = known(data.name, test) if test else None
    return DataSize(
        split.count,
        channels,
        data.image_size or split.side,
        split.classes,
        "known",
        test=held_out.count if held_out and held_out.classes and split.classes else 0,
    )


def _prepared(data: Data) -> DataSize | None:
    """As `prepare` left it, unless that was with other settings."""
    if not layout.IMAGES.exists() or not layout.TARGETS.exists():
        return None
    images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    used, wanted = images.attributes["params"], plain(data.recorded(test_split=False))
    if {name: value for name, value in used.items() if name != "test_split"} != wanted:
        return None
    count, channels, side, _ = images.shape("images")
    names = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare").attributes["class_names"]
    return DataSize(count, channels, side, len(names) if names else None, str(layout.IMAGES), test=_prepared_test())


def _prepared_test() -> int:
    if not layout.TEST_TARGETS.exists():
        return 0
    truth = artifacts.open_store(layout.TEST_TARGETS, "targets", made_by="prepare")
    return truth.shape("targets")[0] if truth.attributes["labelled"] else 0


def _folder(data: Data, root: Path) -> DataSize:
    from deepcluster.datasets.folder import list_images, split_folder
    from deepcluster.projects.look import classes_of, common_side

    base = split_folder(root, data.split, follow_links=data.follow_links)
    listed, _ = list_images(root, base, follow_links=data.follow_links)
    if not listed:
        raise DataError(f"{base}: holds no images that may be read")
    sample = listed[:: max(1, len(listed) // HEADERS)]
    side = data.image_size or common_side(root, sample)
    classes = classes_of(listed, "" if base == root else f"{data.split}/")
    channels = 1 if data.grayscale else 3
    held_out = _held_out(data, root) if classes else 0
    where = f"names in {base}"
    return DataSize(len(listed), channels, side, len(classes) or None, where, root, tuple(sample), held_out)


def _held_out(data: Data, root: Path) -> int:
    """How many images of a folder are kept for evaluate."""
    from deepcluster.datasets.folder import list_images, split_folder

    links = data.follow_links
    test = test_split_of(data.name, root=root, split=data.split, test_split=data.test_split, follow_links=links)
    return len(list_images(root, split_folder(root, test, follow_links=links), follow_links=links)[0]) if test else 0
