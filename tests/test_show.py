"""`deepcluster show`: every artifact, on a terminal, in a pipe and as JSON; in the workspace and in a revision."""

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import IMAGES, Project
from ruamel.yaml import YAML

from deepcluster import artifacts, layout
from deepcluster.artifacts import provenance as provenance_module
from deepcluster.console import Bars, Listing, Pairs, bytes_text, number_text, print_blocks
from deepcluster.errors import in_ranges
from deepcluster.inspection.tables import Cells
from deepcluster.origins import dvc_md5
from deepcluster.show.render import _sizes

ALL = ("dataset", "features", "pca", "clusters", "checkpoint")


def shown(outcome, *arguments):
    status, out, err = outcome("show", *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def here(finished, monkeypatch):
    """The finished run as current folder, which nothing may change."""
    monkeypatch.chdir(finished.root)
    for name, value in finished.environment.items():
        if name.startswith(("DVC", "GIT")):
            monkeypatch.setenv(name, value)
    return finished


@pytest.fixture
def versioned(project, monkeypatch):
    """A copy of the finished run, committed, as current folder."""
    project.commit("a run")
    monkeypatch.chdir(project.root)
    for name, value in project.environment.items():
        if name.startswith(("DVC", "GIT")):
            monkeypatch.setenv(name, value)
    return project


class TestContent:
    def test_features_are_what_plain_zarr_and_numpy_say(self, here, outcome):
        found = shown(outcome, "features", "--epoch", "2")
        group = zarr.open("data/epochs/2/features.zarr", mode="r")
        features_ND = group["features"][:].astype(np.float64)
        (array,) = found["arrays"]
        assert array["shape"] == list(features_ND.shape)
        assert (array["dtype"], array["dimensions"]) == ("float32", ["sample", "feature"])
        assert array["chunks"] == list(group["features"].chunks)
        assert array["shards"] == list(group["features"].shards)
        assert array["codecs"] == ["bytes", "crc32c"]
        files = [path for path in Path("data/epochs/2/features.zarr").rglob("*") if path.is_file()]
        assert (found["files"], found["bytes"]) == (len(files), sum(path.stat().st_size for path in files))
        assert array["raw_bytes"] == features_ND.size * 4
        assert array["stored_bytes"] == sum(path.stat().st_size for path in files if "features/" in str(path)[20:])
        statistics = found["statistics"]
        assert statistics["norms"]["mean"] == pytest.approx(np.linalg.norm(features_ND, axis=1).mean())
        assert statistics["dead"] == np.flatnonzero((features_ND == 0).all(axis=0)).tolist()
        assert statistics["nan"] == 0
        assert {key: found["provenance"][key] for key in ("seed", "epoch", "samples", "params")} == {
            key: group.attrs[key] for key in ("seed", "epoch", "samples", "params")
        }

    def test_parents_and_hash_are_those_of_dvc_lock(self, here, outcome):
        lock = YAML(typ="safe").load(Path("dvc.lock"))["stages"]["cluster@2"]
        found = shown(outcome, "clusters", "--epoch", "2")
        assert found["md5"] == lock["outs"][0]["md5"]
        assert found["lock"]["stage"] == "cluster@2"
        expected = {dep["path"]: dep["md5"] for dep in lock["deps"] if dep["path"].startswith("data/")}
        assert found["lock"]["parents"] == expected
        assert sorted(expected) == ["data/epochs/2/pca.zarr", "data/history/1/clusters.zarr"]

    def test_every_output_of_dvc_lock_has_the_hash_that_we_compute(self, here):
        outs = [out for stage in YAML(typ="safe").load(Path("dvc.lock"))["stages"].values() for out in stage["outs"]]
        assert {out["path"]: out["md5"] for out in outs} == {out["path"]: dvc_md5(Path(out["path"])) for out in outs}

    def test_an_artifact_that_dvc_lock_does_not_know_has_no_parents(self, workspace, finished, outcome):
        assert shown(outcome, "pca")["lock"] is None  # no dvc.lock there
        shutil.copyfile(finished.root / "dvc.lock", "dvc.lock")
        assert shown(outcome, "pca")["lock"]["stage"] == "pca@2"
        shutil.rmtree("data/epochs/2/pca.zarr")
        provenance = artifacts.Provenance(IMAGES, "ids", epoch=2, seed=1)
        with artifacts.write_store(layout.pca(2), "pca", provenance) as store:
            store.array("reduced", np.eye(4, dtype=np.float32), ("sample", "component"))
        assert shown(outcome, "pca")["lock"] is None
        assert "dvc.lock does not know this artifact" in outcome("show", "pca")[1]

    def test_pca(self, here, outcome):
        found = shown(outcome, "pca", "-e", "1")["statistics"]
        ratio = zarr.open("data/epochs/1/pca.zarr", mode="r")["explained_variance_ratio"][:].astype(np.float64)
        explained = found["explained_variance"]
        assert explained["ratio"] == pytest.approx(ratio)
        assert explained["kept"] == pytest.approx(ratio.sum())
        needed = explained["components_for"]
        assert needed["50%"] == int(np.searchsorted(np.cumsum(ratio), 0.5)) + 1
        assert found["norms"]["min"] == pytest.approx(1, abs=1e-6)

    def test_clusters(self, here, outcome):
        found = shown(outcome, "clusters")
        assert found["epoch"] == 2
        group = zarr.open("data/history/2/clusters.zarr", mode="r")
        labels, distances = group["labels"][:], group["distances"][:]
        assert found["statistics"]["sizes"] == np.bincount(labels, minlength=4).tolist()
        means = [distances[labels == cluster].mean() for cluster in range(4)]
        assert found["statistics"]["mean_squared_distances"] == pytest.approx(means, rel=1e-5)
        assert found["statistics"]["health"] == group.attrs["health"]

    def test_dataset_counts_the_classes_and_checkpoint_the_change(self, here, outcome):
        found = shown(outcome, "dataset")["statistics"]
        assert found["classes"] == {"above": IMAGES // 2, "left": IMAGES // 2}
        assert found["images"]["mean"] == pytest.approx(found["recorded"]["mean"])
        first, trained = (shown(outcome, "checkpoint", "--epoch", str(epoch))["statistics"] for epoch in (0, 1))
        assert (first["compared_with"], trained["compared_with"]) == (None, 0)
        assert all(layer["change"] is None for layer in first["layers"])
        assert all(layer["change"] > 0 for layer in trained["layers"])
        assert first["parameters"] == trained["parameters"] == sum(layer["parameters"] for layer in first["layers"])

    def test_a_checkpoint_with_averaged_weights_and_a_bank(self, workspace, outcome):
        files = artifacts.read_checkpoint(layout.checkpoint(2), made_by="")
        provenance = artifacts.Provenance(IMAGES, files.description["ids"], 2, 1, files.description["params"])
        more = replace(files, average=files.weights, bank=np.ones((IMAGES, 3), np.float32))
        artifacts.write_checkpoint(layout.checkpoint(2), more, provenance)
        found = shown(outcome, "checkpoint")
        counts = {"model": len(files.weights), "optimizer": len(files.optimizer), "heads": 0}
        assert found["statistics"]["tensors"] == counts | {"average": len(files.weights), "bank": 1}
        (bank,) = [array for array in found["arrays"] if array["name"] == "bank: bank"]
        assert (bank["shape"], bank["dtype"], bank["raw_bytes"]) == ([IMAGES, 3], "float32", IMAGES * 12)
        expected = f"0 heads, {len(files.weights)} averaged weights, 1 bank of projections\n"
        assert expected in outcome("show", "checkpoint")[1]

    def test_without_targets(self, workspace, outcome):
        shutil.rmtree(layout.TARGETS)
        assert shown(outcome, "dataset")["statistics"]["classes"] is None
        assert "none: the data set has no true labels" in outcome("show", "dataset")[1]


class TestPrinted:
    @pytest.mark.parametrize("what", ALL)
    def test_a_pipe_gets_plain_text(self, here, outcome, what):
        status, out, err = outcome("show", what)
        assert (status, err) == (0, "")
        assert all(line.isprintable() and line == line.rstrip() for line in out.splitlines())
        assert out.splitlines()[0].startswith(f"{what}")
        assert "Provenance" in out
        assert "\n  stage" in out

    def test_bars_of_the_clusters(self, here, outcome):
        out = outcome("show", "clusters")[1]
        sizes = shown(outcome, "clusters")["statistics"]["sizes"]
        bars = dict(re.findall(r"^ +(\d) +\d+ +(█+)$", out, flags=re.MULTILINE))
        assert {int(name): len(bar) for name, bar in bars.items()} == {
            cluster: round(40 * size / max(sizes)) for cluster, size in enumerate(sizes)
        }

    def test_many_clusters_are_a_histogram(self):
        sizes = dict(enumerate([1] * 50 + [9] * 30 + [41]))
        found = _sizes("Images", {str(name): size for name, size in sizes.items()})
        assert found.title == "Images: how many of 81 have so many"
        assert [(name, text) for name, value, text in found.rows if value] == [
            ("1 to 3", "50"),
            ("7 to 9", "30"),
            ("40 to 42", "1"),
        ]

    def test_names_cannot_move_the_cursor(self):
        file = io.StringIO()
        print_blocks(
            [Pairs("a\x1b[2Jb", [("ids", "x\ny\x07 [red]z[/red]")]), Bars("", [("\x1b[1m", 1, "1")])], file=file
        )
        assert "\x1b" not in file.getvalue()
        assert "[red]z[/red]" in file.getvalue()

    def test_on_a_terminal_in_colour_and_the_same_words(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        blocks = [
            Pairs("Title", [("name", "[b]value")]),
            Bars("Bars", [("x", 2, "2"), ("y", 0.01, "0.01"), ("z", 0, "0")]),
        ]
        blocks.append(Listing("Table", Cells(["epoch", "k"], [["1", "30"]])))
        terminal, plain = Terminal(), io.StringIO()
        os.environ.pop("NO_COLOR", None)
        print_blocks(blocks, file=terminal, width=120)
        print_blocks(blocks, file=plain, width=120)
        assert "\x1b[" in terminal.getvalue()
        bare = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
        assert plain.getvalue().split() == [w for w in bare.split() if not set(w) <= {"─", "━"}]
        assert re.search(r"x +2 +█{40}\n", bare)
        assert re.search(r"y +0\.01 +█\n", bare)

    def test_an_encoding_without_blocks(self):
        file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        print_blocks([Bars("ü", [("x", 1, "1")])], file=file)
        file.flush()
        assert file.buffer.getvalue() == b"?\n  x  1  " + b"#" * 40 + b"\n"

    @pytest.mark.parametrize(
        ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3e12, "3.0 TB")]
    )
    def test_bytes(self, count, text):
        assert bytes_text(count) == text

    def test_numbers(self):
        assert [number_text(value) for value in (None, 12345, 0.123456, 1e-9)] == ["-", "12,345", "0.1235", "1e-09"]
        assert [in_ranges(found) for found in ([], [4], [1, 2, 3, 5, 7, 8])] == ["", "4", "1 to 3, 5, 7 to 8"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("features", "--epoch", "9"), "--epoch: must be one that was run (1 to 2); got 9"),
            (
                ("checkpoint", "--epoch", "9"),
                "--epoch: must be one that was run (0 to 2; 0 is the untrained backbone); got 9",
            ),
            (
                ("pca", "--epoch", "0"),
                "--epoch: must be >= 1 (epoch 0 is the untrained backbone, which has no pca; `show checkpoint` takes "
                "it); got 0",
            ),
            (("dataset", "--epoch", "1"), "--epoch: the data set belongs to no epoch; leave it out"),
            (("pca", "--rev", "nope"), "nope: not a revision of this project: unknown Git revision 'nope'"),
            (("pca", "--rev", "HEAD"), "HEAD: no dvc.lock there, so nothing was run; commit it with git after a run"),
        ],
    )
    def test_in_one_line(self, here, outcome, arguments, message):
        assert outcome("show", *arguments) == (2, "", f"error: {message}\n")

    def test_nothing_was_run(self, workspace, outcome):
        shutil.rmtree("data")
        message = "error: no epoch has pca.zarr yet; `deepcluster run` makes them\n"
        assert outcome("show", "pca") == (2, "", message)
        message = "error: data/dataset/images.zarr: not found; run `deepcluster run`\n"
        assert outcome("show", "dataset") == (2, "", message)

    def test_not_in_a_project(self, tmp_path, monkeypatch, outcome):
        monkeypatch.chdir(tmp_path)
        message = "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n"
        assert outcome("show", "pca") == (2, "", message)
        Path("params.yaml").touch()
        status, _, err = outcome("show", "pca", "--rev", "HEAD")
        assert status == 2
        assert err.startswith("error: HEAD: not a revision of this project: ")
        assert err.endswith("is not a git repository\n")

    def test_a_project_below_the_top_of_its_repository(self, workspace, outcome, tmp_path):
        Project(tmp_path, workspace.environment).run("git", "init", "--quiet")
        Project(tmp_path, workspace.environment).commit("all")
        message = "error: HEAD: revisions are read only where the project is the top folder of its git repository\n"
        assert outcome("show", "pca", "--rev", "HEAD") == (2, "", message)

    @pytest.mark.parametrize(("what", "stage"), [("features", "extract@2"), ("checkpoint", "train@2")])
    def test_an_artifact_of_another_version_names_its_writer_and_the_remedy(
        self, workspace, outcome, monkeypatch, what, stage
    ):
        known = provenance_module.version_of(what)
        monkeypatch.setitem(provenance_module.VERSIONS, what, 9)
        path = layout.features(2) if what == "features" else layout.checkpoint(2)
        message = (
            f"error: {path}: version: expected 9, got {known} (written by deepcluster 0.1.0); make it anew with "
            f"`dvc repro -f {stage}`, or read it with the code that wrote it\n"
        )
        assert outcome("show", what) == (2, "", message)

    def test_a_damaged_artifact(self, workspace, outcome):
        (layout.features(2) / "features/c/0/0").write_bytes(b"")
        status, out, err = outcome("show", "features")
        assert (status, out) == (2, "")
        assert err.startswith("error: data/epochs/2/features.zarr/features/c/0/0: damaged (")


class TestRevision:
    def test_it_is_read_from_the_cache_whatever_the_workspace_holds(self, versioned, outcome):
        before = {what: shown(outcome, what) for what in ALL}
        shutil.rmtree("data")
        Path("dvc.lock").unlink()
        for what in ALL:
            assert shown(outcome, what, "--rev", "HEAD") == before[what] | {"revision": "HEAD"}
        assert not Path("data").exists()
        assert list(Path(".dvc/tmp").glob("deepcluster-*")) == []
        message = "error: --epoch: must be one that was run at HEAD (1 to 2); got 7\n"
        assert outcome("show", "clusters", "--rev", "HEAD", "--epoch", "7") == (2, "", message)

    def test_a_missing_cache_says_what_to_fetch(self, versioned, outcome):
        message = (
            "error: HEAD: data/epochs/2/features.zarr: not in DVC's cache; run `dvc fetch --all-commits "
            "data/epochs/2/features.zarr` where a remote has it, else `dvc repro` with HEAD checked out\n"
        )
        cached = [path for path in Path(".dvc/cache").rglob("*") if path.is_file()]
        for gone in (
            [path for path in cached if path.suffix != ".dir"],
            [path for path in cached if path.suffix == ".dir"],
        ):
            for path in gone:
                path.unlink()
            assert outcome("show", "features", "--rev", "HEAD") == (2, "", message)

    def test_errors_name_the_place_in_the_revision(self, versioned, outcome, monkeypatch):
        monkeypatch.setitem(provenance_module.VERSIONS, "features", 9)
        status, _, err = outcome("show", "features", "--rev", "HEAD")
        assert status == 2
        assert err.startswith("error: HEAD: data/epochs/2/features.zarr: version: expected 9, got 1")
