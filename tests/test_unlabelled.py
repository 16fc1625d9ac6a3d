"""Images without true labels through every stage: what needs no targets is computed, reported and shown."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, TINY, edit_params
from dataset_files import noise, offline, write_stl10, write_tinyimagenet

from deepcluster import artifacts, layout
from deepcluster.evaluation.epochs import read_results

__all__ = ["offline"]
pytestmark = pytest.mark.usefixtures("offline")
EPOCH_STAGES = ("extract", "pca", "cluster", "train")
SCORES = {"nmi", "ari", "accuracy"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome):
    """Runs one of `deepcluster`'s commands in a fresh folder, which must succeed; what it prints."""
    shutil.copyfile(CHECKOUT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")

    def command(*arguments: str) -> str:
        status, out, err = outcome(*arguments)
        assert status == 0, err
        return out

    return command


def everything(run, **data: object) -> str:
    """All stages on the data set, two epochs; what `summary` prints."""
    keys = {f"data.{key}": value for key, value in data.items()}
    settings = TINY | keys | {"data.root": "files", "cluster.fail_on_collapse": False}  # noise has no clusters
    edit_params(Path("params.yaml"), settings)
    run("prepare")
    run("initialise")
    for epoch in ("1", "2"):
        for stage in EPOCH_STAGES:
            run(stage, "--epoch", epoch)
    run("evaluate")
    run("report")
    return run("summary")


@pytest.mark.parametrize("split", [pytest.param("unlabeled", marks=pytest.mark.slow), "train+unlabeled"])
def test_stl10(run, split: str) -> None:
    write_stl10(Path("files"), "train", noise(8, 3, 96, 96, seed=1))
    write_stl10(Path("files"), "unlabeled", noise(32, 3, 96, 96, seed=2))
    said = everything(run, name="stl10", split=split, image_size=8, grayscale=False)
    count = 32 if split == "unlabeled" else 40

    images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    assert images.shape("images") == (count, 3, 8, 8)
    truth = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare")
    assert (truth.attributes["labelled"], truth.attributes["class_names"]) == (False, None)
    assert truth.shape("targets") == (0,)

    rows, metrics = read_results()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {row[name] for row in rows for name in SCORES} == {None}
    assert rows[1]["nmi_previous"] is not None
    assert all(row["loss"] is not None and np.isfinite(row["loss"]) for row in rows)
    assert (metrics["final"], metrics["baselines"], metrics["k"]) == ({}, {}, TINY["cluster.k"])
    assert not {"held_out", "many_to_one", "test", "knn", "probe", "retrieval", "overclustering"} & metrics.keys()
    assert metrics["clusters"]["effective_k"] > 1
    assert set(json.loads((layout.EVALUATION / "metrics.json").read_text())["pseudo_labels"]) == {"epoch", "k", *SCORES}

    header, *_ = said.splitlines()
    assert header.split()[:3] == ["epoch", "nmi_previous", "loss"]
    assert f"Final clustering: k-means (k = {TINY['cluster.k']})" in said
    page = layout.REPORT.read_text()
    assert "purity" not in page.lower()
    assert f"{count} images in " in page


def test_tiny_imagenet_test(run) -> None:
    write_tinyimagenet(Path("files/tiny-imagenet-200"), [f"n{number:08}" for number in range(20)])
    said = everything(run, name="tinyimagenet", split="test", image_size=8, grayscale=True)
    assert "accuracy" not in said.splitlines()[0].replace("pseudo_label_accuracy", "")
    _, metrics = read_results()
    assert (metrics["final"], metrics["baselines"]) == ({}, {})


def test_a_native_size_is_kept_and_written_from_the_mapped_file(run) -> None:
    images = noise(5, 3, 96, 96)
    write_stl10(Path("files"), "unlabeled", images)
    edit_params(Path("params.yaml"), {"data.name": "stl10", "data.split": "unlabeled", "data.root": "files"})
    assert run("prepare") == "5 images of 96x96, 3 channels; 0 files skipped\n"
    np.testing.assert_array_equal(artifacts.open_store(layout.IMAGES, "images", made_by="").read("images"), images)


def test_a_refused_download_is_one_line_and_exit_code_2(run, outcome) -> None:
    edit_params(Path("params.yaml"), {"data.name": "cifar10"})
    status, out, err = outcome("prepare")
    assert (status, out) == (2, "")
    assert err == (
        "error: cifar10 is not in data/raw and could not be downloaded (<urlopen error no route to host>): "
        "put cifar-10-python.tar.gz (MD5 c58f30108f718f92721af3b95e74349a), or unpacked "
        "cifar-10-batches-py/data_batch_1, cifar-10-batches-py/data_batch_2, cifar-10-batches-py/data_batch_3, "
        "cifar-10-batches-py/data_batch_4, cifar-10-batches-py/data_batch_5, into data/raw, or allow network access\n"
    )
