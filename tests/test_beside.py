"""Readers, and `dvc push`, beside a run that writes; they act from within the run, so nothing depends on the clock."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from deepcluster import artifacts, layout
from deepcluster.errors import ArtifactError
from deepcluster.live import EpochReader

REPLACED = r"^data/epochs/1/features\.zarr: was replaced while it was read, by a run that goes on; try again$"


def features(value):
    provenance = artifacts.Provenance(6, "ids", 1)
    with artifacts.write_store(layout.features(1), "features", provenance) as store:
        store.array("features", np.full((6, 2), value, np.float32), ("sample", "feature"))


def opened():
    return artifacts.open_store(layout.features(1), "features", made_by="extract@1")


class TestAStoreThatIsReplacedWhileItIsRead:
    @pytest.fixture(autouse=True)
    def first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        features(1.0)

    def test_nothing_of_another_one_is_read(self):
        store = opened()
        features(2.0)  # of the same shape, made with the same settings: only the stored values differ
        with pytest.raises(ArtifactError, match=REPLACED):
            store.read("features")
        assert opened().read("features").tolist() == [[2.0, 2.0]] * 6

    def test_nor_after_its_first_block(self):
        blocks = opened().blocks("features", 1)
        assert next(blocks).tolist() == [[1.0, 1.0]] * 6
        store = opened()
        features(2.0)
        with pytest.raises(ArtifactError, match=REPLACED):
            store.read("features", slice(3, 6))

    def test_one_that_is_away_for_the_moment_is_said_to_be_replaced_not_damaged(self):
        store = opened()
        layout.features(1).rename("aside")
        with pytest.raises(ArtifactError, match=REPLACED):
            store.read("features")

    def test_one_with_the_same_bytes_put_back_is_another_one_too(self):
        store = opened()
        shutil.copytree(layout.features(1), "copy")
        shutil.rmtree(layout.features(1))
        shutil.move("copy", layout.features(1))
        with pytest.raises(ArtifactError, match=REPLACED):
            store.read("features")
        assert opened().read("features").tolist() == [[1.0, 1.0]] * 6


def test_at_every_rename_of_a_publish_the_table_has_an_epoch_as_it_was_as_it_will_be_or_not_at_all(
    workspace, monkeypatch
):
    reader, rename, replace, seen = EpochReader(labels=False), os.rename, os.replace, []
    (before, second) = reader.snapshot().rows

    def look():
        found = reader.snapshot()
        assert found.problems == []
        seen.append([row for row in found.rows if row["epoch"] == 1])

    def watched(call):
        def calling(source, target, **named):
            look()
            call(source, target, **named)
            look()

        return calling

    summary = json.loads(layout.train_summary(1).read_text()) | {"loss": 7.0}
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", watched(rename))
        patched.setattr(os, "replace", watched(replace))
        store = artifacts.open_store(layout.clusters(1), "clusters", made_by="cluster@1")
        arrays = {name: store.read(name) for name in ("labels", "distances", "centroids", "sizes", "objective")}
        provenance = artifacts.Provenance(store.samples, store.ids, 1)
        extra = {name: store.attributes[name] for name in ("health", "trained_on") if name in store.attributes}
        with artifacts.write_store(layout.clusters(1), "clusters", provenance, **extra) as writer:
            for name, values in arrays.items():
                writer.array(name, values, [f"{name}_{axis}" for axis in range(values.ndim)])
        artifacts.write_text(layout.train_summary(1), json.dumps(summary))
    (after, _) = reader.snapshot().rows
    assert after == before | {"loss": 7.0}
    assert second["epoch"] == 2
    assert all(rows in ([], [before], [after]) for rows in seen)
    assert [] in seen  # between the renames of a folder
    assert [after] in seen


BESIDE = """
import json, subprocess, sys
from subprocess import PIPE, Popen
from deepcluster import runner

def acting(name, original):
    def act(**arguments):
        commands = [("deepcluster", "show", "features"), ("deepcluster", "show", "clusters")]
        commands += [("dvc", "push")] if name == "stages.cluster" else []
        looks = [Popen(command, stdout=PIPE, stderr=PIPE, text=True) for command in commands]
        original(**arguments)
        with open("beside", "a") as file:
            for look in looks:
                out, err = look.communicate()
                file.write(json.dumps([look.args, look.returncode, err]) + "\\n")
    return act

for name, original in list(runner.STAGES.items()):
    runner.STAGES[name] = acting(name, original)
sys.argv = ["deepcluster", "run"]
from deepcluster.cli import main
main()
"""


@pytest.mark.slow
def test_shows_a_watch_and_a_push_beside_a_run(unstarted, finished, tmp_path):
    project = unstarted.clone(tmp_path / "a clone")
    (tmp_path / "a store").mkdir()
    project.dvc("remote", "add", "--local", "--default", "store", str(tmp_path / "a store"))
    watch = subprocess.Popen(
        [sys.executable, "-m", "deepcluster", "metrics", "--watch", "--every", "0.1"], cwd=project.root,
        env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        project.run(sys.executable, "-c", BESIDE)
        lines = [watch.stdout.readline() for _ in range(3)]
        watch.send_signal(signal.SIGINT)
        rest, err = watch.communicate(timeout=120)
    finally:
        watch.kill()
    assert (watch.returncode, err) == (0, "")
    assert [line.split()[0] for line in lines] == ["epoch", "1", "2"]
    assert "nan" not in "".join(lines) + rest
    assert project.digests() == finished.digests()
    assert (project.root / "dvc.lock").read_bytes() == (finished.root / "dvc.lock").read_bytes()
    looks = [json.loads(line) for line in (project.root / "beside").read_text().splitlines()]
    assert len(looks) == 2 * 12 + 2
    assert {status for _, status, _ in looks} <= {0, 2}
    for command, status, said in looks:
        if command[0] == "deepcluster" and status:
            assert said.startswith("error: "), said
            assert said.count("\n") == 1, said
        elif command[0] == "dvc":
            assert status == 0, said
    assert project.repro() == []
