"""Small files that would become huge: refused before they fill the memory or the disk, by name."""

import bz2
import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from dataset_files import message, write
from PIL import Image

from deepcluster.datasets import decoding, fetch, load_dataset, usps
from deepcluster.datasets.fetch import unpack
from deepcluster.errors import DataError, ParamsError, ResourceError
from deepcluster.params import load_params

LIMIT = 1 << 20  # in the place of 64 MiB


class TestArchives:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(fetch, "SMALL", LIMIT)

    def refusal(self, path: Path) -> str:
        with pytest.raises(DataError) as caught:
            unpack(path, path.parent / "out")
        written = sum(file.stat().st_size for file in (path.parent / "out").rglob("*") if file.is_file())
        assert written <= LIMIT
        return str(caught.value).removeprefix(f"{path}: ")

    def said(self, found: str) -> str:
        return f"refused, as it {found}, far more than a file of its size should; delete it and fetch it again"

    @pytest.mark.parametrize("members", [1, 40])
    def test_a_zip(self, tmp_path, members):
        path = tmp_path / "some.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(members):
                archive.writestr(f"zeros {number}", bytes(40 * LIMIT // members))
        assert self.refusal(path) == self.said("unpacks to over 1,048,576 bytes")

    def test_a_tar(self, tmp_path):
        path = tmp_path / "some.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("zeros")
            info.size = 40 * LIMIT
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        assert self.refusal(path) == self.said("unpacks to over 1,048,576 bytes")

    def test_a_sparse_file_in_a_tar(self, tmp_path):
        """GNU's format: a terabyte of zeros that takes no room in the archive."""
        info = tarfile.TarInfo("sparse")
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # its real size, in base 256
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path = write(tmp_path / "some.tar.gz", gzip.compress(bytes(header) + bytes(1024)))
        assert self.refusal(path) == self.said("unpacks to over 1,048,576 bytes")

    def test_a_header_in_a_tar(self, tmp_path):
        """Which tarfile reads into memory whole, whatever length it says."""
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 40 * LIMIT
        path = write(tmp_path / "some.tar.gz", gzip.compress(info.tobuf() + bytes(40 * LIMIT)))
        assert self.refusal(path) == self.said("unpacks to over 1,048,576 bytes")

    def test_too_many_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fetch, "MOST_MEMBERS", 3)
        for count in (3, 4):
            path = tmp_path / f"{count}/some.zip"
            path.parent.mkdir()
            with zipfile.ZipFile(path, "w") as archive:
                for number in range(count):
                    archive.writestr(str(number), b"")
        unpack(tmp_path / "3/some.zip", tmp_path / "3/out")
        assert self.refusal(path) == self.said("holds over 3 files")

    def test_a_large_archive_may_hold_much(self, tmp_path):
        content = Path(__file__).read_bytes() * 300
        path = tmp_path / "some.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", content)
        assert len(content) > LIMIT
        unpack(path, tmp_path / "out")
        assert (tmp_path / "out/a").read_bytes() == content


class TestIdx:
    IMAGES = "MNIST/raw/t10k-images-idx3-ubyte"

    @pytest.fixture(autouse=True)
    def labels(self, tmp_path):
        write(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, 1) + b"\0")

    def header(self, *shape: int) -> bytes:
        return struct.pack(">HBB3I", 0, 8, 3, *shape)

    def test_no_more_is_unpacked_than_the_header_promises(self, tmp_path, monkeypatch):
        read: list[int] = []
        own = gzip.GzipFile.read

        def counted(self, size=-1):
            content = own(self, size)
            read.append(len(content))
            return content

        monkeypatch.setattr(gzip.GzipFile, "read", counted)
        content = self.header(1, 28, 28) + bytes(40 << 20)
        path = write(tmp_path / f"{self.IMAGES}.gz", gzip.compress(content))
        assert message("mnist", tmp_path, "test") == (
            f"{path}: damaged, its header promises 784 bytes and more follow; delete it and fetch it again"
        )
        assert sum(read) == 16 + 785

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_a_header_that_promises_more_than_a_file_can_hold(self, tmp_path, ending):
        content = self.header(2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(10)
        path = write(tmp_path / f"{self.IMAGES}{ending}", gzip.compress(content) if ending else content)
        assert message("mnist", tmp_path, "test") == (
            f"{path}: damaged, its header promises {(2**32 - 1) ** 3} bytes and 10 follow; delete it and fetch it again"
        )

    def test_what_would_not_fit_into_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr("deepcluster.memory.available_memory", lambda: 1e6)
        content = self.header(1000, 28, 28) + bytes(784_000)
        path = write(tmp_path / f"{self.IMAGES}.gz", gzip.compress(content))
        with pytest.raises(ResourceError) as caught:
            load_dataset("mnist", root=tmp_path, split="test", image_size=None, grayscale=False)
        possible = min(784_000, path.stat().st_size * 1032)
        assert str(caught.value) == (
            f"{path}: {possible:,} bytes of pixels or labels need about 0.00 GB of memory and 0.00 GB are available; "
            "this is no file of MNIST or its kin"
        )


def test_usps(tmp_path, monkeypatch):
    monkeypatch.setattr(usps, "LARGEST", 1000)
    asked: list[int] = []
    own = bz2.BZ2File.read
    monkeypatch.setattr(bz2.BZ2File, "read", lambda self, size=-1: own(self, asked.append(size) or size))
    path = write(tmp_path / "usps.t.bz2", bz2.compress(b"3 1:1\n" * 166))
    assert load_dataset("usps", root=tmp_path, split="test", image_size=None, grayscale=False).sample_ids[-1] == "165"
    write(path, bz2.compress(b"3 1:1\n" * 167))
    assert message("usps", tmp_path, "test") == (
        f"{path}: refused, as it unpacks to over 1,000 bytes; delete it and fetch it again"
    )
    assert asked == [1001, 1001]


@pytest.mark.parametrize("planted", [b"\x80\x02]r\xff\xff\xff\x7f.", b"\x80\x02]p4000000000\n."])
def test_a_pickle_that_takes_gigabytes_to_remember_one_thing(tmp_path, planted):
    path = write(tmp_path / "cifar-10-batches-py/test_batch", planted)
    found = message("cifar10", tmp_path, "test")
    number = "2,147,483,647" if b"r" in planted else "4,000,000,000"
    assert found == (f"{path}: cannot be read (remembers something as number {number}); delete it and fetch it again")


def test_no_honest_pickle_remembers_so_far():
    assert pickle.loads(b"\x80\x02]q\x05.") == []


class TestImages:
    def test_the_limit_is_pillows_own(self):
        assert decoding.PIXEL_LIMIT == 1024 * 1024 * 1024 // 4 // 3 == Image.MAX_IMAGE_PIXELS

    def test_the_error_says_which_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decoding, "PIXEL_LIMIT", 50)
        for name, side in (("good", 10), ("bad", 11)):
            Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
        with pytest.raises(DataError) as caught:
            load_dataset("folder", root=tmp_path, split="all", image_size=8, grayscale=True)
        first, second = str(caught.value).splitlines()
        assert first == f"{tmp_path}: 1 of 2 images cannot be read (max_unreadable is 0):"
        assert second == "  bad.png: over 100 pixels, refused"


class TestYaml:
    def refusal(self, path: Path, text: str) -> str:
        write(path, text)
        with pytest.raises(ParamsError) as caught:
            load_params(path)
        return str(caught.value).removeprefix(f"{path}: ")

    MANY = "holds over 10,000 values, aliases (*name) written out; expected about 150"

    def test_aliases_of_aliases(self, tmp_path):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
        assert self.refusal(tmp_path / "params.yaml", "\n".join(lines)) == self.MANY

    def test_an_alias_of_itself(self, tmp_path):
        assert self.refusal(tmp_path / "params.yaml", "data: &a\n  root: *a\n") == self.MANY

    def test_a_deep_nest(self, tmp_path):
        found = self.refusal(tmp_path / "params.yaml", "[" * 5000 + "]" * 5000)
        assert found == "nested too deeply"

    def test_honest_aliases_are_fine(self, tmp_path):
        write(tmp_path / "params.yaml", "epochs: &n 7\ntrain:\n  schedule:\n    name: cosine\n    epochs: *n\n")
        assert load_params(tmp_path / "params.yaml").train.schedule.epochs == 7
