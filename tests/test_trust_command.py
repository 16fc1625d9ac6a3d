"""`deepcluster trust`, metrics.json's section trust, and what they refuse."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGES, edit_params, write_images

from deepcluster import artifacts, layout
from deepcluster.evaluation.trust_runs import open_run

LABEL_FREE = ("view_agreement", "silhouette", "half_stability", "drift")


def replace_targets(change):
    """Write data/dataset/targets.zarr anew, with targets that `change` makes; None takes them away."""
    images = artifacts.open_store(layout.IMAGES, "images", made_by="")
    old = artifacts.open_store(layout.TARGETS, "targets", made_by="")
    targets_N = old.read("targets") if change is None else change(old.read("targets"))
    provenance = artifacts.Provenance(images.samples, images.ids, None, old.attributes.get("seed"), {})
    extra = {"labelled": change is not None, "class_names": old.attributes["class_names"]}
    with artifacts.write_store(layout.TARGETS, "targets", provenance, **extra) as store:
        store.array("targets", targets_N, ("sample",))


def read(name="trust"):
    return json.loads(Path(f"data/trust/{name}.json").read_text())


def copies(workspace, *names):
    for name in names:
        shutil.copytree(workspace.root, workspace.root / name, ignore=shutil.ignore_patterns(*names))


class TestEpochs:
    def test_table_choice_and_files(self, workspace, outcome):
        before = workspace.digests("data/epochs", "data/history", "data/evaluation", "data/dataset")
        status, out, err = outcome("trust")
        assert status == 0, err
        assert "trust: 2 epochs" in err
        assert out.split()[:2] == ["epoch", "consensus"]
        content = read()
        assert (content["k"], content["restarts"], [row["epoch"] for row in content["rows"]]) == (2, 1, [1, 2])
        scores = [row["score"] for row in content["rows"]]
        assert content["preferred"] == (2 if scores[1] >= scores[0] else 1)
        assert f"\nPreferred: epoch {content['preferred']}, by the mean rank of consensus and view_agreement\n" in out
        assert "\nThe true labels had no part in the choice. By them, looked up afterwards:\naccuracy " in out
        assert out.endswith("\nTables: data/trust/trust.csv, .json\n")
        with open("data/trust/trust.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["score"]) for row in rows] == scores
        assert [float(row["accuracy"]) for row in rows] == content["true_labels"]["accuracy"]
        assert workspace.digests("data/epochs", "data/history", "data/evaluation", "data/dataset") == before

    def test_the_last_epoch_is_what_evaluate_reports(self, workspace, outcome):
        assert outcome("evaluate")[0] == 0
        assert outcome("trust", "--epochs", "2")[0] == 0
        metrics = json.loads(Path("data/evaluation/metrics.json").read_text())
        assert read()["true_labels"]["accuracy"] == [metrics["final"]["accuracy"]]

    def test_the_last_epoch_has_the_measures_of_metrics_json(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"evaluate.k": 7})  # more than there is to find: no two halves agree
        assert outcome("evaluate")[0] == 0
        assert outcome("trust", "--epochs", "2")[0] == 0
        section = json.loads(Path("data/evaluation/metrics.json").read_text())["trust"]
        assert section["images"] == IMAGES
        assert 0 < section["half_stability"] < 0.9
        assert {name: section[name] for name in LABEL_FREE} == {name: read()["rows"][0][name] for name in LABEL_FREE}

    def test_second_run_same_bytes_and_json(self, workspace, outcome):
        status, out, err = outcome("trust", "--epochs", " 2,1 ", "--json", "--out", "else where")
        assert status == 0, err
        assert out == Path("else where/trust.json").read_text()
        assert outcome("trust", "--epochs", "1,2", "--json", "--out", "else where")[1] == out

    def test_the_true_labels_have_no_part_in_the_choice(self, workspace, outcome):
        contents = []
        for change in (lambda targets_N: targets_N, lambda targets_N: np.arange(IMAGES) % 2, None):
            replace_targets(change)
            status, out, err = outcome("trust", "--restarts", "2")
            assert status == 0, err
            contents.append(read())
        truths = [content.pop("true_labels") for content in contents]
        assert contents[0] == contents[1] == contents[2]
        assert truths[0]["accuracy"] != truths[1]["accuracy"]
        assert truths[2] is None
        assert "No true labels: nothing says how far this can be relied on here\n" in out
        assert "accuracy" not in out

    def test_the_true_labels_are_read_when_the_choice_is_made(self, workspace, outcome, monkeypatch):
        from deepcluster import trust
        from deepcluster.evaluation.trust_runs import Run

        events = []
        choose, read_targets = trust.preferred, Run.targets
        monkeypatch.setattr(trust, "preferred", lambda scores: events.append("choice") or choose(scores))
        monkeypatch.setattr(Run, "targets", lambda run: events.append("true labels") or read_targets(run))
        assert outcome("trust")[0] == 0
        assert events == ["choice", "true labels"]

    def test_the_untrained_backbone_and_one_epoch(self, workspace, outcome):
        status, out, err = outcome("trust", "--epochs", "0")
        assert status == 0, err
        assert "\nOne epoch alone: nothing to choose from\n" in out
        assert read()["rows"][0]["drift"] is None

    def test_features_come_from_the_dump_or_the_checkpoint(self, workspace, outcome):
        assert outcome("trust", "--epochs", "1")[0] == 0
        with_dump = read()
        shutil.rmtree(layout.features(2))
        assert outcome("trust", "--epochs", "1")[0] == 0
        assert read() == with_dump

    def test_a_dump_in_bfloat16_is_not_taken(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"extract.precision": "bf16"})
        assert outcome("trust", "--epochs", "1")[0] == 0
        expected = read()
        assert outcome("extract", "--epoch", "2")[0] == 0
        assert outcome("trust", "--epochs", "1")[0] == 0
        assert read() == expected

    def test_collapsed_features_are_not_trusted(self, workspace, outcome):
        store = artifacts.open_store(layout.features(2), "features", made_by="")
        provenance = artifacts.Provenance(IMAGES, store.ids, 2, 1, dict(store.attributes["params"]))
        with artifacts.write_store(layout.features(2), "features", provenance) as target:
            target.array("features", np.ones(store.shape("features"), np.float32), ("sample", "feature"))
        status, _, err = outcome("trust")
        assert status == 0, err
        first, second = read()["rows"]
        assert [first[name] for name in ("view_agreement", "silhouette", "half_stability", "margin")] == [None] * 4
        assert first["consensus"] is second["consensus"] is None
        assert (first["score"], second["score"], read()["preferred"]) == (0.25, 0.75, 2)

    @pytest.mark.parametrize("text", ["", "x", "1;2", "1,", "-1", "1.5"])
    def test_bad_epochs(self, workspace, outcome, text):
        expected = f"error: --epochs: must be all, or whole numbers with commas between, as in 5,10,20; got {text!r}\n"
        assert outcome("trust", "--epochs", text) == (2, "", expected)

    def test_epochs_that_were_not_run(self, workspace, outcome):
        assert outcome("trust", "--epochs", "1,3,20") == (
            2,
            "",
            "error: --epochs: not run: 3, 20; there are 1 to 2\n",
        )
        shutil.rmtree("data/epochs/1")
        assert outcome("trust", "--epochs", "1") == (2, "", "error: --epochs: not run: 1; there are 2\n")
        shutil.rmtree("data/epochs/2")
        expected = "error: data/epochs: no epoch has been trained; run `deepcluster run` first\n"
        assert outcome("trust") == (2, "", expected)
        assert not Path("data/trust").exists()

    def test_no_project_no_images_no_place(self, workspace, outcome, tmp_path, monkeypatch):
        Path("file").touch()
        assert outcome("trust", "--out", "file/x")[2].endswith(
            "error: --out: file/x cannot be written to: Not a directory\n"
        )
        shutil.rmtree(layout.IMAGES)
        expected = "error: data/dataset/images.zarr: not found; run `deepcluster run`\n"
        assert outcome("trust") == (2, "", expected)
        monkeypatch.chdir(tmp_path)
        expected = "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n"
        assert outcome("trust") == (2, "", expected)

    @pytest.mark.parametrize("k", [IMAGES, IMAGES + 5])
    def test_fewer_images_than_k_and_one(self, workspace, outcome, k):
        edit_params(Path("params.yaml"), {"evaluate.k": k})
        expected = f"error: data/dataset/images.zarr: trust needs more images than clusters; got {IMAGES}, k = {k}\n"
        assert outcome("trust") == (2, "", expected)

    def test_halves_too_small_for_k(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"evaluate.k": IMAGES - 2})
        status, out, err = outcome("trust")
        assert status == 0, err
        assert "half_stability" not in out.splitlines()[0]


class TestRuns:
    def test_the_same_run_twice(self, workspace, outcome):
        copies(workspace, "run a", "run b")
        status, out, err = outcome("trust", "--runs", "run a", "run b")
        assert status == 0, err
        first, second = read("runs")["rows"]
        assert (first.pop("run"), second.pop("run")) == ("run a", "run b")
        assert first == second
        assert (first["consensus"], first["score"], first["epoch"], read("runs")["preferred"]) == (1, 0.5, 2, "run b")
        assert "\nPreferred: run run b, by the mean rank of " in out
        assert out.splitlines()[0].split()[0] == "run"
        assert "neighbours" not in out.splitlines()[0]

    def test_another_seed_and_no_augmentation(self, workspace, outcome, monkeypatch):
        """The run trained without augmentation is shown the other's views, not its own images again."""
        copies(workspace, "still")
        still = {"rotation": 0.0, "translate": 0.0, "zoom": [1.0, 1.0], "shear": 0.0, "flip": False}
        monkeypatch.chdir("still")
        edit_params(Path("params.yaml"), {"seed": 7, **{f"augment.{key}": value for key, value in still.items()}})
        for command in ("train", "evaluate"):
            status, _, err = outcome(command, *(["--epoch", "2"] if command == "train" else []))
            assert status == 0, err
        assert json.loads((layout.EVALUATION / "metrics.json").read_text())["trust"]["view_agreement"] is None
        monkeypatch.chdir(workspace.root)
        status, _, err = outcome("trust", "--runs", ".", "still")
        assert status == 0, err
        rows = read("runs")["rows"]
        assert rows[1]["view_agreement"] is not None
        assert rows[1]["view_cosine"] < 1
        alone = open_run(Path("still"))
        assert alone.augmentation(2).rotation == 0
        assert alone.augmentation(1).rotation > 0

    def test_folders_without_runs_and_too_few(self, workspace, outcome):
        copies(workspace, "a")
        expected = "error: trust: folders are for --runs, as in `deepcluster trust --runs A B`; got a\n"
        assert outcome("trust", "a") == (2, "", expected)
        for given, shown in (([], "none"), (["a"], "a"), (["a", "./a"], "a, a"), (["a", "b/../a"], "a, b/../a")):
            expected = f"error: --runs: needs the folders of two runs or more, each once; got {shown}\n"
            assert outcome("trust", "--runs", *given) == (2, "", expected)
        expected = "error: --epochs: not with --runs, which compares each run's last epoch\n"
        assert outcome("trust", "--runs", "--epochs", "1", "a", ".") == (2, "", expected)

    def test_unfinished_missing_and_unlike_runs(self, workspace, outcome, monkeypatch):
        copies(workspace, "a", "b")
        expected = "error: c/params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n"
        assert outcome("trust", "--runs", "a", "c") == (2, "", expected)
        edit_params(Path("b/params.yaml"), {"evaluate.k": 3})
        expected = (
            "error: --runs: final clusterings of 2 clusters in a and of 3 in b do not compare; "
            "set evaluate.k to the same\n"
        )
        assert outcome("trust", "--runs", "a", "b") == (2, "", expected)
        shutil.rmtree("b/data/epochs/2")
        expected = "error: --runs: b: not finished: params.yaml has 2 epochs, data/epochs epochs 1\n"
        assert outcome("trust", "--runs", "a", "b") == (2, "", expected)
        shutil.rmtree("b/data/epochs/1")
        expected = "error: --runs: b: not finished: params.yaml has 2 epochs, data/epochs no trained epoch\n"
        assert outcome("trust", "--runs", "a", "b") == (2, "", expected)

    def test_other_images(self, workspace, outcome, monkeypatch, tmp_path):
        copies(workspace, "a", "b")
        write_images(tmp_path / "others", count=IMAGES - 2)
        monkeypatch.chdir("b")
        edit_params(Path("params.yaml"), {"data.root": str(tmp_path / "others")})
        assert outcome("prepare")[0] == 0
        monkeypatch.chdir(workspace.root)
        expected = "error: --runs: b: its images are not those of a (their ids differ)\n"
        assert outcome("trust", "--runs", "a", "b") == (2, "", expected)


class TestReported:
    def test_evaluate_and_summary(self, workspace, outcome):
        assert outcome("evaluate")[0] == 0
        section = json.loads(Path("data/evaluation/metrics.json").read_text())["trust"]
        assert list(section) == ["images", *LABEL_FREE]
        assert section["images"] == IMAGES
        assert outcome("trust", "--epochs", "2")[0] == 0
        (row,) = read()["rows"]
        for name in ("view_agreement", "silhouette", "drift"):  # all images are in the sample
            assert section[name] == pytest.approx(row[name], abs=1e-6), name
        line = ", ".join(f"{name.replace('_', ' ')} {section[name]:.4f}" for name in LABEL_FREE)
        assert f"\nWithout labels ({IMAGES} images): {line}\n" in outcome("summary")[1]

    def test_a_sample_of_many_images(self, workspace, outcome, monkeypatch):
        monkeypatch.setattr("deepcluster.evaluation.trust_runs.SECTION_ROWS", 20)
        monkeypatch.setattr("deepcluster.evaluation.trust_runs.VIEWED", 15)
        assert outcome("evaluate")[0] == 0
        section = json.loads(Path("data/evaluation/metrics.json").read_text())["trust"]
        assert section["images"] == 20
        assert section["view_agreement"] * 15 == pytest.approx(round(section["view_agreement"] * 15))

    def test_a_summary_of_before(self, workspace, outcome):
        path = layout.EVALUATION / "metrics.json"
        content = artifacts.read_json(path, made_by="evaluate")
        content.pop("trust", None)
        artifacts.write_json(path, content)
        status, out, err = outcome("summary")
        assert status == 0, err
        assert "Without labels" not in out
