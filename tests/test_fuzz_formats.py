"""Readers of foreign formats: whatever the bytes, either images as promised, or a DataError that names a file.

Inputs are small valid files with mistakes in them, now and then noise. Compressed files are damaged inside as well as
outside, so that what is behind the checksum is reached too; how many inputs were read is asserted.
"""

import bz2
import gzip
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import (
    cifar_batch,
    idx,
    load,
    noise,
    offline,  # noqa: F401  a fixture
    write,
    write_gtsrb_test,
    write_stl10,
    write_tinyimagenet,
)
from fuzzing import REFUSED, edited, files, outcomes
from hypothesis import strategies as st

from deepcluster.errors import DataError

pytestmark = pytest.mark.usefixtures("offline")
Files = dict[str, bytes]


def fuzz_reader(
    tmp_path: Path, name: str, split: str, inputs: st.SearchStrategy[Files], *, base: Path | None = None, quick: int
) -> Counter[str]:
    """Loads the data set from the files of every input, by path, beside those in `base`."""
    number = itertools.count()

    def act(given: Files) -> str:
        root = tmp_path / str(next(number))
        try:
            if base is not None:
                shutil.copytree(base, root)
            for path, content in given.items():
                write(root / path, content)
            try:
                found = load(name, root, split)
            except DataError as error:
                assert str(root) in str(error), f"names no file: {error}"
                raise
            count, channels, height, width = found.images_NCHW.shape
            assert found.images_NCHW.dtype == np.uint8
            assert count == len(found.sample_ids) == len(set(found.sample_ids)) > 0
            assert channels in (1, 3)
            assert height == width > 0
            assert len(found.mean) == len(found.std) == channels
            if found.targets_N is not None:
                assert found.targets_N.dtype == np.int64
                assert len(found.targets_N) == count
                assert 0 <= found.targets_N.min() <= found.targets_N.max() < len(found.class_names or ())
            return "read"
        finally:
            shutil.rmtree(root, ignore_errors=True)

    counts = outcomes(f"formats: {name}", inputs, act, quick=quick)
    assert counts["read"] >= max(1, counts.total() // 100), counts
    assert counts[REFUSED] >= max(1, counts.total() // 100), counts
    return counts


def packed_or_damaged(content: st.SearchStrategy[bytes], pack: Callable[[bytes], bytes]) -> st.SearchStrategy[bytes]:
    """Packed after it was edited, or before; a few edits in all."""
    return files(content).map(pack) | files(content.map(pack))


SIZES = st.sampled_from([0, 1, 2, 3, 28, 2**16, 2**31, 2**32 - 1])


@st.composite
def idx_header(draw: st.DrawFn, dimensions: int) -> bytes:
    """A header of any sizes in front of a few bytes, often as many as it promises."""
    sizes = [draw(SIZES) for _ in range(dimensions)]
    head = bytes([0, 0, draw(st.sampled_from([8, 8, 8, 9, 13])), dimensions])
    head += b"".join(size.to_bytes(4, "big") for size in sizes)
    promised = int(np.prod(sizes, dtype=object))
    return head + bytes(promised if promised < 5000 else draw(st.integers(0, 9)))


@st.composite
def mnist(draw: st.DrawFn) -> Files:
    count = draw(st.integers(0, 3))
    side = draw(st.sampled_from([8, 28]))
    images = idx(noise(count, side, side))
    labels = idx(np.array([1, 9, 0][:count], np.uint8))
    contents = [
        st.one_of(st.just(images), st.just(images), files(st.just(images)), idx_header(3)),
        st.one_of(st.just(labels), st.just(labels), files(st.just(labels)), idx_header(1)),
    ]
    found = {}
    for content, file in zip(contents, ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), strict=True):
        zipped = draw(st.booleans())
        found[f"MNIST/raw/{file}{'.gz' if zipped else ''}"] = draw(
            packed_or_damaged(content, gzip.compress) if zipped else content
        )
    return found


def test_idx(tmp_path):
    fuzz_reader(tmp_path, "mnist", "train", mnist(), quick=50)


TOKENS = [b"", b"1", b"11", b"0", b"-1", b"256", b"257", b"1:0.5", b":", b"1:", b":1", b"1:nan", b"1:1e999", b"1:2", 
          b"2:-1", b"1:1:1", b"9" * 5000, b"0x1", b"\xff", b"\0", b"\n", b"1_0", b"+1", b"1.0", b"1:0_1"]  # fmt: skip


@st.composite
def usps(draw: st.DrawFn) -> Files:
    line = st.lists(st.integers(1, 256), max_size=4, unique=True).map(
        lambda places: b" ".join([b"%d" % (len(places) + 1), *(b"%d:%g" % (at, at / 256) for at in sorted(places))])
    )
    tokens = st.lists(st.sampled_from(TOKENS), max_size=3).map(b" ".join)
    lines = st.lists(st.one_of(line, line, line, tokens), max_size=3).map(b"\n".join)
    return {"usps.bz2": draw(packed_or_damaged(lines, bz2.compress))}


def test_libsvm_text(tmp_path):
    fuzz_reader(tmp_path, "usps", "train", usps(), quick=40)


def test_batches_of_cifar10(tmp_path):
    batch = cifar_batch(noise(2, 3072), [3, 7])
    other = cifar_batch(noise(2, 3072), [3, 7], core="numpy._core")
    start = 400  # numbers, names and opcodes; behind them pixels

    @st.composite
    def batches(draw: st.DrawFn) -> Files:
        content = draw(st.sampled_from([batch, other]))
        pixels = draw(st.sampled_from([len(content) - start, 0]))
        head, tail = content[:start], content[start:]
        near = st.tuples(edited(st.just(head)), edited(st.just(tail[pixels:])))
        whole = near.map(lambda parts: parts[0] + tail[:pixels] + parts[1])
        return {"cifar-10-batches-py/test_batch": draw(st.one_of(whole, whole, files(st.just(content))))}

    fuzz_reader(tmp_path, "cifar10", "test", batches(), quick=40)


def test_binary_files_of_stl10(tmp_path):
    write_stl10(tmp_path / "good", "train", noise(2, 3, 96, 96), np.array([0, 9]))
    images, labels = ((tmp_path / "good/stl10_binary" / name).read_bytes() for name in ("train_X.bin", "train_y.bin"))
    inputs = st.fixed_dictionaries(
        {
            "stl10_binary/train_X.bin": st.just(images) | files(st.just(images)) | st.just(images[: len(images) // 2]),
            "stl10_binary/train_y.bin": st.just(labels) | files(st.just(labels)) | st.just(labels[:1]),
        }
    )
    fuzz_reader(tmp_path, "stl10", "train", inputs, quick=30)


def rows(header: bytes, valid: list[bytes], separator: bytes) -> st.SearchStrategy[bytes]:
    """A table with rows left out, twice, in another order, with fields exchanged; and with edits of bytes."""
    fields = sorted({field for row in valid for field in row.split(separator)})
    odd = st.lists(
        st.sampled_from([*fields, b"", b"-1", b"43", b"../x", b"\0", b'"', b"9" * 5000, b"\xff"]), max_size=9
    )
    some = st.permutations(valid) | st.lists(st.sampled_from(valid), max_size=len(valid) + 1)
    extra = st.lists(odd.map(separator.join), max_size=1)
    return st.tuples(some, extra).map(lambda parts: header + b"".join(row + b"\n" for row in (*parts[0], *parts[1])))


def test_tables_and_pictures_of_gtsrb(tmp_path):
    base = tmp_path / "good"
    write_gtsrb_test(base, [noise(20, 18, 3, seed=n) for n in range(3)], [0, 14, 42])
    table = (base / "gtsrb/GT-final_test.csv").read_bytes()
    header, *lines = table.splitlines(keepends=False)
    picture = (base / "gtsrb/GTSRB/Final_Test/Images/00001.ppm").read_bytes()
    tables = rows(header + b"\n", lines, b";")
    pictures = (
        st.just(picture) | edited(st.just(picture)) | edited(st.just(picture[:15])).map(lambda h: h + picture[15:])
    )
    inputs = st.fixed_dictionaries(
        {
            "gtsrb/GT-final_test.csv": st.one_of(st.just(table), tables, files(tables)),
            "gtsrb/GTSRB/Final_Test/Images/00001.ppm": pictures,
        }
    )
    fuzz_reader(tmp_path, "gtsrb", "test", inputs, base=base, quick=40)


@pytest.mark.parametrize("split", ["train", "val"])
def test_tree_of_tiny_imagenet(tmp_path, split):
    base = tmp_path / "good"
    write_tinyimagenet(base / "tiny-imagenet-200", ["n01", "n02"], each=1)
    inner = base / "tiny-imagenet-200"
    annotations = (inner / "val/val_annotations.txt").read_bytes()
    names, picture = (inner / "words.txt").read_bytes(), (inner / "val/images/val_0.JPEG").read_bytes()
    ids = rows(b"", [b"n01", b"n02"], b" ")
    words = rows(b"", names.splitlines(), b"\t")
    tables = rows(b"", annotations.splitlines(), b"\t")

    def sometimes(good: bytes, bad: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        return st.one_of(st.just(good), st.just(good), bad, files(bad))

    prefix = "tiny-imagenet-200"
    inputs: dict[str, Any] = {
        f"{prefix}/wnids.txt": sometimes(b"n01\nn02\n", ids),
        f"{prefix}/words.txt": sometimes(names, words),
        f"{prefix}/val/val_annotations.txt": sometimes(annotations, tables),
        f"{prefix}/val/images/val_0.JPEG": sometimes(picture, st.just(picture)),
        f"{prefix}/train/n01/images/n01_0.JPEG": sometimes(picture, st.just(picture)),
    }
    optional = {f"{prefix}/train/n03/x.JPEG": st.just(picture), f"{prefix}/val/images/other.png": st.just(picture)}
    fuzz_reader(tmp_path, "tinyimagenet", split, st.fixed_dictionaries(inputs, optional=optional), base=base, quick=30)
