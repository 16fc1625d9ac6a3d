"""Test images from the data set's files to metrics.json: what is held out, what is refused, what is scored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHECKOUT, TINY, edit_params, write_images
from dataset_files import noise, offline, write_idx
from PIL import Image

from deepcluster import artifacts, layout
from deepcluster.blockwise import l2_normalize
from deepcluster.checkpoint import load_checkpoint
from deepcluster.datasets.held_out import test_split_of as split_of
from deepcluster.errors import DataError
from deepcluster.evaluation import measures
from deepcluster.features import extract_features
from deepcluster.headline import headline
from deepcluster.inspection.held_out import tables
from deepcluster.params.sections import Evaluate

__all__ = ["offline"]
pytestmark = pytest.mark.usefixtures("offline")
SECTIONS = {"held_out", "many_to_one", "test", "knn", "probe", "retrieval", "overclustering"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the shipped params.yaml, as current folder."""
    shutil.copyfile(CHECKOUT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    return tmp_path


@pytest.fixture
def run(folder, outcome):
    """Runs one of `deepcluster`'s commands, which must succeed; what it prints."""

    def command(*arguments: str) -> str:
        status, out, err = outcome(*arguments)
        assert status == 0, err
        return out

    return command


def images(path: Path = layout.TEST_IMAGES) -> artifacts.Store:
    return artifacts.open_store(path, "images" if path == layout.IMAGES else "test_images", made_by="prepare")


def targets(path: Path = layout.TEST_TARGETS) -> artifacts.Store:
    return artifacts.open_store(path, "targets", made_by="prepare")


def tiny(**changes: object) -> None:
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    edit_params(Path("params.yaml"), TINY | {"epochs": 1} | settings)


def write_mnist(root: Path, *splits: str) -> None:
    for place, split in enumerate(splits):
        count = (30, 12)[place]
        write_idx(root, split, noise(count, 28, 28, seed=place), (np.arange(count) % 10).astype(np.uint8))


class TestPrepare:
    def test_the_own_test_split_is_kept_apart_and_changes_no_training_image(self, run):
        write_mnist(Path("files"), "train", "test")
        tiny(data__name="mnist", data__root="files", data__image_size=None)
        assert run("prepare").splitlines() == [
            "30 images of 28x28, 1 channels; 0 files skipped",
            "12 test images (test), for evaluate alone; 0 skipped",
        ]
        np.testing.assert_array_equal(images().read("images"), noise(12, 28, 28, seed=1)[:, None])
        assert targets().read("targets").tolist() == [*range(10), 0, 1]
        assert images().attributes["split"] == "test"
        before = {path: path.read_bytes() for path in layout.IMAGES.rglob("*") if path.is_file()}
        tiny(data__name="mnist", data__root="files", data__image_size=None, data__test_split="none")
        assert run("prepare") == "30 images of 28x28, 1 channels; 0 files skipped\n"
        assert images().shape("images") == (0, 1, 28, 28)
        assert (targets().shape("targets"), targets().attributes["labelled"]) == ((0,), False)
        assert {path: path.read_bytes() for path in layout.IMAGES.rglob("*") if path.is_file()} == before

    def test_one_that_cannot_be_had_is_said_unless_it_was_asked_for(self, run, outcome):
        write_mnist(Path("files"), "train")
        tiny(data__name="mnist", data__root="files")
        first, second = run("prepare").splitlines()
        assert first.startswith("no test images: mnist is not in files and could not be downloaded (")
        assert first.endswith("; data.test_split: none leaves them out without a word")
        assert second == "30 images of 8x8, 1 channels; 0 files skipped"
        assert images().shape("images") == (0, 1, 8, 8)
        tiny(data__name="mnist", data__root="files", data__test_split="test")
        status, out, err = outcome("prepare")
        assert (status, out) == (2, "")
        assert "error: mnist is not in files and could not be downloaded" in err

    def test_a_folder_has_one_only_when_it_is_named(self, run):
        write_images(Path("files/train"), count=8)
        write_images(Path("files/val"), count=6)
        tiny(data__root="files")
        assert run("prepare") == "8 images of 8x8, 1 channels; 0 files skipped\n"
        tiny(data__root="files", data__test_split="val")
        assert run("prepare").endswith("\n6 test images (val), for evaluate alone; 0 skipped\n")
        assert images().strings("sample_ids")[0] == "val/above/000.png"

    def test_classes_are_those_of_the_training_images_by_name(self, run):
        for name, split in (("a", "train"), ("b", "train"), ("c", "train"), ("b", "val"), ("c", "val")):
            place = Path("files") / split / name
            place.mkdir(parents=True)
            Image.fromarray(noise(8, 8)).save(place / "1.png")
        tiny(data__root="files", data__test_split="val")
        run("prepare")
        assert targets().read("targets").tolist() == [1, 2]
        assert targets().attributes["class_names"] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("case", "expected"),
        [
            ("unknown class", "has classes that the training images do not have: other"),
            (
                "flat",
                "its images have no true labels (two or more subfolders, one a class), and the training images do",
            ),
            ("size", "training and test images differ in shape, 1x8x8 and 1x9x9; set data.image_size"),
        ],
    )
    def test_refused(self, run, outcome, case, expected):
        write_images(Path("files/train"), count=8)
        write_images(Path("files/val"), count=4)
        if case == "unknown class":
            Path("files/val/left").rename("files/val/other")
        for path in list(Path("files/val").rglob("*.png")):
            if case == "flat":
                path.rename(Path("files/val") / path.name)
            if case == "size":
                Image.fromarray(noise(9, 9)).save(path)
        tiny(data__root="files", data__test_split="val", data__image_size=None if case == "size" else 8)
        status, out, err = outcome("prepare")
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == f"error: data.test_split: {expected}"
        assert not layout.IMAGES.exists()

    def test_the_split_that_is_trained_on(self, outcome, folder):
        tiny(data__name="mnist", data__split="test", data__test_split="test")
        expected = "must differ from data.split, which is trained on; got 'test' for both"
        assert outcome("prepare") == (2, "", f"error: params.yaml: data.test_split: {expected}\n")


class TestSplitOf:
    @pytest.mark.parametrize(
        ("name", "split", "wanted", "found"),
        [
            ("mnist", "train", None, "test"),
            ("mnist", "test", None, None),
            ("mnist", "test", "train", "train"),
            ("mnist", "train", "none", None),
            ("tinyimagenet", "train", None, "val"),
            ("stl10", "train+unlabeled", None, None),
            ("stl10", "unlabeled", "test", "test"),
            ("digits", "train", None, None),
            ("folder", "train", None, None),
        ],
    )
    def test_own_and_named(self, tmp_path, name, split, wanted, found):
        assert split_of(name, root=tmp_path, split=split, test_split=wanted) == found

    def test_of_digits_there_is_none(self, tmp_path):
        with pytest.raises(DataError, match="digits has no split beside its 1,797 images; got 'test'"):
            split_of("digits", root=tmp_path, split="train", test_split="test")

    def test_parts_of_a_joined_split(self, tmp_path):
        with pytest.raises(DataError, match=r"'train' has images of data\.split 'train\+unlabeled', which is trained"):
            split_of("stl10", root=tmp_path, split="train+unlabeled", test_split="train")

    def test_a_folder_read_whole_would_be_trained_on(self, tmp_path):
        (tmp_path / "val").mkdir()
        with pytest.raises(DataError, match=r"data\.split 'train' reads the whole of .*, and so trains on 'val' too"):
            split_of("folder", root=tmp_path, split="train", test_split="val")
        with pytest.raises(DataError, match=r"must be a subfolder of .*; got 'all'"):
            split_of("folder", root=tmp_path, split="train", test_split="all")


def accuracy_of_nearest_centroids() -> float:
    """Of the test images, by numpy, from the published centroids and the checkpoint."""
    train, test = images(layout.IMAGES), images()
    backbone = load_checkpoint(layout.checkpoint(1), made_by="", ids=train.ids, epoch=1).backbone
    normal = {"mean": train.attributes["mean"], "std": train.attributes["std"]}
    blocks = extract_features(backbone, test.read("images"), batch_size=512, device=torch.device("cpu"), **normal)
    rows = l2_normalize(np.concatenate(list(blocks)))
    final = artifacts.open_store(layout.EVALUATION / "clusters.zarr", "final_clusters", made_by="")
    labels = ((rows[:, None].astype(np.float64) - final.read("centroids")) ** 2).sum(axis=2).argmin(axis=1)
    straight = (final.read("labels") == targets(layout.TARGETS).read("targets")).mean() >= 0.5
    return float(np.mean((labels if straight else 1 - labels) == targets().read("targets")))


class TestEvaluate:
    def everything(self, run, **changes: object) -> dict:
        tiny(**changes)
        run("prepare")
        run("initialise")
        for stage in ("extract", "pca", "cluster", "train"):
            run(stage, "--epoch", "1")
        self.said = run("evaluate")
        return json.loads((layout.EVALUATION / "metrics.json").read_text())

    def test_with_a_test_split(self, run, monkeypatch):
        monkeypatch.setattr("deepcluster.evaluation.probe.FEWEST_STEPS", 60)
        write_images(Path("files/train"), count=48)
        write_images(Path("files/val"), count=20, seed=5)
        metrics = self.everything(run, data__root="files", data__test_split="val", evaluate__probe="blocks")
        assert metrics.keys() >= SECTIONS
        assert self.said == "evaluate: no k-NN with k = 200: there are 48 images to vote\n"
        assert metrics["held_out"] == {"what": "the test split, which nothing was trained on", "images": 20}
        for name in SECTIONS - {"held_out"}:
            assert metrics[name]["baselines"].keys() == {"pixels", "untrained"}, name
        assert list(metrics["probe"]["final"]) == ["conv1", "conv2", "conv3", "conv4", "features"]
        assert list(metrics["probe"]["baselines"]["pixels"]) == ["features"]
        assert metrics["overclustering"]["k"] == 20
        scores = {"nmi", "ari", "accuracy", "many_to_one"}
        assert metrics["overclustering"]["final"].keys() == scores | {f"test_{name}" for name in scores}
        assert list(metrics["knn"]["final"]) == ["k20"]
        assert metrics["test"]["final"]["accuracy"] == accuracy_of_nearest_centroids()

        run("report")
        shown = run("summary")
        assert "\nHeld out: 20 images, the test split, which nothing was trained on\n" in shown
        assert "\nLinear probe of each block, accuracy on the held-out images\n" in shown
        assert "\nOver-clustering: the same features in 20 clusters\n" in shown
        page = layout.REPORT.read_text()
        assert [sentence for sentence, _ in tables(metrics) if f"<h3>{sentence}</h3>" not in page] == []
        names = {"test_nmi", "test_ari", "test_accuracy", "test_many_to_one", "knn_20", "probe", "map"}
        assert headline(metrics).keys() == names | {"nmi", "ari", "accuracy", "many_to_one", "over_many_to_one"}

    def test_without_one_a_fifth_is_scored(self, run, monkeypatch):
        monkeypatch.setattr("deepcluster.evaluation.probe.FEWEST_STEPS", 60)
        write_images(Path("files"), count=48)
        metrics = self.everything(run, data__root="files")
        assert metrics["held_out"] == {
            "what": "a fifth of the images, which the backbone has seen without labels",
            "images": 10,
        }
        assert SECTIONS - metrics.keys() == {"test"}
        assert metrics["overclustering"]["final"].keys() == {"nmi", "ari", "accuracy", "many_to_one"}

    def test_nothing_where_nothing_is_asked_for(self, run):
        write_images(Path("files"), count=48)
        off = {"knn": [], "probe": "none", "retrieval": False, "overclustering": 0}
        metrics = self.everything(run, data__root="files", **{f"evaluate__{key}": value for key, value in off.items()})
        assert metrics.keys() & SECTIONS == {"held_out", "many_to_one"}
        assert tables(metrics) == []

    def test_test_images_of_other_training_images(self, run, outcome):
        write_images(Path("files"), count=48)
        self.everything(run, data__root="files", evaluate__probe="none")
        kept = Path("kept.zarr")
        layout.TEST_IMAGES.rename(kept)
        write_images(Path("others"), count=20)
        tiny(data__root="others")
        run("prepare")
        shutil.rmtree(layout.IMAGES)
        shutil.rmtree(layout.TARGETS)
        others = layout.TEST_IMAGES.rename(Path("others.zarr"))
        kept.rename(layout.TEST_IMAGES)
        tiny(data__root="files")
        run("prepare")
        shutil.rmtree(layout.TEST_IMAGES)
        others.rename(layout.TEST_IMAGES)
        status, _, err = outcome("evaluate")
        message = "data/dataset/test.zarr: belongs to other training images; run `dvc repro prepare`"
        assert (status, err) == (2, f"error: {message}\n")


class TestTruth:
    def judge(self, values, **settings: object):
        return measures.truth(
            np.array(values),
            None,
            classes=3,
            settings=Evaluate(**settings),
            seed=1,
            device=torch.device("cpu"),
            gpu=False,
        )

    def test_one_class_only_is_said(self, capsys):
        assert self.judge([2, 2, 2]) is None
        assert capsys.readouterr().out == (
            "evaluate: all images are of one class: no k-NN, probe, retrieval, over-clustering and test scores\n"
        )

    def test_one_image_a_class_is_said(self, capsys):
        assert self.judge([0, 1, 2]) is None
        assert capsys.readouterr().out == (
            "evaluate: one image a class, so none can be held out: no k-NN, probe, retrieval and over-clustering\n"
        )

    def test_what_cannot_be_had_is_said(self, capsys):
        found = self.judge([0, 1, 2] * 5, knn=(3, 13), overclustering=10)
        assert found is not None
        assert found.overclusters is None
        assert capsys.readouterr().out.splitlines() == [
            "evaluate: no k-NN with k = 13: there are 12 images to vote",
            "evaluate: no over-clustering: 30 clusters of 15 images",
        ]
