"""`deepcluster verify`: stages run again give the bytes that are recorded, or it says what differs."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import Project
from ruamel.yaml import YAML
from safetensors.numpy import load_file, save_file

from deepcluster import artifacts
from deepcluster.artifacts import Difference, differences
from deepcluster.errors import UserError
from deepcluster.origins import Origin, _parsed
from deepcluster.verify import chosen_stages

PROVENANCE = artifacts.Provenance(samples=3, ids="0" * 64, epoch=1, seed=7, params={"k": 2})


@pytest.fixture
def copied(project, monkeypatch) -> Project:
    """A copy of it to change, as current folder; its artifacts writable, which DVC's links are not."""
    monkeypatch.chdir(project.root)
    for name, value in project.environment.items():
        if name.startswith(("DVC", "GIT_", "OMP")):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("COLUMNS", raising=False)
    return project


def state(root: Path) -> dict[str, tuple[bytes, int]]:
    """Everything in the project but what DVC and git keep for themselves."""
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / ".git")]
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found if "__pycache__" not in path.parts
    }


def unlink(path: Path) -> Path:
    """A file of its own in the place of DVC's link into the cache."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def test_stages_that_give_the_same_bytes(copied, outcome):
    before = state(copied.root)
    status, out, err = outcome("verify", "pca", "cluster", "--epoch", "2")
    assert (status, err) == (0, "")
    first, second, last = out.splitlines()
    assert first.startswith("[1/2] pca@2      same: ")
    assert second.startswith("[2/2] cluster@2  same: ")
    assert last == "2 stages run again: 2 same"
    assert state(copied.root) == before
    assert not list((copied.root / ".dvc/tmp").glob("verify-*"))


def test_a_difference_is_named_with_its_size(copied, outcome):
    path = Path("data/history/1/clusters.zarr")
    labels = artifacts.open_store(path, "clusters", made_by="x").read("labels")
    rewritten(path, labels=np.where(np.arange(len(labels)) < 2, (labels + 1) % 4, labels).astype(np.int32))
    status, out, _ = outcome("verify", "cluster@1")
    assert status == 1
    lines = out.splitlines()
    assert lines[0] == "[1/1] cluster@1  DIFFERENT"
    assert lines[1].startswith("    data/history/1/clusters.zarr: labels: 2 of 48 values differ, by up to ")
    assert lines[-1] == "1 stage run again: 1 different"


def rewritten(path: Path, **changes: np.ndarray) -> None:
    """The store with arrays exchanged, and all checksums right again."""
    store = artifacts.open_store(path, "clusters", made_by="x")
    arrays = {name: store.read(name) for name in ("labels", "distances", "centroids", "objective", "sizes")} | changes
    names = {"labels": ("sample",), "distances": ("sample",), "centroids": ("cluster", "component")}
    names |= {"objective": ("iteration",), "sizes": ("cluster",)}
    attributes = store.attributes
    made = artifacts.Provenance(
        attributes["samples"], attributes["ids"], attributes["epoch"], attributes["seed"], attributes["params"]
    )
    extra = {key: attributes[key] for key in ("health", "trained_on")}
    with artifacts.write_store(path, "clusters", made, **extra) as writer:
        for name, array in arrays.items():
            writer.array(name, array, names[name])


def test_json(copied, outcome):
    with_loss = Path("data/epochs/1/pca.zarr")
    shutil.rmtree(with_loss)
    status, out, _ = outcome("verify", "pca", "-e", "1", "--json")
    (verdict,) = json.loads(out)
    assert status == 0, verdict  # the artifact is pruned: compared by its hash in dvc.lock
    assert verdict["stage"] == "pca@1"
    assert (verdict["outcome"], verdict["differences"]) == ("same", {})


def test_stale_is_no_difference(copied, outcome):
    copied.set_params(cluster__k=3)
    status, out, _ = outcome("verify", "cluster@1")
    assert status == 1
    assert out.splitlines() == [
        "[1/1] cluster@1  stale: params.yaml has another cluster now than when it was made",
        "1 stage run again: 1 stale",
    ]


def test_stale_through_what_it_was_made_from(copied, outcome):
    rewritten(Path("data/history/1/clusters.zarr"), sizes=np.array([1, 1, 1, 45]))
    status, out, _ = outcome("verify", "cluster@2")
    assert status == 1
    assert "[1/1] cluster@2  stale: data/history/1/clusters.zarr is not what it was made from" in out


def test_a_revision(copied, outcome):
    copied.commit("A run")
    copied.set_params(cluster__k=3)
    shutil.rmtree("data/epochs/1/pca.zarr")
    status, out, err = outcome("verify", "cluster@1", "--rev", "HEAD")
    assert (status, err) == (0, "")
    assert out.startswith("[1/1] cluster@1  same: ")


def test_a_stage_that_fails_is_an_error(copied, outcome):
    copied.set_params(cluster__collapse__min_effective_k=1.0)
    lock = YAML(typ="safe").load(Path("dvc.lock"))
    lock["stages"]["cluster@1"]["params"]["params.yaml"]["cluster"]["collapse"]["min_effective_k"] = 1.0
    YAML(typ="safe").dump(lock, Path("dvc.lock"))
    status, out, err = outcome("verify", "cluster@1")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: verify: cluster@1 fails when it is run again (exit code 2); why stands above"
    )
    assert not list(Path(".dvc/tmp").glob("verify-*"))


LOCK = {
    f"data/{name}": stage
    for name, stage in {
        "a": "report", "b": "evaluate", "c": "train@2", "d": "cluster@2", "e": "train@10", "f": "initialise",
        "g": "prepare", "h": "cluster@10", "i": "something else", "j": "pca",
    }.items()
}  # fmt: skip


def source() -> Origin:
    entries = {stage: {"outs": [{"path": path, "md5": "x"}]} for path, stage in LOCK.items()}
    text = json.dumps({"stages": entries})
    return Origin(None, Path(), _parsed(text, "dvc.lock"))


@pytest.mark.parametrize(
    ("names", "epoch", "expected"),
    [
        ([], None, "prepare initialise cluster@2 train@2 cluster@10 train@10 evaluate report"),
        ([], 2, "cluster@2 train@2"),
        (["train"], None, "train@2 train@10"),
        (["train", "cluster@10", "evaluate"], None, "train@2 cluster@10 train@10 evaluate"),
        (["train", "cluster"], 10, "cluster@10 train@10"),
        (["train@2"], 2, "train@2"),
    ],
)
def test_chosen_stages(names, epoch, expected):
    assert chosen_stages(source(), names, epoch) == expected.split()


KNOWN = "prepare, initialise, extract, pca, cluster, train, evaluate, report, or such as cluster@7"


@pytest.mark.parametrize(
    ("names", "epoch", "message"),
    [
        (["clutser"], None, f"verify: must be one of {KNOWN}; did you mean 'cluster'?; got 'clutser'"),
        (["report@1"], None, f"verify: must be one of {KNOWN}; did you mean 'report'?; got 'report@1'"),
        (["train@"], None, f"verify: must be one of {KNOWN}; did you mean 'train'?; got 'train@'"),
        (["train@3"], None, "train@3: not in dvc.lock, which records epochs 2, 10"),
        (["pca"], None, "pca: not in dvc.lock, which records epochs 2, 10"),
        ([], 3, "epoch 3: not in dvc.lock, which records epochs 2, 10"),
        (["train"], 3, "train@3: not in dvc.lock, which records epochs 2, 10"),
        (["train@2"], 3, "--epoch: 3 contradicts train@2"),
        (["evaluate"], 3, "--epoch: evaluate has no epochs"),
    ],
)
def test_stages_that_there_are_not(names, epoch, message):
    with pytest.raises(UserError) as caught:
        chosen_stages(source(), names, epoch)
    assert str(caught.value) == message


def test_before_any_run(unstarted, monkeypatch, outcome):
    monkeypatch.chdir(unstarted.root)
    assert outcome("verify") == (2, "", "error: dvc.lock: records no stage; `deepcluster run` does\n")


def test_outside_a_project(tmp_path, monkeypatch, outcome):
    monkeypatch.chdir(tmp_path)
    assert outcome("verify") == (
        2,
        "",
        "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n",
    )


class TestDifferences:
    """Two copies of an artifact."""

    def store(self, path: Path, **arrays: np.ndarray) -> Path:
        params = {"lr": 0.5 if "other" in arrays else 0.25}
        provenance = artifacts.Provenance(samples=3, ids="0" * 64, epoch=1, seed=7, params=params)
        with artifacts.write_store(path, "any", provenance) as writer:
            for name, array in arrays.items():
                writer.array(name, array, [f"axis_{axis}" for axis in range(array.ndim)])
        return path

    def test_none(self, tmp_path):
        rows = np.arange(6, dtype=np.float32).reshape(3, 2)
        rows[1, 1] = np.nan
        assert differences(self.store(tmp_path / "a", x=rows), self.store(tmp_path / "b", x=rows.copy())) == []

    def test_of_values(self, tmp_path):
        rows = np.array([[1.0, 2.0], [np.nan, -4.0], [np.inf, 0.0]], np.float32)
        other = rows.copy()
        other[1, 1], other[0, 0] = -3.5, 1.25
        found = differences(self.store(tmp_path / "a", x=rows, y=rows), self.store(tmp_path / "b", x=other, y=rows))
        assert found == [Difference("x", "2 of 6 values differ, by up to 0.5 (values up to 4)", 0.5)]
        assert str(found[0]) == "x: 2 of 6 values differ, by up to 0.5 (values up to 4)"

    def test_of_not_a_number(self, tmp_path):
        rows = np.array([1.0, 2.0], np.float32)
        found = differences(
            self.store(tmp_path / "a", x=rows), self.store(tmp_path / "b", x=np.array([1.0, np.nan], np.float32))
        )
        assert found == [Difference("x", "1 of 2 values differ, by up to inf (values up to 2)", float("inf"))]

    def test_of_arrays_shapes_and_attributes(self, tmp_path):
        rows = np.zeros((3, 2), np.float32)
        first = self.store(tmp_path / "a", x=rows, y=rows)
        second = self.store(tmp_path / "b", y=rows.astype(np.float64)[:2], other=rows)
        assert differences(first, second) == [
            Difference("other", "made only now"),
            Difference("x", "recorded, but not made now"),
            Difference("y", "was float32 [3, 2], now float64 [2, 2]"),
            Difference("params.lr", "was 0.25, now 0.5", 0.25),
        ]

    def test_of_a_checkpoint(self, tmp_path):
        for name, lr in (("a", 0.5), ("b", 0.5)):
            files = artifacts.CheckpointFiles({"w": np.ones(3, np.float32)}, {"w.m": np.zeros(3)}, {"lr": lr})
            artifacts.write_checkpoint(tmp_path / name, files, PROVENANCE)
        weights = load_file(tmp_path / "b/model.safetensors")
        save_file({"w": weights["w"] + np.array([0, 0, 2], np.float32)}, tmp_path / "b/model.safetensors")
        assert differences(tmp_path / "a", tmp_path / "b") == [
            Difference("model.safetensors: w", "1 of 3 values differ, by up to 2 (values up to 1)", 2.0)
        ]

    def test_of_text_and_json(self, tmp_path):
        for name, text, number in (("a", "x,y\n1,2\n", 1.5), ("b", "x,y\n1,3\n", 1.0)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "t.csv").write_text(text)
            (tmp_path / name / "m.json").write_text(json.dumps({"a": {"b": number, "c": [1]}}))
        assert differences(tmp_path / "a", tmp_path / "b") == [
            Difference("m.json: a.b", "was 1.5, now 1.0", 0.5),
            Difference("t.csv: line 2", 'was "1,2", now "1,3"'),
        ]
        assert differences(tmp_path / "a/t.csv", tmp_path / "b/t.csv") == [Difference("line 2", 'was "1,2", now "1,3"')]

    def test_of_what_cannot_be_read(self, tmp_path):
        for name, content in (("a", b"{}"), ("b", b"{")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "m.json").write_bytes(content)
        (found,) = differences(tmp_path / "a", tmp_path / "b")
        assert found.place == "m.json"
        assert found.what.startswith("the bytes differ, and cannot be read (Expecting property name")


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "free"), [("1", set()), ("2", {"train@1", "train@2"})])
def test_every_stage_gives_its_bytes_again(finished, threads, free):
    """The run was one of one thread. On two training adds up in another order; the others do not care."""
    environment = finished.environment | {"OMP_NUM_THREADS": threads}
    command = ["deepcluster", "verify", "--json"]
    done = subprocess.run(command, cwd=finished.root, env=environment, capture_output=True, text=True)
    found = {verdict["stage"]: verdict["outcome"] for verdict in json.loads(done.stdout)}
    assert len(found) == 12
    assert {stage for stage, outcome in found.items() if outcome != "same"} <= free, done.stdout
    assert done.returncode == (0 if set(found.values()) == {"same"} else 1)
