"""Section `refine`: other pseudo-labels in the later epochs."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params

from deepcluster import layout
from deepcluster.artifacts import open_store
from deepcluster.params import Params, at_epoch
from deepcluster.reduction.pca import fit

REFINED = {"refine.after": 1, "refine.k": 2, "refine.restarts": 3}


def test_settings_of_an_epoch():
    params = Params.model_validate(
        {"cluster": {"k": 30, "method": "pic", "iterations": 7}, "refine": {"after": 3, "k": 10, "restarts": 4}}
    )
    assert at_epoch(params, 3) is params
    assert at_epoch(params, None) is params
    later = at_epoch(params, 4)
    assert later.pca == params.pca.model_copy(update={"whiten": False})
    own = {"k": 10, "restarts": 4, "init": "k-means++", "method": "kmeans"}
    assert later.cluster == params.cluster.model_copy(update=own)
    assert later.cluster.iterations == 7
    assert later.train == params.train
    assert at_epoch(Params(), 100) == Params()


@pytest.fixture
def refined(workspace, outcome):
    """Epoch 2 of the tiny project with section `refine`, after an epoch 1 without."""
    edit_params(Path("params.yaml"), REFINED)
    for stage in ("pca", "cluster", "train"):
        status, _, err = outcome(stage, "--epoch", "2")
        assert status == 0, err
    return workspace


def test_later_epochs_are_clustered_by_the_section(refined):
    before, after = (open_store(layout.clusters(epoch), "clusters", made_by="test") for epoch in (1, 2))
    assert (len(before.read("sizes")), len(after.read("sizes"))) == (4, 2)
    assert after.attributes["params"]["k"] == 2
    assert after.attributes["params"]["restarts"] == 3


def test_later_epochs_are_not_whitened(refined):
    features_ND = open_store(layout.features(2), "features", made_by="test").read("features")
    store = open_store(layout.pca(2), "pca", made_by="test")
    found = fit(lambda rows: iter([features_ND]), features_ND.shape, backend="sklearn", components=4, seed=0)
    projected_Nd = (features_ND - found.mean_D) @ found.components_dD.T
    expected_Nd = projected_Nd / np.linalg.norm(projected_Nd, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(store.read("reduced")), np.abs(expected_Nd), atol=1e-3)


def test_the_result_is_not_said_to_be_of_other_settings(refined, outcome):
    for stage in ("evaluate", "report"):
        assert outcome(stage)[0] == 0
    status, out, err = outcome("summary")
    assert status == 0
    assert "cluster." not in out + err
    metrics = json.loads((layout.EVALUATION / "metrics.json").read_text())
    assert metrics["pseudo_labels"]["k"] == 2


def test_another_k_of_later_epochs_leaves_the_first_as_they_are(project):
    project.set_params(**{key.replace(".", "__"): value for key, value in REFINED.items()})
    first = {"data/epochs/1/checkpoint", "data/history/1"}
    before = project.digests(*first)
    ran = project.repro()
    assert "train@1" not in ran
    assert "extract@2" not in ran
    assert "train@2" in ran
    assert project.digests(*first) == before


@pytest.mark.parametrize(
    "how", [{"cluster.warm_start": True}, {"cluster.match_labels": True}, {"cluster.method": "pic"}]
)
def test_what_looks_back_copes_with_another_number_of_clusters(workspace, outcome, how):
    edit_params(Path("params.yaml"), REFINED | how)
    assert outcome("pca", "--epoch", "2")[0] == 0
    status, out, err = outcome("cluster", "--epoch", "2")
    assert status == 0, err
    assert "effective k" in out
