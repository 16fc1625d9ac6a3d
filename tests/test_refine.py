"""Section `refine`: other pseudo-labels in the later epochs."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGES, edit_params

from deepcluster import layout
from deepcluster.artifacts import Provenance, open_store, write_store
from deepcluster.evaluation.trust_runs import open_run
from deepcluster.params import Params, at_epoch, final_k
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


def test_another_k_of_later_epochs_leaves_the_first_as_they_are(project, here):
    project.set_params(**{key.replace(".", "__"): value for key, value in REFINED.items()})
    first = {"data/epochs/1/checkpoint", "data/history/1"}
    before = project.digests(*first)
    ran = here(project, "run")
    assert "] train@1\n" not in ran
    assert "] extract@2\n" not in ran
    assert "] train@2\n" in ran
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


@pytest.mark.parametrize(
    ("evaluate_k", "classes", "after", "expected"),
    [(7, 5, 3, 7), (None, 5, 3, 5), (None, 1, 3, 10), (None, 0, 3, 10), (None, 0, 4, 30), (None, 0, None, 30)],
)
def test_clusters_of_the_final_clustering(evaluate_k, classes, after, expected):
    """Without classes to tell it, k is that of the last of four epochs, refined or not."""
    content = {"epochs": 4, "cluster": {"k": 30}, "refine": {"after": after, "k": 10}, "evaluate": {"k": evaluate_k}}
    assert final_k(Params.model_validate(content), classes) == expected


def test_trust_and_evaluate_take_the_same_clusters_without_true_labels(refined, outcome):
    images = open_store(layout.IMAGES, "images", made_by="test")
    provenance = Provenance(images.samples, images.ids, params={})
    with write_store(layout.TARGETS, "targets", provenance, labelled=False, class_names=None) as store:
        store.array("targets", np.empty(0, np.int64), ("labelled_sample",))
    edit_params(Path("params.yaml"), {"evaluate.k": None})
    assert outcome("evaluate")[0] == 0
    assert json.loads((layout.EVALUATION / "metrics.json").read_text())["k"] == open_run().k == 2


class TestMistakes:
    def test_too_many_clusters_are_named_by_the_key_that_asks_for_them(self, workspace, outcome):
        too_many = {"refine.after": 1, "refine.k": IMAGES + 1, "evaluate.k": IMAGES + 2}
        edit_params(Path("params.yaml"), too_many)
        of_refine = f"error: refine.k: must be <= N = {IMAGES} images; got {IMAGES + 1}\n"
        of_final = f"error: evaluate.k: must be <= N = {IMAGES} images; got {IMAGES + 2}\n"
        assert outcome("initialise") == (2, "", of_refine + of_final)
        assert outcome("cluster", "--epoch", "2") == (2, "", of_refine)
        assert outcome("evaluate") == (2, "", of_final)

    def test_of_too_many_clusters_that_nobody_asked_for_it_is_said_where_they_come_from(self, workspace, outcome):
        truth = open_store(layout.TARGETS, "targets", made_by="test")
        names = [f"class {number}" for number in range(IMAGES + 3)]
        provenance = Provenance(truth.samples, truth.ids, params={})
        with write_store(layout.TARGETS, "targets", provenance, labelled=True, class_names=names) as store:
            store.array("targets", truth.read("targets"), ("labelled_sample",))
        edit_params(Path("params.yaml"), {"evaluate.k": None})
        where = "since null takes the number of classes, else that of the pseudo-labels"
        expected = f"error: evaluate.k: must be <= N = {IMAGES} images; got {IMAGES + 3}, {where}\n"
        assert outcome("evaluate") == (2, "", expected)

    @pytest.mark.parametrize(
        ("epoch", "keys"),
        [
            ("1", "another cluster.k, pca.whiten, cluster.restarts, or"),
            ("2", "another refine.k, refine.whiten, refine.restarts, or"),
        ],
    )
    def test_advice_on_a_collapse_names_the_keys_that_count(self, workspace, outcome, epoch, keys):
        edit_params(Path("params.yaml"), REFINED | {"refine.k": 5, "cluster.collapse": {"max_largest_share": 0.01}})
        edit_params(Path("params.yaml"), {"cluster.fail_on_collapse": True})
        status, _, err = outcome("cluster", "--epoch", epoch)
        assert status == 2
        assert f"; try {keys} a lower train.optimizer.lr. Nothing was published" in err
