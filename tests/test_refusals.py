"""Writes that fail anywhere, limits, jumping clocks: nothing wrong is published, the same command then ends well."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.refusals import failing_writes, refused, writes
from deepcluster import artifacts, faults, layout
from deepcluster.errors import ArtifactError
from deepcluster.faults import explaining
from stages.cluster import cluster
from stages.pca import pca
from stages.train import train

AGAIN = "then run the same command again"
PROVENANCE = artifacts.Provenance(samples=3, ids=artifacts.ids_hash(["a"]), epoch=1, seed=7, params={})

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(faults, "available_memory", lambda: 3.2e9)


def os_error(number, path=None):
    return OSError(number, os.strerror(number), *([path] if path else []))


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
