"""What the machine refuses: one clear line, and nothing called damaged that is whole."""

import errno
import os
import resource
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from deepcluster import artifacts, faults
from deepcluster.errors import ResourceError, StorageError, UserError
from deepcluster.faults import explained, explaining, of_the_machine, unwritable

AGAIN = "then run the same command again"


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(faults, "available_memory", lambda: 3.2e9)


def os_error(number, path=None):
    return OSError(number, os.strerror(number), *([path] if path else []))


class TestSentences:
    @pytest.mark.parametrize(
        ("number", "sentence"),
        [
            (errno.EROFS, "lies on a read-only disk; make it writable"),
            (errno.EACCES, "permission denied; give yourself the right to read and write there"),
            (errno.EPERM, "permission denied; give yourself the right to read and write there"),
            (errno.EFBIG, "larger than a file may be here; raise `ulimit -f`, or use another disk"),
            (
                errno.EIO,
                "the disk fails (Input/output error); see the system's log, mend it or use another one",
            ),
        ],
    )
    def test_of_storage(self, number, sentence):
        found = explained(os_error(number, "a b/x.zarr"))
        assert type(found) is StorageError
        assert str(found) == f"a b/x.zarr: {sentence}, {AGAIN}"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_says_what_is_free_where_the_file_would_lie(self, number, tmp_path, monkeypatch):
        asked = []

        def statvfs(place):
            asked.append(Path(place))
            if place != tmp_path:
                raise FileNotFoundError
            return os.statvfs_result((4096, 4096, 1000, 500, 375, 0, 0, 0, 0, 255))

        monkeypatch.setattr(os, "statvfs", statvfs)
        path = tmp_path / "not there/x.zarr"
        assert str(explained(os_error(number, str(path)))) == (
            f"{path}: no space left on the disk (1.5 MB free); free some (`dvc gc -w` drops what no artifact here "
            f"needs), {AGAIN}"
        )
        assert asked[0] == path

    def test_open_files_say_the_limit(self):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        sentence = f"too many open files (at most {limit} here); raise the limit, e.g. `ulimit -n 1024`, {AGAIN}"
        assert str(explained(os_error(errno.EMFILE, "x"))) == f"x: {sentence}"
        loader = ImportError("libx.so: cannot open shared object file: Too many open files")
        assert str(explained(loader, what="pca@1")) == f"pca@1: {sentence}"

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("database or disk is full", "no space left on the disk"),
            ("attempt to write a readonly database", "lies on a read-only disk"),
        ],
    )
    def test_dvc_s_database(self, text, sentence):
        found = explained(sqlite3.OperationalError(text))
        assert isinstance(found, StorageError)
        assert str(found).startswith(f"DVC's database in .dvc/tmp: {sentence}")

    @pytest.mark.parametrize(
        ("error", "size"),
        [
            (MemoryError(), ""),
            (os_error(errno.ENOMEM), ""),
            (RuntimeError("std::bad_alloc"), ""),
            (ImportError("libtorch_cpu.so: failed to map segment from shared object"), ""),
            (
                RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                    "tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
                ),
                " for a tensor of 4.00 GB",
            ),
        ],
    )
    def test_of_memory(self, plenty, error, size):
        found = explained(error, what="train@3", remedy="set a smaller train.batch_size")
        assert type(found) is ResourceError
        assert str(found) == (
            f"train@3: not enough memory{size}; 3.20 GB are available; set a smaller train.batch_size, {AGAIN}"
        )

    def test_numpy_and_torch_as_they_really_say_it(self, plenty):
        import torch

        with pytest.raises(ResourceError) as numpys, explaining("pca@1"):
            np.empty((10**6, 10**9), np.float64)
        assert str(numpys.value) == (
            "pca@1: not enough memory for an array of 7.11 PiB, shape (1000000, 1000000000), float64; 3.20 GB are "
            f"available; close other programs, or take a machine with more, {AGAIN}"
        )
        with pytest.raises(ResourceError) as torchs, explaining("train@1"):
            torch.empty(10**15, dtype=torch.float32)
        assert str(torchs.value).startswith("train@1: not enough memory for a tensor of 4000000.00 GB; 3.20 GB are ")

    def test_a_limit_of_the_shell_is_named(self, plenty, monkeypatch):
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (4_000_000_000, -1))
        assert str(explained(MemoryError(), what="pca@1", remedy="less")) == (
            f"pca@1: not enough memory; 3.20 GB are available of the 4.00 GB that `ulimit -v` allows; less, {AGAIN}"
        )

        assert str(explained(MemoryError())).endswith(f"`ulimit -v` allows; raise that limit, {AGAIN}")

    @pytest.mark.parametrize(
        ("flag", "sentence"), [(os.ST_RDONLY, "lies on a read-only disk; make it writable"), (0, "permission denied; ")]
    )
    def test_a_place_that_cannot_be_written_to(self, tmp_path, monkeypatch, flag, sentence):
        assert unwritable(tmp_path) is None
        monkeypatch.setattr(os, "access", lambda place, mode: False)
        monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result((4096, 4096, 9, 9, 9, 0, 0, 0, flag, 255)))
        assert str(unwritable(tmp_path)).startswith(f"{tmp_path}: {sentence}")
        assert unwritable(tmp_path / "nothing") is None

    def test_a_gpu_s_memory(self):
        error = RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB")
        assert str(explained(error, what="train@1", remedy="set a smaller train.batch_size")) == (
            f"train@1: not enough memory on the GPU for 20.00 GiB; set a smaller train.batch_size, {AGAIN}"
        )

    def test_threads(self):
        assert str(explained(RuntimeError("can't start new thread"))) == (
            f"no further thread can be started; raise `ulimit -u` or lower OMP_NUM_THREADS, {AGAIN}"
        )

    @pytest.mark.parametrize(
        "error",
        [ValueError("bad shape"), KeyError("x"), FileNotFoundError(errno.ENOENT, "no such file"), RuntimeError("x")],
    )
    def test_other_errors_stay_what_they_are(self, error):
        assert explained(error) is None
        with pytest.raises(type(error)) as found, explaining("x"):
            raise error
        assert found.value is error

    def test_a_cause_further_down_is_found_and_a_user_s_error_is_left_alone(self):
        try:
            try:
                raise os_error(errno.ENOSPC, "x")
            except OSError as error:
                raise ValueError("could not save") from error
        except ValueError as error:
            assert str(explained(error)).startswith("x: no space left on the disk")
        with pytest.raises(UserError, match=r"^mine$"), explaining("x"):
            raise UserError("mine")


IDS = artifacts.ids_hash(["a"])
PROVENANCE = artifacts.Provenance(samples=3, ids=IDS, epoch=1, seed=7, params={})


@pytest.mark.parametrize(("kind", "said"), [("link", "a link to what is not there"), ("file", "a file")])
def test_what_lies_in_the_place_of_a_folder_is_named(tmp_path, monkeypatch, kind, said):
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    data.symlink_to("not mounted") if kind == "link" else data.write_text("")
    for target in (data / "a.csv", data / "epochs/1/train.json"):
        with pytest.raises(StorageError) as refused:
            artifacts.write_text(target, "x")
        assert str(refused.value) == f"{data}: must be a folder, is {said}; mend or remove it, then start again"


class TestNotDamage:
    """A reader that is refused files, memory or access must not have whole artifacts deleted."""

    def store(self, tmp_path, dtype):
        with artifacts.write_store(tmp_path / "x.zarr", "features", PROVENANCE) as store:
            store.array("features", np.ones((3, 2), dtype), ("sample", "feature"))
        return tmp_path / "x.zarr"

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
    def test_a_store(self, tmp_path, dtype, number, monkeypatch):
        path = self.store(tmp_path, dtype)
        opened = artifacts.open_store(path, "features", made_by="x")
        for module in ("deepcluster.artifacts.store.plain_rows", "zarr.open_group"):
            with monkeypatch.context() as patched:
                patched.setattr(module, lambda *_, **__: (_ for _ in ()).throw(os_error(number, "x")))
                with pytest.raises(OSError, match=os.strerror(number)):
                    opened.read("features")
                    artifacts.open_store(path, "features", made_by="x")

    def test_memory(self, tmp_path, monkeypatch):
        opened = artifacts.open_store(self.store(tmp_path, np.float32), "features", made_by="x")
        monkeypatch.setattr("deepcluster.artifacts.shards.PlainRows.read", lambda *_: np.empty((10**6, 10**9)))
        with pytest.raises(MemoryError):
            opened.read("features")

    def test_a_checkpoint_and_a_small_file(self, tmp_path, monkeypatch):
        artifacts.write_checkpoint(tmp_path / "c", artifacts.CheckpointFiles({}, {}, {}), PROVENANCE)
        artifacts.write_json(tmp_path / "x.json", {"loss": 1.0})
        monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(os_error(errno.EMFILE, "x")))
        with pytest.raises(OSError, match="Too many open files"):
            artifacts.read_checkpoint(tmp_path / "c", made_by="x")
        with pytest.raises(OSError, match="Too many open files"):
            artifacts.read_json(tmp_path / "x.json", made_by="x")

    def test_a_file_that_is_not_there_is(self):
        assert not of_the_machine(FileNotFoundError(errno.ENOENT, "no such file"))
        assert of_the_machine(PermissionError(errno.EACCES, "denied"))
