"""Stages that start their own processes, as a person runs them: one result, one line, nobody left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, command_environment, digests
from ranks import digests_and_labels_of_one_process, small_shards
from test_resuming import _settings, edit_params, ready  # noqa: F401 - fixtures

from deepcluster import artifacts, layout
from deepcluster.processes import alive

pytestmark = pytest.mark.slow

STATE = layout.progress("train", 1) / "state.safetensors"
LONG = {"train.epoch_size": 60.0}  # 360 steps


@pytest.fixture
def folder(ready, tmp_path, monkeypatch):  # noqa: F811 - the fixture
    """A copy of a run in which all has run that comes before train@1."""
    root = shutil.copytree(ready, tmp_path / "a copy")
    monkeypatch.chdir(root)
    return root


def begun(folder: Path, stage: str, **variables: str) -> subprocess.Popen[str]:
    found = command_environment(folder.parent) | {
        "PYTHONPATH": str(CHECKOUT),
        "DEEPCLUSTER_PROCESSES": "2",
        "DEEPCLUSTER_PROGRESS_SECONDS": "0",
    }
    command = [sys.executable, "-m", f"stages.{stage}", "--epoch", "1"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=found | variables, stdout=pipe, stderr=pipe, text=True)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def workers_in_the_middle(parent: subprocess.Popen[str]) -> list[int]:
    """The two processes, once they keep their progress."""
    until = time.monotonic() + 300
    while not STATE.exists():
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    found = children(parent.pid)
    assert len(found) == 2
    return found


def lines(text: str) -> list[str]:
    return [
        line
        for line in text.splitlines()
        if not re.match(r"train@1( \(process 0 of 2\))?: [\d,]+ images|train@1: c", line)
    ]


def test_extract_and_cluster_give_what_one_process_gives(folder):
    expected, labels_N = digests_and_labels_of_one_process()
    path = small_shards(folder.parent / "small")
    for stage in ("extract", "pca", "cluster"):
        out, err = (process := begun(folder, stage, PYTHONPATH=path)).communicate(timeout=300)
        assert process.returncode == 0, err
        assert len(err.splitlines()) == (1 if stage == "extract" else 0), err
        assert len(out.splitlines()) == (0 if stage == "extract" else 1), out
    assert digests(folder, str(layout.features(1))) == expected
    assert sum("features/c/" in name for name in expected) == 48  # shards, so that both had some
    found_N = artifacts.open_store(layout.clusters(1), "clusters", made_by="cluster@1").read("labels")
    np.testing.assert_array_equal(found_N, labels_N)


def test_one_is_killed(folder):
    edit_params(Path("params.yaml"), LONG)
    parent = begun(folder, "train")
    workers = workers_in_the_middle(parent)
    os.kill(workers[1], signal.SIGKILL)
    out, err = parent.communicate(timeout=300)
    assert (parent.returncode, out) == (1, "")
    killed = "process 1 of 2 was killed by signal 9 (SIGKILL); the others were ended and nothing was published"
    assert lines(err) == [f"error: train@1: {killed}"]
    assert not alive(workers[0])
    assert not layout.checkpoint(1).exists()
    out, err = (again := begun(folder, "train")).communicate(timeout=300)
    assert again.returncode == 0, err
    assert "train@1: continues at step " in err
    assert layout.checkpoint(1).exists()


def test_one_that_hangs_ends_the_stage_after_the_time_out(folder):
    edit_params(Path("params.yaml"), LONG)
    parent = begun(folder, "train", DEEPCLUSTER_TIMEOUT="5", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5")
    workers = workers_in_the_middle(parent)
    os.kill(workers[1], signal.SIGSTOP)
    stopped = time.monotonic()
    out, err = parent.communicate(timeout=300)
    assert time.monotonic() - stopped < 120  # both time-outs, and a machine that does other work
    assert (parent.returncode, out) == (1, "")
    assert lines(err) == [
        "error: another process of this stage does not answer within 5 s (DEEPCLUSTER_TIMEOUT); nothing was published; "
        "start the stage again"
    ]
    assert not any(alive(worker) for worker in workers)
    assert not layout.checkpoint(1).exists()


def test_ctrl_c_stops_all_and_the_same_command_goes_on(folder):
    edit_params(Path("params.yaml"), LONG)
    parent = begun(folder, "train")
    workers = workers_in_the_middle(parent)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=300)
    assert parent.returncode == 130
    assert lines(err) == [
        "train@1: stops after this step; once more stops at once",
        "interrupted; what was published before stays, the same command carries on",
    ]
    assert not any(alive(worker) for worker in workers)
    assert STATE.exists()


def test_when_the_parent_is_killed_so_are_all(folder):
    edit_params(Path("params.yaml"), LONG)
    parent = begun(folder, "train")
    workers = workers_in_the_middle(parent)
    parent.kill()
    parent.communicate(timeout=300)
    until = time.monotonic() + 60
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_mistake_is_one_line(folder):
    shutil.rmtree(layout.checkpoint(0))
    out, err = (parent := begun(folder, "extract")).communicate(timeout=300)
    assert (parent.returncode, out) == (2, "")
    assert re.fullmatch(
        r"error: (process 1 of 2 on \S+: )?data/epochs/0/checkpoint: not found; run `dvc repro initialise`\n", err
    )


def test_the_number_of_processes_is_in_no_lock_and_no_artifact(unstarted, tmp_path):
    project = unstarted.clone(tmp_path / "several")
    finished = project.run("deepcluster", "run", DEEPCLUSTER_PROCESSES="2")
    assert finished.stdout.splitlines()[-1] == "12 stages ran"
    assert project.repro() == []  # in one process, there is nothing left to do
    assert "up to date" in project.dvc("status").stdout
    one = unstarted.clone(tmp_path / "one")
    one.run("deepcluster", "run")
    several = set(project.digests())
    assert several == set(one.digests())
    features = "data/epochs/1/features.zarr"
    assert project.digests(features) == one.digests(features)
