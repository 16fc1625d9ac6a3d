"""What is known of the named data sets without reading them: how many images, their size, where their files lie."""

from dataclasses import dataclass
from pathlib import Path

from deepcluster.params import DataName

MNIST_FOLDERS: dict[str, str] = {"mnist": "MNIST", "fashionmnist": "FashionMNIST", "kmnist": "KMNIST"}


@dataclass(frozen=True)
class Known:
    """A split of a data set: N images of `channels` x `side` x `side`, and whether they have true labels."""

    count: int
    channels: int
    side: int
    classes: int | None


def known(name: DataName, split: str) -> Known | None:
    """The split as it comes; None for folders, and for splits that there are not."""
    counts: dict[str, int]
    match name:
        case "digits":
            counts, shape = {"train": 1_797, "all": 1_797}, (1, 8, 10)
        case "mnist" | "fashionmnist" | "kmnist":
            counts, shape = {"train": 60_000, "test": 10_000}, (1, 28, 10)
        case "usps":
            counts, shape = {"train": 7_291, "test": 2_007}, (1, 16, 10)
        case "cifar10":
            counts, shape = {"train": 50_000, "test": 10_000}, (3, 32, 10)
        case "stl10":
            counts, shape = (
                {"train": 5_000, "test": 8_000, "unlabeled": 100_000, "train+unlabeled": 105_000},
                (3, 96, 10),
            )
        case "gtsrb":
            counts, shape = {"train": 26_640, "test": 12_630}, (3, 32, 43)
        case "tinyimagenet":
            counts, shape = {"train": 100_000, "val": 10_000, "test": 10_000}, (3, 64, 200)
        case "folder":
            return None
    if split not in counts:
        return None
    labelled = "unlabeled" not in split and (name, split) != ("tinyimagenet", "test")
    channels, side, classes = shape
    return Known(counts[split], channels, side, classes if labelled else None)


def files(name: DataName, split: str, root: Path) -> list[list[Path]]:
    """What a split is read from, as alternatives: all paths of one of them are enough. Empty where none is needed."""
    match name:
        case "digits" | "folder":
            return []
        case "mnist" | "fashionmnist" | "kmnist":
            stem = "train" if split == "train" else "t10k"
            places = [root / MNIST_FOLDERS[name] / "raw", *([root] if name == "mnist" else [])]
            names = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
            return [[place / f"{name}{ending}" for name in names] for ending in (".gz", "") for place in places]
        case "usps":
            return [[root / ("usps.bz2" if split == "train" else "usps.t.bz2")]]
        case "cifar10":
            return [[root / "cifar-10-python.tar.gz"], [root / "cifar-10-batches-py"]]
        case "stl10":
            return [[root / "stl10_binary.tar.gz"], [root / "stl10_binary"]]
        case "gtsrb":
            base = root / "gtsrb"
            if split == "train":
                return [[base / "GTSRB-Training_fixed.zip"], [base / "GTSRB/Training"]]
            archives = [base / "GTSRB_Final_Test_Images.zip", base / "GTSRB_Final_Test_GT.zip"]
            return [archives, [base / "GTSRB/Final_Test", base / "GT-final_test.csv"]]
        case "tinyimagenet":
            return [[root / "tiny-imagenet-200.zip"], [root / "tiny-imagenet-200"]]


def present(name: DataName, split: str, root: Path) -> bool:
    """Whether the files of a split are there, by their names: none is opened."""
    alternatives = files(name, split, root)
    return not alternatives or any(all(path.exists() for path in paths) for paths in alternatives)
