"""What the machine refuses: one clear line, nothing wrong published, and the same command ends well afterwards."""

import errno
import os
import re
import resource
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.refusals import failing_writes, refused, writes
from deepcluster import artifacts, faults, layout
from deepcluster.errors import ArtifactError, ResourceError, StorageError, UserError
from deepcluster.faults import explained, explaining, of_the_machine
from stages.cluster import cluster
from stages.pca import pca
from stages.train import train

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


class TestPublish:
    def test_an_error_names_the_target_and_not_the_place_beside_it(self, tmp_path):
        target = tmp_path / "x.txt"
        with writes(tmp_path, failing=1), pytest.raises(OSError, match="No space") as error:
            artifacts.write_text(target, "new")
        assert error.value.filename == str(target)

    def test_an_error_of_another_file_keeps_its_name(self, tmp_path):
        with pytest.raises(OSError, match="denied") as error, artifacts.publishing(tmp_path / "x.txt"):
            raise PermissionError(errno.EACCES, "denied", "an image.png")
        assert error.value.filename == "an image.png"

    @pytest.mark.parametrize("failing", range(1, 9))
    def test_whatever_write_fails_the_old_folder_or_the_new_one_is_there(self, tmp_path, failing):
        target = tmp_path / "x"

        def publish(text):
            with artifacts.publishing(target) as partial:
                partial.mkdir()
                (partial / "a").write_text(text)

        publish("old")
        try:
            with writes(tmp_path, failing) as counted:
                publish("new")
        except OSError:
            assert (target / "a").read_text() == ("new" if failing == 7 else "old")  # 7: the last flush
        else:
            assert failing > counted.seen == 7
            assert (target / "a").read_text() == "new"
        publish("newer")
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        assert (target / "a").read_text() == "newer"

    def test_cleaning_up_that_fails_hides_no_error(self, tmp_path, monkeypatch):
        def no_room(path):
            raise os_error(errno.EMFILE)

        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
            patched.setattr("deepcluster.artifacts.publish.shutil.rmtree", no_room)
            with artifacts.publishing(tmp_path / "x") as partial:
                partial.mkdir()
                raise os_error(errno.ENOSPC)
        artifacts.write_text(tmp_path / "x", "later")
        assert [path.name for path in tmp_path.iterdir()] == ["x"]  # nor are the leavings there for good


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_the_nth_write_of_a_store_fails_whichever_it_is(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)

    def work():
        with explaining("extract@1"), artifacts.write_store(Path("x.zarr"), "features", PROVENANCE) as store:
            store.array("features", np.ones((3, 2), dtype), ("sample", "feature"))

    work()
    found = list(failing_writes(work, [Path("x.zarr")]))
    assert len(found) > 10
    for refusal in found:
        assert "x.zarr: no space left on the disk (" in refusal.message, refusal
        assert refusal.wrong == []
        assert refusal.recovered


class TestStages:
    @pytest.mark.parametrize(
        ("work", "outputs"),
        [
            (lambda: pca(1), [layout.pca(1)]),
            (lambda: cluster(1), [layout.clusters(1)]),
        ],
        ids=["pca", "cluster"],
    )
    def test_a_disk_that_is_full_at_some_write(self, workspace, work, outputs):
        for refusal in failing_writes(work, outputs, every=9):
            assert "no space left on the disk (" in refusal.message, refusal
            assert refusal.wrong == []
            assert refusal.recovered

    @pytest.mark.slow
    @pytest.mark.parametrize("every", [3])
    def test_training_on_a_full_disk(self, workspace, every):
        outputs = [layout.checkpoint(1), layout.train_steps(1), layout.train_summary(1)]
        for refusal in failing_writes(lambda: train(1), outputs, every=every):
            assert "no space left on the disk (" in refusal.message, refusal
            assert refusal.wrong == []
            assert refusal.recovered

    def test_a_read_only_place_by_the_command_line(self, workspace, outcome):
        with writes(Path.cwd(), failing=1, number=errno.EROFS):
            status, out, err = outcome("pca", "--epoch", "1")
        assert (status, out) == (2, "")
        assert err == f"error: data/epochs/1/pca.zarr: lies on a read-only disk; make it writable, {AGAIN}\n"

    def test_too_little_memory_by_the_command_line(self, workspace, outcome, plenty, monkeypatch):
        monkeypatch.setattr("deepcluster.reduction.pca.fit", lambda *_, **__: np.empty((10**6, 10**9)))
        status, _, err = outcome("pca", "--epoch", "1")
        assert status == 2
        assert err == (
            "error: pca@1: not enough memory for an array of 7.11 PiB, shape (1000000, 1000000000), float64; 3.20 GB "
            f"are available; set pca.backend streaming, or fewer pca.components, {AGAIN}\n"
        )

    def test_times_that_go_back_and_forth_change_nothing(self, workspace, outcome, monkeypatch):
        """Neither artifacts nor what is read again may hang on a clock."""
        import time

        before, clock = workspace.digests(), [1e9]

        def jumping():
            clock[0] += 1000 if len(clock) % 2 else -5000
            clock.append(0)
            return clock[0]

        for file in layout.DATA.rglob("*"):
            os.utime(file, (0, 0))
        monkeypatch.setattr(time, "time", jumping)
        monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
        for command in (["pca", "-e", "1"], ["cluster", "-e", "1"], ["report"]):
            assert outcome(*command)[0] == 0
        flat = {name for name in workspace.digests() if name.startswith("data/.images-")}
        assert len(flat) == 1
        assert {name: digest for name, digest in workspace.digests().items() if name not in flat} == before


def test_a_command_in_a_folder_that_may_not_be_read(tmp_path, monkeypatch, outcome):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(os_error(errno.EACCES, str(path))))
    status, _, err = outcome("plan")
    assert (status, err) == (2, "error: params.yaml: cannot be read: Permission denied\n")


def test_a_full_table_of_open_files_leaves_nothing_behind(tmp_path):
    """In a process of its own, by the real limit."""
    code = """
import os, resource, sys
import numpy as np
from pathlib import Path
from deepcluster import artifacts
from deepcluster.faults import explaining
provenance = artifacts.Provenance(samples=3, ids="x")
def write(name):
    with artifacts.write_store(Path(name), "features", provenance) as store:
        store.array("features", np.ones((3, 2), np.int32), ("sample", "feature"))
write("first")
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, most))
try:
    with explaining("x"):
        write("second")
except Exception as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
write("second")
print(sorted(os.listdir()))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert found.returncode == 0, found.stderr
    first, second = found.stdout.splitlines()
    assert re.match(r"StorageError \S+: too many open files \(at most \d+ here\); ", first)
    assert second == "['first', 'second']"


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


@pytest.fixture(autouse=True)
def _no_thread_left():
    yield
    assert threading.active_count() < 20


def test_faults_in_turn_are_reported_with_what_is_wrong(tmp_path, monkeypatch):
    """The harness itself: an artifact that is half there counts as wrong."""
    monkeypatch.chdir(tmp_path)

    def careless():
        Path("x").mkdir(exist_ok=True)
        Path("x/a").write_text("a")
        try:
            Path("x/b").write_text("b")
        except OSError as error:
            raise ArtifactError("cannot") from error

    careless()
    assert refused(careless, [Path("x")], writes(tmp_path, failing=3), "third write").wrong == ["x"]
