"""Archives: what torchvision would download, unpacked safely and whole or not at all."""

import bz2
import gzip
import hashlib
import io
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import IDX_NAMES, REFUSED, cifar_batch, idx, noise, offline, write, write_tinyimagenet

from deepcluster.datasets import cifar, fetch, gtsrb, load_dataset, mnist, stl10, tinyimagenet, usps
from deepcluster.datasets.fetch import Archive, ensure_unpacked, unpack
from deepcluster.errors import DataError, MissingDataError, ResourceError, StorageError

__all__ = ["offline"]
pytestmark = pytest.mark.usefixtures("offline")


def zipped(path: Path, files: dict[str, bytes], *, mode: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def tarred(path: Path, files: dict[str, bytes], **attributes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def packed(kind: str, folder: Path, files: dict[str, bytes]) -> Path:
    return zipped(folder / "some.zip", files) if kind == "zip" else tarred(folder / "some.tar.gz", files)


def archive_of(path: Path, *gives: str, folders: bool = False) -> Archive:
    return Archive(f"https://example.org/files/{path.name}", md5(path.read_bytes()), gives, folders)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["zip", "tar"])
class TestUnpack:
    def test_files_and_folders(self, tmp_path: Path, kind: str) -> None:
        unpack(packed(kind, tmp_path, {"a/b/1.txt": b"one", "./2.txt": b"two", "a/3": b""}), tmp_path / "out")
        assert tree(tmp_path / "out") == ["2.txt", "a", "a/3", "a/b", "a/b/1.txt"]
        assert (tmp_path / "out/a/b/1.txt").read_bytes() == b"one"

    @pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "a\\..\\..\\evil", "C:/evil"])
    def test_names_that_lead_out(self, tmp_path: Path, kind: str, name: str) -> None:
        path = packed(kind, tmp_path / "in", {"good": b"", name: b"evil"})
        with pytest.raises(DataError) as caught:
            unpack(path, tmp_path / "in/out")
        said = f"{path}: refused, as {name!r} in it leads out of the folder; delete it and fetch it again"
        assert str(caught.value) == said
        assert [found for found in tree(tmp_path) if "evil" in found] == []

    def test_damaged(self, tmp_path: Path, kind: str) -> None:
        path = packed(kind, tmp_path, {"a": noise(5000).tobytes()})
        whole = path.read_bytes()
        for content in (whole[:3000], b"", b"<html>not found</html>"):
            path.write_bytes(content)
            with pytest.raises(DataError, match=r": damaged \(.+\); delete it and fetch it again"):
                unpack(path, tmp_path / f"out {len(content)}")


class TestLinks:
    def test_in_a_zip(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "some.zip", {"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777)
        with pytest.raises(DataError, match="refused, as 'link' in it is neither a file nor a folder"):
            unpack(path, tmp_path / "out")

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_in_a_tar(self, tmp_path: Path, kind: bytes) -> None:
        path = tarred(tmp_path / "some.tar.gz", {"link": b""}, type=kind, linkname="/etc/passwd")
        with pytest.raises(DataError, match="refused, as 'link' in it is neither a file nor a folder"):
            unpack(path, tmp_path / "out")
        assert tree(tmp_path / "out") == []


class TestEnsureUnpacked:
    def test_an_archive_at_hand_needs_no_network(self, tmp_path: Path) -> None:
        path = tarred(tmp_path / "data/set.tar.gz", {"set/1": b"one", "set/2": b"two", "set/readme": b"hello"})
        ensure_unpacked("set", tmp_path / "data", tmp_path / "data", [archive_of(path, "set/1", "set/2")])
        assert tree(tmp_path / "data") == ["set", "set.tar.gz", "set/1", "set/2"]

    def test_what_is_there_is_kept(self, tmp_path: Path) -> None:
        path = tarred(tmp_path / "set.tar.gz", {"set/1": b"one", "set/2": b"two"})
        write(tmp_path / "set/1", b"mine")
        ensure_unpacked("set", tmp_path, tmp_path, [archive_of(path, "set/1", "set/2")])
        assert ((tmp_path / "set/1").read_bytes(), (tmp_path / "set/2").read_bytes()) == (b"mine", b"two")

    def test_another_archive_of_the_same_name_is_not_taken(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "set.zip", {"set/1": b"one"})
        right = archive_of(path, "set", folders=True)
        zipped(path, {"set/1": b"another"})
        with pytest.raises(MissingDataError) as caught:
            ensure_unpacked("set", tmp_path, tmp_path, [right])
        assert str(caught.value) == (
            f"set is not in {tmp_path} and could not be downloaded ({REFUSED}): "
            f"put set.zip (MD5 {right.md5}), or unpacked set, into {tmp_path}, or allow network access"
        )
        assert tree(tmp_path) == ["set.zip"]

    @pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_an_interrupted_unpack_leaves_nothing(
        self, tmp_path: Path, stopped: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = zipped(tmp_path / "set.zip", {"set/1": b"one", "set/2": b"two"})
        archive, copy = archive_of(path, "set", folders=True), fetch.shutil.copyfileobj

        def stop_at_the_second(source: Any, file: Any, length: int) -> None:
            if file.name.endswith("2"):
                raise stopped
            copy(source, file, length)

        with monkeypatch.context() as patch:
            patch.setattr(fetch.shutil, "copyfileobj", stop_at_the_second)
            with pytest.raises((KeyboardInterrupt, StorageError)):
                ensure_unpacked("set", tmp_path, tmp_path, [archive])
        assert tree(tmp_path) == ["set.zip"]
        ensure_unpacked("set", tmp_path, tmp_path, [archive])
        assert tree(tmp_path) == ["set", "set.zip", "set/1", "set/2"]

    @pytest.mark.parametrize(
        ("problem", "kind", "start"),
        [
            (OSError(28, "No space left on device"), StorageError, "FOLDER: no space left on the disk ("),
            # all that torchvision keeps of the errors of its mirrors
            (RuntimeError("tried x, got [Errno 28] No space left on device"), StorageError, "FOLDER: no space left on"),
            (MemoryError(), ResourceError, "not enough memory; "),
            (PermissionError(13, "Permission denied"), MissingDataError, "set is not in FOLDER and could not be down"),
        ],
    )
    def test_files_that_find_no_room_are_not_missing_files(
        self, tmp_path: Path, problem: Exception, kind: type[Exception], start: str
    ) -> None:
        """A test split is done without where its files are missing: not because a disk was full."""

        def download() -> None:
            raise problem

        with pytest.raises(kind) as caught:
            fetch.ensure("set", tmp_path, present=lambda: False, download=download, remedy=lambda: "put it there")
        assert str(caught.value).replace(str(tmp_path), "FOLDER").startswith(start)

    def test_an_archive_of_something_else(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "set.zip", {"other/1": b"one"})
        with pytest.raises(DataError, match=r"set\.zip: does not hold set$"):
            ensure_unpacked("set", tmp_path, tmp_path, [archive_of(path, "set", folders=True)])

    def test_a_folder_in_the_place_of_a_file_and_the_reverse(self, tmp_path: Path) -> None:
        path = tarred(tmp_path / "set.tar.gz", {"set/1": b"one", "set/2": b"two"})
        (tmp_path / "set/2").mkdir(parents=True)
        with pytest.raises(DataError) as caught:
            ensure_unpacked("set", tmp_path, tmp_path, [archive_of(path, "set/1", "set/2")])
        assert str(caught.value) == f"{tmp_path / 'set/2'}: is not a file; move it away"
        write(tmp_path / "other", b"")
        with pytest.raises(DataError) as caught:
            ensure_unpacked("set", tmp_path, tmp_path, [archive_of(path, "other", folders=True)])
        assert str(caught.value) == f"{tmp_path / 'other'}: is not a folder; move it away"
        assert tree(tmp_path) == ["other", "set", "set.tar.gz", "set/2"]

    def test_nothing_is_written_through_a_link_out_of_the_root(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "root/set.zip", {"set/1": b"one"})
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "root/set").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match=r"set/1: a link on the way leads out of"):
            ensure_unpacked("set", tmp_path / "root", tmp_path / "root", [archive_of(path, "set/1")])
        assert tree(tmp_path / "elsewhere") == []

    def test_a_root_that_is_a_file(self, tmp_path: Path) -> None:
        root = write(tmp_path / "root", b"")
        with pytest.raises(DataError, match=r"^set is not in .* could not be downloaded \(.+\): put set\.zip"):
            ensure_unpacked("set", root, root, [Archive("https://example.org/set.zip", "0" * 32, ("set",))])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Files by the last part of their URL."""
    files: dict[str, bytes] = {}

    class Response(io.BytesIO):
        url: str | None = None
        length: int = 0

    def urlopen(request: Any, *_: object, **__: object) -> Response:
        response = Response(files[request.full_url.rpartition("/")[2]])
        response.length = len(response.getvalue())
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return files


class TestDownloads:
    """What arrives over the network is torchvision's affair; here it is handed over by a stand-in for `urlopen`."""

    def test_tiny_imagenet_arrives_whole(
        self, tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_tinyimagenet(tmp_path / "made/tiny-imagenet-200", ("n2", "n1"))
        made = tmp_path / "made"
        files = {name: (made / name).read_bytes() for name in tree(made) if (made / name).is_file()}
        path = zipped(tmp_path / "tiny-imagenet-200.zip", files)
        served[path.name] = path.read_bytes()
        monkeypatch.setattr(tinyimagenet, "ARCHIVE", archive_of(path, "tiny-imagenet-200", folders=True))
        root = tmp_path / "root"
        data = load_dataset("tinyimagenet", root=root, split="val", image_size=None, grayscale=False)
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [1, 0, 1, 0]
        assert sorted(path.name for path in root.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]

    def test_cifar10_arrives(self, tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        batch = cifar_batch(noise(2, 3072), [3, 4])
        path = tarred(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/test_batch": batch})
        served[path.name] = path.read_bytes()
        monkeypatch.setattr(cifar, "MD5", archive_of(path).md5)
        data = load_dataset("cifar10", root=tmp_path / "root", split="test", image_size=None, grayscale=False)
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [3, 4]

    def test_a_changed_file_is_refused(self, tmp_path: Path, served: dict[str, bytes]) -> None:
        served["cifar-10-python.tar.gz"] = b"something else"
        with pytest.raises(DataError, match=r"could not be downloaded \(File not found or corrupted\.\): put cifar"):
            load_dataset("cifar10", root=tmp_path, split="test", image_size=None, grayscale=False)
        assert tree(tmp_path) == []
        write(tmp_path / "cifar-10-python.tar.gz", b"mine")
        with pytest.raises(DataError, match=r"could not be downloaded \(File not found or corrupted\.\): put cifar"):
            load_dataset("cifar10", root=tmp_path, split="test", image_size=None, grayscale=False)
        assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == b"mine"


class TestSingleFiles:
    """USPS and the kin of MNIST: a file lies under its name only when it is whole and the right one."""

    USPS = bz2.compress(b"3 1:1\n")
    IMAGES, LABELS = (gzip.compress(idx(part)) for part in (noise(2, 28, 28), np.array([4, 7], np.uint8)))
    RAW = "FashionMNIST/raw"

    @pytest.fixture(autouse=True)
    def known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Torchvision expects the files above."""
        from torchvision.datasets import USPS, FashionMNIST

        names = [f"{file}.gz" for file in IDX_NAMES["train"]]
        sums = list(zip(names, map(md5, (self.IMAGES, self.LABELS)), strict=True))
        monkeypatch.setattr(FashionMNIST, "resources", sums)
        monkeypatch.setitem(USPS.split_list, "train", ["https://example.org/usps.bz2", "usps.bz2", md5(self.USPS)])

    @staticmethod
    def load(name: str, root: Path) -> list[int]:
        found = load_dataset(name, root=root, split="train", image_size=None, grayscale=False).targets_N
        assert found is not None
        return list(found.tolist())

    def test_a_wrong_file_is_refused_and_fetched_anew(self, tmp_path: Path, served: dict[str, bytes]) -> None:
        served["usps.bz2"] = bz2.compress(b"9 1:1\n")
        for _ in range(2):
            with pytest.raises(DataError) as caught:
                self.load("usps", tmp_path)
            assert str(caught.value) == (
                f"usps is not in {tmp_path} and could not be downloaded (File not found or corrupted.): "
                f"put usps.bz2 into {tmp_path}, or allow network access"
            )
            assert tree(tmp_path) == []
        served["usps.bz2"] = self.USPS
        assert self.load("usps", tmp_path) == [2]
        assert tree(tmp_path) == ["usps.bz2"]

    def test_right_images_and_wrong_labels(self, tmp_path: Path, served: dict[str, bytes]) -> None:
        images, labels = (f"{file}.gz" for file in IDX_NAMES["train"])
        served |= {images: self.IMAGES, labels: gzip.compress(idx(np.array([1, 1], np.uint8)))}
        with pytest.raises(DataError, match=rf"downloaded \(Error downloading {labels}: tried .+, got File not found"):
            self.load("fashionmnist", tmp_path)
        assert tree(tmp_path / self.RAW) == [images]
        served |= {images: b"not asked for again", labels: self.LABELS}
        assert self.load("fashionmnist", tmp_path) == [4, 7]
        assert tree(tmp_path / self.RAW) == [images, labels]

    def test_files_that_are_there_are_kept(self, tmp_path: Path, served: dict[str, bytes]) -> None:
        images, labels = (tmp_path / self.RAW / f"{file}.gz" for file in IDX_NAMES["train"])
        mine = gzip.compress(idx(noise(2, 28, 28, seed=5)))
        write(images, mine)
        served |= {images.name: self.IMAGES, labels.name: self.LABELS}
        assert self.load("fashionmnist", tmp_path) == [4, 7]
        assert images.read_bytes() == mine

    def test_the_next_mirror_is_tried(
        self, tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from torchvision.datasets import FashionMNIST

        monkeypatch.setattr(FashionMNIST, "mirrors", ["https://example.org/gone/no-", "https://example.org/"])
        served |= dict(zip((f"{file}.gz" for file in IDX_NAMES["train"]), (self.IMAGES, self.LABELS), strict=True))
        assert self.load("fashionmnist", tmp_path) == [4, 7]

    def test_a_folder_in_the_place_of_a_download(self, tmp_path: Path) -> None:
        for name, place in (("usps", "usps.bz2"), ("fashionmnist", f"{self.RAW}/{IDX_NAMES['train'][1]}.gz")):
            write(tmp_path / self.RAW / f"{IDX_NAMES['train'][0]}.gz", self.IMAGES)
            (tmp_path / place).mkdir()
            with pytest.raises(DataError) as caught:
                self.load(name, tmp_path)
            assert str(caught.value) == f"{tmp_path / place}: is not a file; move it away"

    @pytest.mark.parametrize(("name", "last"), [("usps", "usps.bz2"), ("fashionmnist", "train-labels-idx1-ubyte.gz")])
    def test_an_interrupted_download_leaves_nothing(
        self, tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str, last: str
    ) -> None:
        served |= dict(zip((f"{file}.gz" for file in IDX_NAMES["train"]), (self.IMAGES, self.LABELS), strict=True))
        served["usps.bz2"] = self.USPS

        def stop_midway(url: str, filename: str | Path) -> None:
            path = Path(filename)
            if path.name == last:
                path.write_bytes(served[last][:20])
                raise KeyboardInterrupt
            path.write_bytes(served[path.name])

        with monkeypatch.context() as patch:
            patch.setattr("torchvision.datasets.utils._urlretrieve", stop_midway)
            with pytest.raises(KeyboardInterrupt):
                self.load(name, tmp_path)
        assert [path for path in tree(tmp_path) if path.endswith((last, ".partial"))] == []
        assert self.load(name, tmp_path) == ([2] if name == "usps" else [4, 7])
        assert [path for path in tree(tmp_path) if ".partial" in path] == []


class TestAddresses:
    """Names, places and checksums are torchvision's."""

    def test_cifar10_and_stl10(self) -> None:
        from torchvision.datasets import CIFAR10, STL10

        assert (CIFAR10.url, CIFAR10.tgz_md5) == (cifar.URL, cifar.MD5)
        assert cifar.BATCHES["train"] == tuple(name for name, _ in CIFAR10.train_list)
        assert cifar.BATCHES["test"] == tuple(name for name, _ in CIFAR10.test_list)
        assert (STL10.url, STL10.tgz_md5, STL10.base_folder) == (stl10.URL, stl10.MD5, stl10.FOLDER)
        assert set(stl10.FILES) == set(STL10.splits)

    def test_usps_and_kin_of_mnist(self) -> None:
        from torchvision import datasets

        assert {split: values[1] for split, values in datasets.USPS.split_list.items()} == usps.FILES
        assert list(mnist.FOLDERS.values()) == [
            kind.__name__ for kind in (datasets.MNIST, datasets.FashionMNIST, datasets.KMNIST)
        ]

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_gtsrb(self, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import GTSRB
        from torchvision.datasets import gtsrb as reference

        asked: list[tuple[str, str, str]] = []

        def record(url: str, download_root: str, md5: str) -> None:
            asked.append((url, download_root, md5))

        monkeypatch.setattr(reference, "download_and_extract_archive", record)
        with pytest.raises(RuntimeError):
            GTSRB(tmp_path, split=split, download=True)
        assert asked == [(archive.url, str(tmp_path / "gtsrb"), archive.md5) for archive in gtsrb.ARCHIVES[split]]
