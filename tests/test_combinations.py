"""All pairs of settings (pairwise testing), each through every stage: a loss that is finite, and artifacts that fit.

Every two values of two different settings meet in at least one row. Ten rows run with the ordinary tests, all of
them with the slow ones.
"""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from allpairspy import AllPairs
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from deepcluster import artifacts, layout
from deepcluster.evaluation.epochs import read_results
from deepcluster.params import load_params
from deepcluster.plan import plan
from stages.cluster import cluster
from stages.evaluate import evaluate
from stages.extract import extract
from stages.initialise import initialise
from stages.pca import pca
from stages.prepare import prepare
from stages.report import report
from stages.train import train

IMAGES, SIZE, K, COMPONENTS = 32, 28, 3, 5
FEATURES = {
    "convnet": 256, "feedforward": 64, "alexnet": 4096, "vgg16": 4096,
    "resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048,
}  # fmt: skip
SETTINGS = {
    "arch": list(FEATURES),
    "optimizer": ["sgd", "adam"],
    "head": ["sgd", "adam"],
    "loss": ["cross_entropy", "mse", "l1", "l2"],
    "strategy": ["none", "pseudo_labels", "two_views"],
    "pca": ["streaming", "sklearn", "faiss"],
    "clustering": ["faiss", "sklearn", "minibatch", "pic", "spectral"],
    "sobel": [False, True],
    "precision": ["fp32", "bf16"],
    "data": ["grey", "colour", "unlabelled colour"],
}
ROWS = [dict(zip(SETTINGS, row, strict=True)) for row in AllPairs(list(SETTINGS.values()))]


# The others took 88 of 103 s: ResNets are deep, and of 2,048 or 4,096 features evaluation takes the eigenvectors twice.
# test_models passes images through each architecture and back, test_recipes trains an alexnet and a resnet18.
QUICK = ("convnet", "feedforward")


def quick(rows: list[dict]) -> list[dict]:
    """Of the two architectures that are small the rows that bring a value which no row before them has."""
    found: list[dict] = []
    for row in rows:
        new = {item for item in row.items() if all(other[item[0]] != item[1] for other in found)}
        if row["arch"] in QUICK and new:
            found.append(row)
    return found


def name(row: dict) -> str:
    return "-".join(str(value).replace(" ", "_") if value is not True else "sobel" for value in row.values() if value)


def test_every_pair_of_values_meets():
    for one, other in combinations(SETTINGS, 2):
        met = {(row[one], row[other]) for row in ROWS}
        assert met == {(a, b) for a in SETTINGS[one] for b in SETTINGS[other]}
    assert len(quick(ROWS)) == 6
    assert {row["arch"] for row in quick(ROWS)} == set(QUICK)
    for setting, values in SETTINGS.items():
        assert setting == "arch" or {row[setting] for row in quick(ROWS)} == set(values)


@pytest.mark.parametrize("row", quick(ROWS), ids=name)
def test_quick_combinations_run_through_every_stage(row, project_folder):
    run(row)
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_all_pairs_run_through_every_stage(row, project_folder):
    run(row)
    check(row)


@pytest.fixture
def project_folder(tmp_path, monkeypatch):
    """An empty folder as the current one, a CPU, one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def run(row: dict) -> None:
    write_images(Path("images"), colour=row["data"] != "grey", classes=row["data"] != "unlabelled colour")
    by_graph = row["clustering"] in ("pic", "spectral")
    clustering = {"method": row["clustering"]} if by_graph else {"backend": row["clustering"]}
    params = {
        "epochs": 1,
        "data": {"name": "folder", "root": "images", "image_size": SIZE, "grayscale": row["data"] == "grey"},
        "model": {"arch": row["arch"], "sobel": row["sobel"]},
        "extract": {"precision": row["precision"], "batch_size": 16},
        "pca": {"backend": row["pca"], "components": COMPONENTS},
        "cluster": {"k": K, "fail_on_collapse": False} | clustering,
        "train": {
            "batch_size": 16,
            "loss": row["loss"],
            "precision": row["precision"],
            "contrastive": {"strategy": row["strategy"]},
            "optimizer": {"name": row["optimizer"], "lr": 0.001},
            "head": {"name": row["head"], "lr": 0.001},
        },
        "evaluate": {"restarts": 1, "k": K},
    }
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    plan()
    prepare()
    initialise()
    for stage in (extract, pca, cluster, train):
        stage(1)
    evaluate()
    report()


def write_images(folder: Path, *, colour: bool, classes: bool) -> None:
    """Two kinds of images: bright above, or on the left; each in a colour of its own."""
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        kind = index % 2
        pixels = rng.integers(0, 90, (SIZE, SIZE, 3)).astype(np.uint8)
        half = (slice(SIZE // 2), slice(None)) if kind else (slice(None), slice(SIZE // 2))
        pixels[half] += rng.integers(60, 160, 3).astype(np.uint8)
        target = folder / (("left", "above")[kind] if classes else "")
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if colour else pixels[:, :, 0]).save(target / f"{index:02}.png")


def check(row: dict) -> None:
    images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    assert images.shape("images") == (IMAGES, 1 if row["data"] == "grey" else 3, SIZE, SIZE)
    features = artifacts.open_store(layout.features(1), "features", made_by="extract@1").read("features")
    assert features.shape == (IMAGES, FEATURES[row["arch"]])
    assert np.isfinite(features).all()
    reduced = artifacts.open_store(layout.pca(1), "pca", made_by="pca@1").read("reduced")
    assert reduced.shape == (IMAGES, COMPONENTS)
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, atol=1e-5)
    clusters = artifacts.open_store(layout.clusters(1), "clusters", made_by="cluster@1")
    labels, sizes = clusters.read("labels"), clusters.read("sizes")
    assert labels.shape == (IMAGES,)
    assert sizes.tolist() == np.bincount(labels, minlength=len(sizes)).tolist()
    assert (len(sizes) >= 2) if row["clustering"] == "pic" else (len(sizes) == K)
    summary = json.loads(layout.train_summary(1).read_text())
    assert math.isfinite(summary["loss"])
    assert (summary["contrastive_loss"] is None) == (row["strategy"] == "none")
    before, after = (load_file(layout.checkpoint(epoch) / "model.safetensors") for epoch in (0, 1))
    learnt = {key for key in before if not np.array_equal(before[key], after[key])}
    assert {key for key in before if key.endswith("weight")} <= learnt
    (epoch,), metrics = read_results()
    assert (epoch["nmi"] is None) == (row["data"] == "unlabelled colour") == (metrics["final"] == {})
    assert layout.REPORT.stat().st_size > 1000
    assert load_params().model.arch == row["arch"]
