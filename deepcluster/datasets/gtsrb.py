"""GTSRB, German traffic signs in 43 classes: photographs in colour, 15 to 250 pixels a side, below ROOT/gtsrb.

Torchvision's layout: GTSRB/Training/000CC/*.ppm with GT-000CC.csv in each of the 43 folders; and, for the test,
GTSRB/Final_Test/Images/*.ppm with GT-final_test.csv at the top. The tables have `;` between fields. Where a part is
missing, its archive in ROOT/gtsrb is unpacked, after a download if it is not there or not the right one.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepcluster.datasets.fetch import FETCH_AGAIN, Archive, check_split, ensure_unpacked, lies_there
from deepcluster.datasets.folder import FolderImages
from deepcluster.datasets.trees import check_listed, decode_tree, labels_by_file, list_tree
from deepcluster.errors import DataError

SITE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
TRAINING, IMAGES, TRUTH = "GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv"
ARCHIVES = {
    "train": (
        Archive(f"{SITE}GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478", (TRAINING,), folders=True),
    ),
    "test": (
        Archive(f"{SITE}GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", (IMAGES,), folders=True),
        Archive(f"{SITE}GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", (TRUTH,)),
    ),
}
DEFAULT_SIDE = 32
# The files number the classes only.
CLASS_NAMES = (
    "20 km/h", "30 km/h", "50 km/h", "60 km/h", "70 km/h", "80 km/h", "end of 80 km/h", "100 km/h", "120 km/h",
    "no passing", "no passing over 3.5 t", "right of way at the next crossing", "priority road", "give way", "stop",
    "no vehicles", "no lorries", "no entry", "danger", "bend to the left", "bend to the right", "double bend",
    "bumpy road", "slippery road", "road narrows on the right", "road works", "traffic lights", "pedestrians",
    "children", "bicycles", "ice or snow", "wild animals", "end of all limits", "turn right ahead", "turn left ahead",
    "ahead only", "ahead or right", "ahead or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing over 3.5 t",
)  # fmt: skip


def read_gtsrb(
    root: Path,
    split: str,
    *,
    image_size: int | None = None,
    grayscale: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FolderImages:
    """Images uint8 [N, C, S, S] in the order of their paths, with targets and names; split is "train" or "test".

    The pictures differ in size and shape, so each is scaled to S = image_size (None: 32), width and height each on its
    own: a square cut from the centre would lose edges of signs that are not square in the picture. Nothing is cropped
    to the tables' region of interest. "train" is what torchvision reads, 26,640 images.
    """
    check_split("gtsrb", split, ARCHIVES)
    base = root / "gtsrb"
    ensure_unpacked("gtsrb", root, base, ARCHIVES[split])
    labels = _training_labels(base / TRAINING) if split == "train" else _test_labels(base)
    folder = base / (TRAINING if split == "train" else IMAGES)
    listed = list_tree(root, folder)
    check_listed(root, listed, labels, TRUTH if split == "test" else "the classes' tables")
    images_NCHW = decode_tree(
        root, listed, side=image_size or DEFAULT_SIDE, channels=1 if grayscale else 3, crop=False, progress=progress
    )
    targets_N = np.array([labels[root / sample_id] for sample_id in listed], np.int64)
    return FolderImages(images_NCHW, listed, targets_N, list(CLASS_NAMES), [])


def _training_labels(folder: Path) -> dict[Path, int]:
    """The class of each file that the 43 tables list."""
    labels: dict[Path, int] = {}
    for number in range(len(CLASS_NAMES)):
        inner = folder / f"{number:05}"
        table = inner / f"GT-{number:05}.csv"
        found = _read_table(table, inner)
        if wrong := {label for label in found.values() if label != number}:
            raise DataError(f"{table}: ClassId must be {number}; got {wrong.pop()}")
        labels |= found
    return labels


def _test_labels(base: Path) -> dict[Path, int]:
    return _read_table(base / TRUTH, base / IMAGES)


def _read_table(table: Path, folder: Path) -> dict[Path, int]:
    """ClassId by the path of the file that the row is about."""
    lies_there(table)
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter=";", skipinitialspace=True))
        labels = labels_by_file(table, [(folder / row["Filename"], int(row["ClassId"])) for row in rows])
    except FileNotFoundError:
        raise DataError(f"{table}: not found; delete {folder.parent} and fetch it again") from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise DataError(f"{table}: not a table with Filename and ClassId ({problem!r}); {FETCH_AGAIN}") from problem
    if wrong := [label for label in labels.values() if not 0 <= label < len(CLASS_NAMES)]:
        raise DataError(f"{table}: ClassId must be 0 to {len(CLASS_NAMES) - 1}; got {wrong[0]}")
    return labels
