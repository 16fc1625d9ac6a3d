"""DeepCluster-v2 with all pairs of the settings that it meets, through every stage; see test_combinations.

A few rows run with the ordinary tests, all of them with the slow ones.
"""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from allpairspy import AllPairs
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from test_combinations import FEATURES, IMAGES, SIZE, K, name, project_folder, write_images  # noqa: F401

from deepcluster import artifacts, layout
from deepcluster.evaluation.epochs import read_results
from deepcluster.plan import plan
from stages.cluster import cluster
from stages.evaluate import evaluate
from stages.extract import extract
from stages.initialise import initialise
from stages.pca import pca
from stages.prepare import prepare
from stages.report import report
from stages.train import train

OUTPUTS = 6
SMALL = {"alexnet": 20, "vgg16": 16, "feedforward": None}  # and 12 of the others
SETTINGS = {
    "arch": ["convnet", "feedforward", "alexnet", "vgg16", "resnet18", "resnet50"],
    "optimizer": ["sgd", "adam", "lars"],
    "clusterings": [1, 3],
    "crops": ["1 and 0", "2 and 0", "2 and 2", "2 and 2 small"],
    "bank": ["first", "mean"],
    "warm": [False, True],
    "sobel": [False, True],
    "precision": ["fp32", "bf16"],
    "data": ["grey", "colour", "unlabelled colour"],
}
ROWS = [dict(zip(SETTINGS, row, strict=True)) for row in AllPairs(list(SETTINGS.values()))]
QUICK = [row for row in ROWS if row["arch"] in ("convnet", "feedforward")][:2]


def test_every_pair_of_values_meets():
    for one, other in combinations(SETTINGS, 2):
        met = {(row[one], row[other]) for row in ROWS}
        assert met == {(a, b) for a in SETTINGS[one] for b in SETTINGS[other]}
    assert len(QUICK) == 2


@pytest.mark.parametrize("row", QUICK, ids=name)
def test_a_few_combinations_run_through_every_stage(row, project_folder):  # noqa: F811
    run(row)
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_all_pairs_run_through_every_stage(row, project_folder):  # noqa: F811
    run(row)
    check(row)


def run(row: dict) -> None:
    write_images(Path("images"), colour=row["data"] != "grey", classes=row["data"] != "unlabelled colour")
    global_crops, _, small_crops = row["crops"].removesuffix(" small").split()
    params = {
        "epochs": 2,
        "data": {"name": "folder", "root": "images", "image_size": SIZE, "grayscale": row["data"] == "grey"},
        "model": {"arch": row["arch"], "sobel": row["sobel"]},
        "extract": {"precision": row["precision"], "batch_size": 16},
        "pca": {"enabled": False},
        "cluster": {
            "k": K,
            "spherical": True,
            "clusterings": row["clusterings"],
            "warm_start": row["warm"],
            "match_labels": row["warm"],
            "fail_on_collapse": False,
        },
        "train": {
            "method": "deepcluster_v2",
            "batch_size": 16,
            "precision": row["precision"],
            "v2": {
                "hidden": 12,
                "outputs": OUTPUTS,
                "global_crops": int(global_crops),
                "small_crops": int(small_crops),
                "small_size": SMALL.get(row["arch"], 12) if row["crops"].endswith("small") else None,
                "bank": row["bank"],
            },
            "optimizer": {"name": row["optimizer"], "lr": 1.0 if row["optimizer"] == "lars" else 0.001},
        },
        "evaluate": {"restarts": 1, "k": K},
    }
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    plan()
    prepare()
    initialise()
    for epoch in (1, 2):
        for stage in (extract, pca, cluster, train):
            stage(epoch)
    evaluate()
    report()


def check(row: dict) -> None:
    images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    assert images.shape("images") == (IMAGES, 1 if row["data"] == "grey" else 3, SIZE, SIZE)
    for epoch in (1, 2):
        features = artifacts.open_store(layout.features(epoch), "features", made_by="").read("features")
        assert features.shape == (IMAGES, OUTPUTS)
        np.testing.assert_allclose(np.linalg.norm(features.astype(np.float64), axis=1), 1, atol=1e-5)
        clusters = artifacts.open_store(layout.clusters(epoch), "clusters", made_by="")
        assert clusters.has("labels_all") == (row["clusterings"] > 1)
        assert clusters.shape("centroids") == (K, OUTPUTS)
        summary = json.loads(layout.train_summary(epoch).read_text())
        assert math.isfinite(summary["loss"])
        assert summary["images"] == IMAGES
    np.testing.assert_array_equal(features, artifacts.read_bank(layout.checkpoint(1)))
    before, after = (load_file(layout.checkpoint(epoch) / "model.safetensors") for epoch in (1, 2))
    learnt = {key for key in before if not np.array_equal(before[key], after[key])}
    assert {key for key in before if key.endswith("weight")} <= learnt
    rows, metrics = read_results()
    assert [one["nmi"] is None for one in rows] == 2 * [row["data"] == "unlabelled colour"]
    assert (metrics["final"] == {}) == (row["data"] == "unlabelled colour")
    final = artifacts.open_store(layout.EVALUATION / "clusters.zarr", "final_clusters", made_by="evaluate")
    assert final.shape("centroids") == (K, FEATURES[row["arch"]])
