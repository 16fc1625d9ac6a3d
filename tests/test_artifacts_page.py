"""The lines of docs/artifacts.md run, with nothing of ours, and give what `deepcluster show` prints."""

import json
import re
import warnings

import numpy as np
import pytest
from conftest import CHECKOUT


def lines():
    """The page's Python, of epoch 2 where it says 7, and 1 where it says 6."""
    (code,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs/artifacts.md").read_text(), flags=re.DOTALL)
    return re.sub(r"/7/", "/2/", re.sub(r"/6/", "/1/", code))


def test_they_need_nothing_of_ours():
    assert "deepcluster" not in lines()
    assert {found.split(".")[0] for found in re.findall(r"^(?:import|from) (\S+)", lines(), flags=re.MULTILINE)} == {
        "numpy", "zarr", "xarray", "safetensors", "json",
    }  # fmt: skip


def test_they_give_what_show_prints(finished, monkeypatch, outcome):
    monkeypatch.chdir(finished.root)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(lines(), found)
    features, pca, clusters, checkpoint = (
        json.loads(outcome("show", what, "--epoch", "2", "--json")[1])
        for what in ("features", "pca", "clusters", "checkpoint")
    )
    statistics = features["statistics"]
    assert statistics["norms"]["max"] == pytest.approx(found["norms"].max(), rel=1e-6)
    assert statistics["dead"] == found["dead"].tolist()
    assert sorted(statistics["dead"] + statistics["constant"]) == found["constant"].tolist()
    assert statistics["nan"] == found["nan"]
    assert statistics["effective_rank"] == pytest.approx(found["effective_rank"], rel=1e-3)
    assert pca["statistics"]["explained_variance"]["kept"] == pytest.approx(found["kept"], rel=1e-6)
    np.testing.assert_array_equal(clusters["statistics"]["sizes"], found["sizes"])
    assert checkpoint["provenance"]["params"] == found["made_with"]
    by_layer = {layer["name"]: layer for layer in checkpoint["statistics"]["layers"]}
    alone = {name: layer for name, layer in by_layer.items() if list(layer["shapes"]) == ["weight"]}
    assert alone
    for name, layer in alone.items():
        assert layer["change"] == pytest.approx(found["change"][f"{name}.weight"], rel=1e-5)


def test_sample_ids(finished, monkeypatch):
    import zarr

    monkeypatch.chdir(finished.root)
    (line,) = re.findall(r"^Sample ids: `(.+)`\.$", (CHECKOUT / "docs/artifacts.md").read_text(), flags=re.MULTILINE)
    ids = eval(line, {"images": zarr.open("data/dataset/images.zarr", mode="r")})
    assert ids[:2] == ["above/000.png", "above/002.png"]
