"""`deepcluster metrics`: the epochs so far, whatever a run is doing to them at this moment."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from deepcluster import artifacts, layout, live
from deepcluster.evaluation.epochs import epoch_row
from deepcluster.live import EpochReader, Snapshot, new_lines

COLUMNS = list(live.COLUMNS)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(live, "RETRY_SECONDS", 0)


@pytest.fixture
def locked(workspace, finished):
    """The workspace with the run's dvc.lock."""
    shutil.copyfile(finished.root / "dvc.lock", "dvc.lock")
    return workspace


def rows(outcome, *arguments):
    status, out, err = outcome("metrics", "--json", *arguments)
    assert (status, err) == (0, "")
    return json.loads(out)


def change_lock(stage, path, md5="0" * 32):
    """dvc.lock as if the stage had read another `path`."""
    text = Path("dvc.lock").read_text()
    start = text.index(f"\n  {stage}:")
    place = text.index("md5: ", text.index(f"path: {path}\n", start)) + len("md5: ")
    place += len("md5\n      md5: ") if text[place:].startswith("md5\n") else 0
    Path("dvc.lock").write_text(text[:place] + md5 + text[text.index("\n", place) :])


class TestTable:
    def test_without_true_labels_unless_asked(self, locked, outcome):
        status, out, err = outcome("metrics")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].split() == COLUMNS
        assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
        assert lines[3:] == ["2 of 2 epochs"]
        assert outcome("metrics", "--labels")[1].splitlines()[0].split() == [*COLUMNS, "nmi", "ari", "accuracy"]

    def test_the_numbers_are_those_of_evaluate(self, locked, outcome):
        images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
        targets_N = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare").read("targets")
        found = rows(outcome)
        assert found["rows"] == [epoch_row(epoch, images.ids, None) for epoch in (1, 2)]
        assert (found["planned"], found["earlier"], found["problems"]) == (2, [], [])
        assert rows(outcome, "--labels")["rows"] == [epoch_row(epoch, images.ids, targets_N) for epoch in (1, 2)]

    def test_no_true_labels(self, workspace, outcome):
        store = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare")
        provenance = artifacts.Provenance(store.samples, store.ids)
        shutil.rmtree(layout.TARGETS)
        with artifacts.write_store(layout.TARGETS, "targets", provenance, labelled=False, class_names=None) as writer:
            writer.array("targets", np.empty(0, np.int64), ("sample",))
        message = "error: --labels: the data set has no true labels; leave it out\n"
        assert outcome("metrics", "--labels") == (2, "", message)
        assert outcome("metrics")[0] == 0


class TestWhileARunGoesOn:
    def test_an_epoch_that_is_not_complete_is_not_there(self, locked, outcome):
        layout.train_summary(2).unlink()
        assert outcome("metrics")[1].splitlines()[2:] == ["1 of 2 epochs; not complete: 2"]
        shutil.rmtree(layout.clusters(1))
        assert outcome("metrics")[1] == "no epoch is complete yet\n"

    def test_epochs_behind_the_one_being_made_are_of_an_earlier_run(self, locked, outcome):
        layout.train_summary(1).unlink()
        assert outcome("metrics")[1] == "no epoch is complete yet\nof an earlier run, left out: 2\n"

    @pytest.mark.parametrize("path", ["data/epochs/1/checkpoint", "data/dataset/images.zarr"])
    def test_so_are_those_made_from_other_inputs(self, locked, outcome, path):
        change_lock("train@2", path)
        found = rows(outcome)
        assert [row["epoch"] for row in found["rows"]] == [1]
        assert found["earlier"] == [2]
        assert outcome("metrics")[1].splitlines()[2:] == [
            "1 of 2 epochs; not complete: 2",
            "of an earlier run, left out: 2",
        ]

    @pytest.mark.parametrize("name", ["losses", "clusters"])
    def test_new_clusters_beside_old_losses_are_no_row(self, locked, outcome, name):
        if name == "losses":
            artifacts.write_json(layout.train_summary(1), {"loss": 1.5, "accuracy": 0.5})
        else:
            change_lock("cluster@1", "data/history/1/clusters.zarr")
            change_lock("train@1", "data/history/1/clusters.zarr")
        assert [row["epoch"] for row in rows(outcome)["rows"]] == []

    def test_both_new_are_the_row_before_dvc_lock_knows_them(self, locked, outcome):
        change_lock("cluster@1", "data/history/1/clusters.zarr")
        for stage in ("train@1", "cluster@2"):
            change_lock(stage, "data/history/1/clusters.zarr")
        artifacts.write_json(layout.train_summary(1), {"loss": 1.5, "accuracy": 0.5})
        assert rows(outcome)["rows"][0]["loss"] == 1.5

    def test_a_lock_that_is_being_written_is_no_error(self, locked, outcome):
        text = Path("dvc.lock").read_text()
        for length in (*range(0, 60, 7), *range(60, len(text), len(text) // 12), len(text) - 40):
            Path("dvc.lock").write_text(text[:length])
            status, _, err = outcome("metrics")
            assert status == 0, (text[length - 40 : length], err)

    def test_damage_is_said_and_the_rest_shown(self, locked, outcome):
        (layout.clusters(1) / "labels/c/0").write_bytes(b"")
        Path("dvc.lock").unlink()
        status, out, _ = outcome("metrics")
        assert status == 0
        assert out.splitlines()[0] == "no epoch is complete yet"
        assert "epoch 1 left out: data/history/1/clusters.zarr/labels/c/0: damaged (" in out

    def test_a_row_is_read_again_only_when_its_files_change(self, locked, monkeypatch):
        read = []
        monkeypatch.setattr(live, "epoch_row", lambda epoch, ids, targets: read.append(epoch) or {"epoch": epoch})
        reader = EpochReader(labels=False)
        reader.snapshot()
        reader.snapshot()
        assert read == [1, 2]
        artifacts.write_text(layout.train_summary(2), layout.train_summary(2).read_text())
        reader.snapshot()
        assert read == [1, 2, 2]


@pytest.fixture
def interruptible():
    """A shell's background jobs, and what they start, ignore Ctrl-C; what these tests start must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


ROW = dict.fromkeys(live.COLUMNS, 1) | {"nmi": None}


class TestWatch:
    def test_into_a_pipe_a_line_for_each_epoch_that_is_new_or_has_changed(self):
        first, second, changed = ROW | {"loss": 2.5}, ROW | {"epoch": 2}, ROW | {"loss": 7.25}
        shown = [[], [first], [first], [first, second], [changed, second]]
        lines = list(new_lines((Snapshot(rows, 2, [], []) for rows in shown), labels=False))
        assert lines[0].split() == COLUMNS
        assert [line.split()[:2] for line in lines[1:]] == [["1", "2.5000"], ["2", "1"], ["1", "7.2500"]]
        assert len({len(line) for line in lines}) == 1

    def test_on_a_terminal_the_last_epochs_that_fit(self):
        rows = [ROW | {"epoch": epoch} for epoch in range(1, 31)]
        lines = str(live._picture(Snapshot(rows, 40, [], []), False, 15)).splitlines()
        assert len(lines) <= 15
        assert lines[0] == "... 20 epochs before"
        assert lines[2].split()[0] == "21"
        assert lines[-2:] == ["30 of 40 epochs; not complete: 31 to 40", "Ctrl-C ends this"]

    def test_a_data_set_that_is_being_made_is_waited_for(self, locked, outcome, monkeypatch):
        def sleep(seconds, waited=[]):  # noqa: B006
            waited.append(seconds)
            if len(waited) == 1:
                Path("hidden").rename(layout.IMAGES)
            elif len(waited) == 3:
                raise KeyboardInterrupt

        layout.IMAGES.rename("hidden")
        monkeypatch.setattr(live.time, "sleep", sleep)
        status, out, err = outcome("metrics", "--watch", "--every", "0.25")
        assert (status, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == ["epoch", "1", "2"]

    def test_ctrl_c_ends_it_without_an_error(self, finished, interruptible):
        running = subprocess.Popen(
            ["deepcluster", "metrics", "--watch", "--every", "0.1"],
            cwd=finished.root,
            env=finished.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout.readline().split() == COLUMNS
        running.send_signal(signal.SIGINT)
        try:
            out, err = running.communicate(timeout=120)
        finally:
            running.kill()
        assert (running.returncode, err) == (0, "")
        assert len(out.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--watch", "--json"), "--json: prints the table once; leave out --watch"),
        (("--every", "0"), "--every: must be >= 0.1 seconds; got 0"),
        (("--every", "nan"), "--every: must be >= 0.1 seconds; got nan"),
    ],
)
def test_refusals(workspace, outcome, arguments, message):
    assert outcome("metrics", *arguments) == (2, "", f"error: {message}\n")


def test_nothing_was_prepared_or_no_project(workspace, outcome, tmp_path, monkeypatch):
    shutil.rmtree("data")
    assert outcome("metrics") == (2, "", "error: data/dataset/images.zarr: not found; run `deepcluster run`\n")
    monkeypatch.chdir(tmp_path)
    message = "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n"
    assert outcome("metrics") == (2, "", message)


def test_k_stands_beside_effective_k_since_refine_changes_it():
    assert {"k", "effective_k"} <= set(live.columns(labels=False))
