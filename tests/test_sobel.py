"""The whole pipeline behind fixed filters, on colour and on grey images."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import EPOCH_STAGES, IMAGES, edit_params
from PIL import Image

from deepcluster import artifacts, layout
from deepcluster.checkpoint import load_checkpoint
from deepcluster.evaluation.baselines import filtered_baseline
from deepcluster.seeding import derive_seed

STAGES = (["prepare"], ["initialise"], *([name, "--epoch", epoch] for epoch in "12" for name in EPOCH_STAGES))


def write_coloured(folder: Path) -> Path:
    """Two classes of coloured 8x8 images: edges across or along."""
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        name = ("across", "along")[index % 2]
        pixels = rng.integers(0, 60, (8, 8, 3)).astype(np.uint8)
        pixels[(slice(4), slice(None)) if name == "across" else (slice(None), slice(4))] += 150
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def run(outcome, **settings):
    """Both epochs, evaluation and report; what `deepcluster summary` prints."""
    edit_params(Path("params.yaml"), {name.replace("__", "."): value for name, value in settings.items()})
    for command in (*STAGES, ["evaluate"], ["report"], ["summary"]):
        status, out, err = outcome(*command)
        assert status == 0, err
    return out


def images():
    return artifacts.open_store(layout.IMAGES, "images", made_by="prepare")


@pytest.mark.parametrize("kind", ["colour", pytest.param("grey", marks=pytest.mark.slow)])
def test_sobel(workspace, outcome, kind):
    settings = {"data__root": str(write_coloured(Path("coloured"))), "data__grayscale": kind == "grey"}
    summary = run(outcome, model__sobel=True, **settings)
    channels = {"colour": 3, "grey": 1}[kind]
    assert images().shape("images") == (IMAGES, channels, 8, 8)
    front_end = load_checkpoint(layout.checkpoint(2), made_by="", ids=images().ids, epoch=2).backbone.front_end
    targets_N = artifacts.open_store(layout.TARGETS, "targets", made_by="").read("targets")
    found = json.loads(Path("data/evaluation/metrics.json").read_text())["baselines"]
    assert list(found) == ["pixels", "untrained", "sobel"]
    seed = derive_seed(1, "evaluate", 0)
    assert found["sobel"] == filtered_baseline(
        images().read("images"), front_end, targets_N, k=2, seed=seed, restarts=1
    )
    assert found["sobel"]["accuracy"] > 0.9
    lines = [line.split("  ")[0] for line in summary.splitlines()]
    at = lines.index("k-means on raw pixels")
    assert lines[at + 1 : at + 3] == ["k-means on Sobel-filtered pixels", "untrained backbone"]
    assert "k-means on Sobel-filtered pixels" in Path("data/report/report.html").read_text()


def test_without_sobel_there_is_no_such_baseline(workspace, outcome):
    summary = run(outcome)
    assert list(json.loads(Path("data/evaluation/metrics.json").read_text())["baselines"]) == ["pixels", "untrained"]
    assert "Sobel-filtered pixels" not in summary
    assert "k-means on Sobel" not in Path("data/report/report.html").read_text()


@pytest.mark.slow
def test_grayscale(workspace, outcome):
    run(outcome, data__root=str(write_coloured(Path("coloured"))), data__grayscale=False, model__grayscale=True)
    assert images().shape("images")[1] == 3
    assert list(json.loads(Path("data/evaluation/metrics.json").read_text())["baselines"]) == ["pixels", "untrained"]
