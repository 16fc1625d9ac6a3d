"""Fashion-MNIST, KMNIST, USPS, CIFAR-10 and STL-10: small files in the real formats, against torchvision's readers."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_files import (
    IDX_NAMES,
    REFUSED,
    cifar_batch,
    idx,
    load,
    message,
    noise,
    offline,
    write,
    write_idx,
    write_stl10,
    write_usps,
)
from PIL import Image

from deepcluster import memory
from deepcluster.datasets import Dataset, resizing
from deepcluster.errors import ResourceError

__all__ = ["offline"]
pytestmark = pytest.mark.usefixtures("offline")
CIFAR = "cifar-10-batches-py"
KIN = [("fashionmnist", "FashionMNIST"), ("kmnist", "KMNIST")]


def hwc(data: Dataset) -> np.ndarray:
    return data.images_NCHW.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("name", "folder"), KIN)
class TestKinOfMnist:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_pixels_labels_and_order(self, tmp_path: Path, name: str, folder: str, split: str, packed: bool) -> None:
        images, labels = noise(5, 28, 28), np.array([7, 0, 9, 9, 1], np.uint8)
        write_idx(tmp_path / folder / "raw", split, images, labels, packed=packed)
        data = load(name, tmp_path, split)
        np.testing.assert_array_equal(data.images_NCHW, images[:, None])
        np.testing.assert_array_equal(data.targets_N, labels)
        assert data.sample_ids == ["0", "1", "2", "3", "4"]

    def test_agrees_with_torchvision(self, tmp_path: Path, name: str, folder: str) -> None:
        from torchvision import datasets

        for split, number in (("train", 6), ("test", 3)):
            labels = np.arange(number, dtype=np.uint8)
            write_idx(tmp_path / folder / "raw", split, noise(number, 28, 28, seed=number), labels)
        kind = {"fashionmnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[name]
        for split in ("train", "test"):
            data, reference = load(name, tmp_path, split), kind(tmp_path, train=split == "train")
            np.testing.assert_array_equal(data.images_NCHW[:, 0], reference.data.numpy())
            np.testing.assert_array_equal(data.targets_N, reference.targets.numpy())
            assert data.class_names == reference.classes

    def test_files_of_the_same_names_directly_at_the_root_may_be_another_sets(
        self, tmp_path: Path, name: str, folder: str
    ) -> None:
        write_idx(tmp_path, "train", noise(2, 28, 28), np.zeros(2, np.uint8))
        write_idx(tmp_path / "MNIST/raw", "train", noise(2, 28, 28), np.zeros(2, np.uint8))
        start = (
            f"{name} is not in {tmp_path} and could not be downloaded (Error downloading train-images-idx3-ubyte.gz:"
        )
        end = f"put {' and '.join(f'{file}.gz' for file in IDX_NAMES['train'])} into {tmp_path / folder / 'raw'}"
        found = message(name, tmp_path, "train")
        assert found.startswith(start)
        assert found.endswith(f"): {end}, or allow network access")

    def test_unknown_split(self, tmp_path: Path, name: str, folder: str) -> None:
        assert message(name, tmp_path, "unlabeled") == f"{name} has no split 'unlabeled': expected train or test"


def usps_line(label: int, values: np.ndarray) -> str:
    return f"{label} " + " ".join(f"{index}:{value:.6g}" for index, value in enumerate(values, 1))


class TestUsps:
    def test_hand_computed_pixels(self, tmp_path: Path) -> None:
        values = np.full(256, -1.0)
        values[:4] = (1, 0, -0.5, 0.999)
        write_usps(tmp_path / "usps.bz2", [usps_line(10, values), usps_line(1, -np.ones(256))])
        data = load("usps", tmp_path, "train")
        assert data.images_NCHW.shape == (2, 1, 16, 16)
        assert data.images_NCHW[0, 0, 0, :5].tolist() == [255, 127, 63, 254, 0]  # rounded down
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [9, 0]
        assert data.class_names == list("0123456789")
        assert data.images_NCHW[1].max() == 0

    @pytest.mark.parametrize(("split", "file"), [("train", "usps.bz2"), ("test", "usps.t.bz2")])
    def test_agrees_with_torchvision(self, tmp_path: Path, split: str, file: str) -> None:
        from torchvision.datasets import USPS

        values = np.random.default_rng(1).uniform(-1, 1, (40, 256))
        values[0] = np.linspace(-1, 1, 256)
        lines = [usps_line(1 + row % 10, value) for row, value in enumerate(values)]
        write_usps(tmp_path / file, lines)
        data, reference = load("usps", tmp_path, split), USPS(tmp_path, train=split == "train")
        np.testing.assert_array_equal(data.images_NCHW[:, 0], reference.data)
        np.testing.assert_array_equal(data.targets_N, reference.targets)

    def test_an_index_that_is_left_out_is_zero(self, tmp_path: Path) -> None:
        write_usps(tmp_path / "usps.bz2", ["3 2:1 256:-1 ", "4"])
        images = load("usps", tmp_path, "train").images_NCHW.reshape(2, 256)
        assert images[0, [0, 1, 2, 255]].tolist() == [127, 255, 127, 0]
        assert set(images[1].tolist()) == {127}

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("0 1:1", "label must be 1 to 10; got '0'"),
            ("11 1:1", "label must be 1 to 10; got '11'"),
            ("x 1:1", "label must be 1 to 10; got 'x'"),
            ("", "label must be 1 to 10; got ''"),
            ("1 0:1", "indices must ascend from 1 to 256 at most"),
            ("1 257:1", "indices must ascend from 1 to 256 at most"),
            ("1 2:1 1:1", "indices must ascend from 1 to 256 at most"),
            ("1 99999999999999999999:1", "indices must ascend from 1 to 256 at most"),
            ("1 1:1 99999999999999999999:1 256:1", "indices must ascend from 1 to 256 at most"),
            ("1 1:1 -9223372036854775808:1 -1:1 5:1", "indices must ascend from 1 to 256 at most"),
            ("1 1:1 2", "expected index:value after the label"),
            ("1 1:1.5", "values must be -1 to 1"),
            ("1 1:nan", "values must be -1 to 1"),
        ],
    )
    def test_damaged_lines(self, tmp_path: Path, line: str, said: str) -> None:
        path = write_usps(tmp_path / "usps.bz2", ["1 1:1", line])
        assert message("usps", tmp_path, "train") == f"{path}: line 2: {said}; delete it and fetch it again"

    def test_damaged_files(self, tmp_path: Path) -> None:
        path = write_usps(tmp_path / "usps.bz2", [])
        assert message("usps", tmp_path, "train") == f"{path}: holds no images"
        whole = write_usps(path, ["1 1:1"] * 9).read_bytes()
        for content in (b"", whole[:-4], b"<html>not found</html>"):
            write(path, content)
            found = message("usps", tmp_path, "train")
            assert found.startswith(f"{path}: cannot be read (")
            assert found.endswith("); delete it and fetch it again")

    def test_refused_download(self, tmp_path: Path) -> None:
        start = f"usps is not in {tmp_path} and could not be downloaded ({REFUSED}): "
        assert message("usps", tmp_path, "test") == f"{start}put usps.t.bz2 into {tmp_path}, or allow network access"


class TestCifar10:
    def write_all(self, root: Path) -> None:
        for batch in range(1, 6):
            rows = noise(3, 3072, seed=batch)
            write(root / CIFAR / f"data_batch_{batch}", cifar_batch(rows, [batch, 0, 9]))
        write(root / CIFAR / "test_batch", cifar_batch(noise(2, 3072, seed=9), [4, 8]))

    def test_the_batches_are_joined_in_order(self, tmp_path: Path) -> None:
        self.write_all(tmp_path)
        data = load("cifar10", tmp_path, "train")
        assert data.images_NCHW.shape == (15, 3, 32, 32)
        for batch in range(1, 6):
            expected = noise(3, 3072, seed=batch).reshape(3, 3, 32, 32)
            np.testing.assert_array_equal(data.images_NCHW[3 * (batch - 1) : 3 * batch], expected)
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0, 9, 5, 0, 9]
        assert data.targets_N.dtype == np.int64
        assert data.sample_ids == [str(index) for index in range(15)]

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_agrees_with_torchvision(self, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import cifar

        self.write_all(tmp_path)
        data = load("cifar10", tmp_path, split)
        names = {"num_cases_per_batch": 3, "label_names": data.class_names, "num_vis": 3072}
        write(tmp_path / CIFAR / "batches.meta", pickle.dumps(names, protocol=2))
        monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
        reference = cifar.CIFAR10(tmp_path, train=split == "train")
        np.testing.assert_array_equal(hwc(data), reference.data)
        np.testing.assert_array_equal(data.targets_N, reference.targets)

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_pickled_by_the_numpy_of_today(self, tmp_path: Path, protocol: int) -> None:
        rows = np.asfortranarray(noise(4, 3072))
        write(tmp_path / CIFAR / "test_batch", pickle.dumps({b"data": rows, b"labels": [1, 2, 3, 4]}, protocol))
        data = load("cifar10", tmp_path, "test")
        np.testing.assert_array_equal(data.images_NCHW.reshape(4, 3072), rows)

    @pytest.mark.parametrize(
        ("planted", "said"),
        [
            (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system has no place in a batch of images"),
            (b'cbuiltins\neval\n(S\'open("ran", "w")\'\ntR.', "builtins.eval has no place in a batch of images"),
            (b"c__builtin__\nexec\n(S'1'\ntR.", "__builtin__.exec has no place in a batch of images"),
            (b"\x80\x04\x8c\x05numpy\x8c\x0bcore.sys.os\x93.", "numpy.core.sys.os has no place in a batch of images"),
            (b"cnumpy\nload\n(S'ran'\ntR.", "numpy.load has no place in a batch of images"),
            (b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.", "codec 'zlib' has no place in a batch of images"),
            (b"cnumpy\ndtype\n(S'O'\ntR.", "numbers of type 'O', expected unsigned bytes"),
        ],
    )
    def test_a_planted_pickle_does_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: bytes, said: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = write(tmp_path / CIFAR / "test_batch", planted)
        found = message("cifar10", tmp_path, "test")
        assert found == f"{path}: cannot be read ({said}); delete it and fetch it again"
        assert not (tmp_path / "ran").exists()

    def test_the_plant_would_run_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        pickle.loads(b"cos\nsystem\n(S'touch ran'\ntR.")
        assert (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (cifar_batch(noise(3, 3072), [1, 2]), "3 images, but 2 labels"),
            (cifar_batch(noise(1, 3072), [10]), "labels must be 0 to 9; got 10"),
            (cifar_batch(noise(1, 3072), [-1]), "labels must be 0 to 9; got -1"),
            (cifar_batch(noise(0, 3072), []), "holds no images"),
            (cifar_batch(noise(2, 3071), [1, 2]), "not a batch of CIFAR-10, its `data` must be uint8 [n, 3072]"),
            (pickle.dumps([1]), "not a batch of CIFAR-10, its `data` must be uint8 [n, 3072]"),
            (pickle.dumps({"data": b"abc"}), "not a batch of CIFAR-10, its `data` must be uint8 [n, 3072]"),
            (
                pickle.dumps({"data": noise(1, 3072), "labels": "3"}, 4),
                "not a batch of CIFAR-10, its `labels` must be a list of whole numbers",
            ),
            (b"", "cannot be read (pickle exhausted before seeing STOP); delete it and fetch it again"),
        ],
    )
    def test_damaged_batches(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = write(tmp_path / CIFAR / "test_batch", content)
        assert message("cifar10", tmp_path, "test") == f"{path}: {said}"

    def test_a_folder_in_the_place_of_a_batch(self, tmp_path: Path) -> None:
        (tmp_path / CIFAR / "test_batch").mkdir(parents=True)
        assert message("cifar10", tmp_path, "test") == f"{tmp_path / CIFAR / 'test_batch'}: is not a file; move it away"

    def test_cut_anywhere(self, tmp_path: Path) -> None:
        whole = cifar_batch(noise(2, 3072), [1, 2])
        for length in (1, 40, 100, 3000, len(whole) - 1):
            path = write(tmp_path / CIFAR / "test_batch", whole[:length])
            assert message("cifar10", tmp_path, "test").startswith(f"{path}: cannot be read (")

    def test_refused_download_names_the_archive_and_its_content(self, tmp_path: Path) -> None:
        root = tmp_path / "not there"
        expected = (
            f"cifar10 is not in {root} and could not be downloaded ({REFUSED}): put cifar-10-python.tar.gz "
            "(MD5 c58f30108f718f92721af3b95e74349a), or unpacked cifar-10-batches-py/test_batch, "
            f"into {root}, or allow network access"
        )
        assert message("cifar10", root, "test") == expected


class TestStl10:
    def test_columns_become_rows_and_labels_count_from_zero(self, tmp_path: Path) -> None:
        images = noise(3, 3, 96, 96)
        write_stl10(tmp_path, "train", images, np.array([0, 9, 4]))
        data = load("stl10", tmp_path, "train")
        np.testing.assert_array_equal(data.images_NCHW, images)
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [0, 9, 4]
        assert data.class_names is not None
        assert (data.class_names[0], data.class_names[9]) == ("airplane", "truck")
        raw = np.fromfile(tmp_path / "stl10_binary/train_X.bin", np.uint8)
        assert raw[1] == images[0, 0, 1, 0]  # the second byte is the pixel below, not the one on the right

    @pytest.mark.parametrize("split", ["train", "test", "unlabeled", "train+unlabeled"])
    def test_agrees_with_torchvision(self, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import STL10

        for seed, part in enumerate(("train", "test")):
            write_stl10(tmp_path, part, noise(3 + seed, 3, 96, 96, seed=seed), np.arange(3 + seed))
        write_stl10(tmp_path, "unlabeled", noise(5, 3, 96, 96, seed=7))
        write(
            tmp_path / "stl10_binary/class_names.txt",
            "airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n",
        )
        monkeypatch.setattr(STL10, "_check_integrity", lambda _: True)
        data, reference = load("stl10", tmp_path, split), STL10(tmp_path, split=split)
        np.testing.assert_array_equal(data.images_NCHW, reference.data)
        if "unlabeled" in split:
            assert (data.targets_N, data.class_names) == (None, None)
        else:
            np.testing.assert_array_equal(data.targets_N, reference.labels)
            assert data.class_names == reference.classes

    def test_unlabelled_images_are_mapped_not_copied(self, tmp_path: Path) -> None:
        write_stl10(tmp_path, "unlabeled", noise(2, 3, 96, 96))
        base = load("stl10", tmp_path, "unlabeled").images_NCHW
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)

    def test_damaged_files(self, tmp_path: Path) -> None:
        images, folder = noise(2, 3, 96, 96), tmp_path / "stl10_binary"
        write_stl10(tmp_path, "train", images, np.array([0, 1, 2]))
        both = f"{folder / 'train_X.bin'}: 2 images, but {folder / 'train_y.bin'} holds 3 labels"
        assert message("stl10", tmp_path, "train") == both
        for label, found in ((10, 11), (-1, 0)):
            write_stl10(tmp_path, "train", images, np.array([3, label]))
            assert (
                message("stl10", tmp_path, "train") == f"{folder / 'train_y.bin'}: labels must be 1 to 10; got {found}"
            )
        os.truncate(folder / "train_X.bin", 27649)
        cut = "damaged, 27649 bytes are no multiple of 27648, an image's; delete it and fetch it again"
        assert message("stl10", tmp_path, "train") == f"{folder / 'train_X.bin'}: {cut}"
        os.truncate(folder / "train_X.bin", 0)
        assert message("stl10", tmp_path, "train") == f"{folder / 'train_X.bin'}: holds no images"

    @pytest.mark.parametrize("name", ["train_X.bin", "train_y.bin"])
    def test_folders_and_files_that_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        write_stl10(tmp_path, "train", noise(2, 3, 96, 96), np.array([0, 1]))
        path = tmp_path / "stl10_binary" / name

        def deny(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(np, "memmap" if name == "train_X.bin" else "fromfile", deny)
            assert message("stl10", tmp_path, "train") == f"{path}: cannot be read ([Errno 13] Permission denied)"
        path.unlink()
        path.mkdir()
        assert message("stl10", tmp_path, "train") == f"{path}: is not a file; move it away"

    def test_refused_download_names_the_missing_files(self, tmp_path: Path) -> None:
        found = message("stl10", tmp_path, "train+unlabeled")
        assert found == (
            f"stl10 is not in {tmp_path} and could not be downloaded ({REFUSED}): put stl10_binary.tar.gz "
            "(MD5 91f7769df0f17e558f3565bffb0c7dfb), or unpacked stl10_binary/train_X.bin, "
            f"stl10_binary/unlabeled_X.bin, into {tmp_path}, or allow network access"
        )

    def test_unknown_split_gets_a_suggestion(self, tmp_path: Path) -> None:
        assert message("stl10", tmp_path, "unlabelled") == (
            "stl10 has no split 'unlabelled': expected train, test, unlabeled or train+unlabeled; "
            "did you mean 'unlabeled'?"
        )


class TestMemory:
    """What does not fit is refused, with one byte less available than it takes; with as many it is read."""

    def refused(self, monkeypatch: pytest.MonkeyPatch, needed: int, split: str, side: int | None = None) -> str:
        with pytest.raises(ResourceError) as caught:
            monkeypatch.setattr(memory, "available_memory", lambda: float(needed - 1))
            load("stl10", self.root, split, side, grayscale=self.grayscale)
        monkeypatch.setattr(memory, "available_memory", lambda: float(needed))
        load("stl10", self.root, split, side, grayscale=self.grayscale)
        return str(caught.value)

    @pytest.fixture(autouse=True)
    def written(self, tmp_path: Path) -> None:
        self.root, self.grayscale = tmp_path, False
        write_stl10(tmp_path, "train", noise(2, 3, 96, 96))
        write_stl10(tmp_path, "unlabeled", noise(3, 3, 96, 96))

    def test_two_files_joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.refused(monkeypatch, 5 * 27648, "train+unlabeled") == (
            "data.split train+unlabeled: 5 images need about 0.00 GB of memory and 0.00 GB are available; "
            "data.split unlabeled needs none, being one file"
        )
        monkeypatch.setattr(memory, "available_memory", lambda: 0.0)
        load("stl10", self.root, "unlabeled")

    def test_scaled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.refused(monkeypatch, 3 * 3 * 200 * 200, "unlabeled", 200) == (
            "data: 3 images of 3 x 200 x 200 need about 0.00 GB of memory and 0.00 GB are available; "
            "set data.image_size below 200 or data.grayscale: true"
        )

    def test_grey(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.grayscale = True
        assert self.refused(monkeypatch, 3 * 96 * 96, "unlabeled") == (
            "data.grayscale: 3 images of 96x96 need about 0.00 GB of memory and 0.00 GB are available; "
            "take a machine with more"
        )
        assert self.refused(monkeypatch, 3 * 200 * 200, "unlabeled", 200).endswith("; set data.image_size below 200")


class TestColour:
    def test_grey_is_the_luma_of_pillow(self, tmp_path: Path) -> None:
        rows = noise(2, 3072)
        write(tmp_path / CIFAR / "test_batch", cifar_batch(rows, [1, 2]))
        colour, grey = load("cifar10", tmp_path, "test"), load("cifar10", tmp_path, "test", grayscale=True)
        assert grey.images_NCHW.shape == (2, 1, 32, 32)
        expected = [np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L")) for image in hwc(colour)]
        np.testing.assert_array_equal(grey.images_NCHW[:, 0], expected)
        assert len(grey.mean) == 1

    def test_grey_in_several_blocks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_stl10(tmp_path, "unlabeled", noise(5, 3, 96, 96))
        whole = load("stl10", tmp_path, "unlabeled", grayscale=True)
        monkeypatch.setattr(resizing, "BLOCK_BYTES", 2 * 27648)
        np.testing.assert_array_equal(
            load("stl10", tmp_path, "unlabeled", grayscale=True).images_NCHW, whole.images_NCHW
        )

    @pytest.mark.parametrize("side", [10, 50])
    def test_resized_as_a_colour_image_of_pillow(self, tmp_path: Path, side: int) -> None:
        write_stl10(tmp_path, "unlabeled", noise(2, 3, 96, 96))
        native, found = load("stl10", tmp_path, "unlabeled"), load("stl10", tmp_path, "unlabeled", side)
        assert found.images_NCHW.shape == (2, 3, side, side)
        for image, original in zip(hwc(found), hwc(native), strict=True):
            scaled = Image.fromarray(np.ascontiguousarray(original)).resize((side, side), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, np.asarray(scaled))

    def test_grey_sets_stay_grey(self, tmp_path: Path) -> None:
        write_usps(tmp_path / "usps.bz2", ["1 1:1"])
        assert load("usps", tmp_path, "train", 8, grayscale=True).images_NCHW.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("sizes", "body", "expected"),
    [
        ((0, 2**32 - 1, 2**32 - 1), 0, "{path}: 0 images, but {labels} holds 2 labels"),  # more than an array may have
        ((2**32 - 1, 2**32 - 1, 0), 0, "{path}: 0 images, but {labels} holds 2 labels"),
        ((2, 3, 4), 24, "{path}: images must be square; got 3x4 pixels"),
    ],
)
def test_sizes_that_no_images_have(tmp_path, sizes, body, expected):
    path, labels = (tmp_path / "MNIST/raw" / name for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"))
    write(path, struct.pack(">HBB3I", 0, 8, 3, *sizes) + bytes(body))
    write(labels, idx(np.zeros(2, np.uint8)))
    assert message("mnist", tmp_path, "train") == expected.format(path=path, labels=labels)
