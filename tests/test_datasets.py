"""The named data sets, read from files in their real on-disk format that the tests write."""

import gzip
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from deepcluster.datasets import load_dataset, mnist
from deepcluster.datasets.load import Dataset, channel_statistics
from deepcluster.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS = mnist.FILES["train"]
PIXELS = np.random.default_rng(3).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([7, 0, 9, 9, 1], np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An IDX file by its published format: two zero bytes, type 8, the number of dimensions, sizes, big-endian."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, name: str, content: bytes, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def load(name: str, root: Path, split: str, image_size: int | None = None) -> Dataset:
    return load_dataset(name, root=root, split=split, image_size=image_size, grayscale=False)


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


class TestDigits:
    @pytest.mark.parametrize("split", ["all", "train"])
    def test_every_image_in_the_order_of_scikit_learn(self, tmp_path: Path, split: str) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        digits = load("digits", tmp_path, split)
        assert digits.images_NCHW.shape == (1797, 1, 8, 8)
        assert digits.images_NCHW.dtype == np.uint8
        np.testing.assert_array_equal(digits.images_NCHW[:, 0], np.floor(bunch.images * 255 / 16 + 0.5))
        assert digits.images_NCHW.max() == 255
        np.testing.assert_array_equal(digits.targets_N, bunch.target)
        assert digits.targets_N is not None
        assert digits.targets_N.dtype == np.int64
        assert digits.class_names == list("0123456789")
        assert digits.sample_ids == [str(index) for index in range(1797)]
        assert digits.skipped == []

    def test_resized_means_stay_in_place(self, tmp_path: Path) -> None:
        native, larger = load("digits", tmp_path, "all"), load("digits", tmp_path, "all", image_size=16)
        assert larger.images_NCHW.shape == (1797, 1, 16, 16)
        np.testing.assert_allclose(larger.images_NCHW.mean((1, 2, 3)), native.images_NCHW.mean((1, 2, 3)), atol=6)
        np.testing.assert_array_equal(larger.images_NCHW[:, 0, 0, 0], native.images_NCHW[:, 0, 0, 0])

    def test_unknown_split(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"digits has no split 'test': expected all or train"):
            load("digits", tmp_path, "test")


def test_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 4), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-12)
    assert all(type(value) is float for value in (*mean, *std))


def test_statistics_of_several_blocks_and_of_constant_images() -> None:
    large = np.full((3, 1, 2048, 2048), 51, np.uint8)
    large[2] = 204
    np.testing.assert_allclose(channel_statistics(large)[0], (0.4,))
    assert channel_statistics(np.full((2, 1, 4, 4), 51, np.uint8)) == ((pytest.approx(0.2),), (1 / 255,))


def test_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("mnits", tmp_path, "train")
    expected = (
        "unknown data set 'mnits': expected one of digits, mnist, fashionmnist, kmnist, usps, cifar10, stl10, gtsrb, "
        "tinyimagenet, folder; did you mean 'mnist'?"
    )
    assert str(caught.value) == expected


def test_image_size_zero_is_a_mistake_of_the_programmer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size must be >= 1"):
        load("digits", tmp_path, "all", image_size=0)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_dataset(
        "digits",
        root=tmp_path,
        split="all",
        image_size=10,
        grayscale=False,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(0, 1797), (1024, 1797), (1797, 1797)]


class TestMnist:
    @pytest.mark.parametrize("below", ["MNIST/raw", "."])
    @pytest.mark.parametrize("packed", [False, True])
    def test_reads_files_where_they_lie(
        self, tmp_path: Path, below: str, packed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mnist, "_download", lambda *_: pytest.fail("needs no download"))
        write(tmp_path / below, TRAIN_IMAGES, idx(PIXELS), packed=packed)
        write(tmp_path / below, TRAIN_LABELS, idx(LABELS), packed=packed)
        before = sorted(tmp_path.rglob("*"))
        data = load("mnist", tmp_path, "train")
        np.testing.assert_array_equal(data.images_NCHW, PIXELS[:, None])
        assert data.images_NCHW.flags.writeable
        np.testing.assert_array_equal(data.targets_N, LABELS)
        assert data.sample_ids == ["0", "1", "2", "3", "4"]
        assert data.class_names == list("0123456789")
        assert sorted(tmp_path.rglob("*")) == before

    def test_splits_are_not_mixed_up(self, tmp_path: Path) -> None:
        for split, number in (("train", 5), ("test", 2)):
            images, labels = mnist.FILES[split]
            write(tmp_path / "MNIST" / "raw", images, idx(PIXELS[:number]))
            write(tmp_path / "MNIST" / "raw", labels, idx(LABELS[:number]), packed=True)
        assert len(load("mnist", tmp_path, "train").images_NCHW) == 5
        assert len(load("mnist", tmp_path, "test").images_NCHW) == 2

    def test_agrees_with_torchvision(self, tmp_path: Path) -> None:
        from torchvision.datasets.mnist import read_image_file

        path = write(tmp_path, TRAIN_IMAGES, idx(PIXELS))
        np.testing.assert_array_equal(mnist.read_idx(path, dimensions=3), read_image_file(str(path)).numpy())

    def test_resizing_shrinks_by_averaging(self, tmp_path: Path) -> None:
        write(tmp_path, TRAIN_IMAGES, idx(PIXELS))
        write(tmp_path, TRAIN_LABELS, idx(LABELS))
        small = load("mnist", tmp_path, "train", image_size=7)
        assert small.images_NCHW.shape == (5, 1, 7, 7)
        assert small.images_NCHW.std() < PIXELS.std() / 2

    @pytest.mark.usefixtures("_offline")
    def test_without_files_and_network_one_line_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            load("mnist", tmp_path, "test")
        text = str(caught.value)
        assert "\n" not in text
        assert "put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into" in text
        assert str(tmp_path / "MNIST" / "raw") in text
        assert "or allow network access" in text

    def test_download_is_used_when_a_file_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def arrive(root: Path, split: str, name: str) -> None:
            write(root / "MNIST" / "raw", TRAIN_LABELS, idx(LABELS))

        monkeypatch.setattr(mnist, "_download", arrive)
        write(tmp_path / "MNIST" / "raw", TRAIN_IMAGES, idx(PIXELS))
        np.testing.assert_array_equal(load("mnist", tmp_path, "train").targets_N, LABELS)

    def test_nothing_is_downloaded_through_a_link_out_of_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        root = tmp_path / "root"
        root.mkdir()
        (root / "MNIST").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match="raw: a link on the way leads out of"):
            load("mnist", root, "train")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (idx(PIXELS)[:-1], idx(LABELS), "promises 3920 bytes and 3919 follow"),
            (idx(PIXELS) + b"!", idx(LABELS), "promises 3920 bytes and more follow"),
            (b"", idx(LABELS), "train-images-idx3-ubyte: cannot be read"),
            (idx(PIXELS)[:9], idx(LABELS), "train-images-idx3-ubyte: cannot be read"),
            (idx(LABELS), idx(LABELS), "not an IDX file of unsigned bytes in 3 dimensions"),
            (b"<html>not found</html>", idx(LABELS), "not an IDX file"),
            (idx(PIXELS), idx(LABELS[:4]), "5 images, but .* holds 4 labels"),
            (idx(PIXELS), idx(LABELS + 1), "labels must be 0 to 9; got 10"),
            (idx(PIXELS[:0]), idx(LABELS[:0]), "holds no images"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
        write(tmp_path, TRAIN_IMAGES, images)
        write(tmp_path, TRAIN_LABELS, labels)
        with pytest.raises(DataError, match=message):
            load("mnist", tmp_path, "train")

    @pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
    def test_damaged_gzip(self, tmp_path: Path, damage: str) -> None:
        path = write(tmp_path, TRAIN_IMAGES, idx(PIXELS), packed=True)
        write(tmp_path, TRAIN_LABELS, idx(LABELS))
        good = path.read_bytes()
        bad = {"cut": good[:2000], "flipped": good[:10] + b"\xff" * 200 + good[210:], "not gzip": b"hello"}
        path.write_bytes(bad[damage])
        with pytest.raises(DataError, match=r"ubyte\.gz: cannot be read .*delete it and fetch it again"):
            load("mnist", tmp_path, "train")

    def test_unknown_split(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no split 'tests': expected train or test; did you mean 'test'\?"):
            load("mnist", tmp_path, "tests")
