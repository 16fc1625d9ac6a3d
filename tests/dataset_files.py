"""Writes small data sets in their real on-disk formats, byte by byte where a library would hide the format."""

import bz2
import gzip
import struct
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.datasets import Dataset, load_dataset
from deepcluster.errors import DataError

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
REFUSED = "<urlopen error no route to host>"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: every request that torchvision makes is refused."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def load(name: str, root: Path, split: str, image_size: int | None = None, *, grayscale: bool = False) -> Dataset:
    """`load_dataset` with the arguments that most tests give."""
    return load_dataset(name, root=root, split=split, image_size=image_size, grayscale=grayscale)


def message(name: str, root: Path, split: str) -> str:
    """The one line that loading is refused with."""
    with pytest.raises(DataError) as caught:
        load(name, root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def idx(array: np.ndarray) -> bytes:
    """An IDX file by its published format: two zero bytes, type 8, the number of dimensions, sizes, big-endian."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, split: str, images_NHW: np.ndarray, labels_N: np.ndarray, *, packed: bool = False) -> None:
    for name, array in zip(IDX_NAMES[split], (images_NHW, labels_N), strict=True):
        content = idx(array)
        write(folder / (f"{name}.gz" if packed else name), gzip.compress(content) if packed else content)


def write_usps(path: Path, lines: Sequence[str]) -> Path:
    return write(path, bz2.compress("".join(f"{line}\n" for line in lines).encode()))


def cifar_batch(rows_ND: np.ndarray, labels: Sequence[int], *, core: str = "numpy.core") -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: text and the array's bytes are strings of bytes without encoding."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = rows_ND.tobytes()
    shape = number(rows_ND.shape[0]) + number(rows_ND.shape[1]) + b"\x86"
    kind = (
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + number(-1) * 2 + b"K\x00tb"
    )
    empty = b"c" + core.encode() + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    items = text(b"batch_label") + text(b"testing batch 1 of 1")
    items += text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    items += text(b"data") + empty + state
    items += text(b"filenames") + b"](" + text(b"domestic_cat_s_000907.png") * len(labels) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_stl10(root: Path, split: str, images_NCHW: np.ndarray, labels_N: np.ndarray | None = None) -> None:
    """Planes are stored column by column; labels count from 1."""
    folder = root / "stl10_binary"
    columns = b"".join(plane[:, column].tobytes() for image in images_NCHW for plane in image for column in range(96))
    write(folder / f"{split}_X.bin", columns)
    if labels_N is not None:
        write(folder / f"{split}_y.bin", (labels_N + 1).astype(np.uint8).tobytes())


def ppm(image_HWC: np.ndarray) -> bytes:
    height, width, _ = image_HWC.shape
    return b"P6\n%d %d\n255\n" % (width, height) + image_HWC.tobytes()


def _gtsrb_table(rows: Sequence[tuple[str, np.ndarray, int]]) -> str:
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
    lines = [f"{n};{i.shape[1]};{i.shape[0]};5;5;{i.shape[1] - 6};{i.shape[0] - 6};{c}\r\n" for n, i, c in rows]
    return head + "".join(lines)


def write_gtsrb_train(root: Path, images: dict[int, list[np.ndarray]]) -> None:
    """All 43 class folders with their tables; images HWC by class."""
    for label in range(43):
        folder = root / "gtsrb/GTSRB/Training" / f"{label:05}"
        rows = [(f"00000_{track:05}.ppm", image, label) for track, image in enumerate(images.get(label, []))]
        for name, image, _ in rows:
            write(folder / name, ppm(image))
        write(folder / f"GT-{label:05}.csv", _gtsrb_table(rows))


def write_gtsrb_test(root: Path, images: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    rows = [(f"{n:05}.ppm", image, label) for n, (image, label) in enumerate(zip(images, labels, strict=True))]
    for name, image, _ in rows:
        write(root / "gtsrb/GTSRB/Final_Test/Images" / name, ppm(image))
    write(root / "gtsrb/GT-final_test.csv", _gtsrb_table(rows))


def write_jpeg(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path, "JPEG")


def write_tinyimagenet(base: Path, wnids: Sequence[str], *, each: int = 2) -> None:
    """The tree, below the folder `base`, with as many classes as wnids, in the order in which they are given."""
    write(base / "wnids.txt", "".join(f"{wnid}\n" for wnid in wnids))
    write(base / "words.txt", "".join(f"{wnid}\tthing {wnid}, object\n" for wnid in ("n00000000", *wnids)))
    annotations = []
    for label, wnid in enumerate(wnids):
        for index in range(each):
            write_jpeg(base / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", (40 * label % 256, 20 * index, 200))
            name = f"val_{label + len(wnids) * index}.JPEG"
            write_jpeg(base / "val/images" / name, (40 * label % 256, 20 * index, 0))
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
        write(base / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        write_jpeg(base / "test/images" / f"test_{label}.JPEG", (40 * label % 256, 100, 100))
    write(base / "val/val_annotations.txt", "".join(annotations))
