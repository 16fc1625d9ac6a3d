"""The gate between clustering and training."""

from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGES, edit_params

from deepcluster import artifacts, layout
from deepcluster.clustering.health import Limits, collapsed, effective_rank, health, variances
from deepcluster.params import Collapse

LIMITS = Limits(**Collapse().model_dump())


def of(sizes, *, variance=(1.0, 1.0, 1.0), previous=None):
    sizes_K = np.array(sizes)
    labels_N = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    previous_N = None if previous is None else np.array(previous, np.int32)
    return health(sizes_K, labels_N, previous_N, np.array(variance)), sizes_K


def problem(sizes, *, components=3, limits=LIMITS, refined=False, **more):
    found, sizes_K = of(sizes, **more)
    return collapsed(found, sizes_K, components, limits, refined=refined)


def test_numbers_by_hand():
    found, _ = of([3, 1, 0, 0], variance=[2.0, 2.0, 0.0], previous=[5, 5, 5, 9])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found.effective_k == pytest.approx(np.exp(entropy))
    assert (found.largest_share, found.empty, found.drift) == (0.75, 2, pytest.approx(0))
    assert found.feature_rank == pytest.approx(2)
    assert of([2, 2], previous=[0, 1, 0, 1])[0].drift == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "rank"), [([1, 1, 1, 1], 4), ([5, 0, 0], 1), ([0, 0], 0), ([9, 1], np.exp(0.5623351)), ([1, -1e-9], 1)]
)
def test_effective_rank_by_hand(values, rank):
    assert effective_rank(np.array(values, float)) == pytest.approx(rank, rel=1e-6)


def test_variances_of_rows_that_no_pca_has_seen():
    rows_Nd = (np.random.default_rng(0).normal(size=(1000, 4)) * [3, 2, 1, 0] + 50).astype(np.float32)
    expected = np.sort(np.linalg.eigvalsh(np.cov(rows_Nd.T.astype(np.float64))))[::-1]
    np.testing.assert_allclose(variances(rows_Nd), expected, atol=1e-9)
    assert effective_rank(variances(np.repeat(rows_Nd, 5, axis=0))) == pytest.approx(2.75, abs=0.1)


def test_a_sound_clustering_passes():
    assert problem([10, 12, 9, 30]) is None
    assert problem([10, 12], variance=[1.0], components=1) is None


def test_each_kind_of_collapse_has_its_sentence_and_its_advice():
    assert "vary along 1.00 directions" in problem([5, 5], variance=[1.0, 0, 0])
    assert "lower train.optimizer.lr" in problem([5, 5], variance=[1.0, 0, 0])
    assert "3 of 5 clusters are empty" in problem([5, 5, 0, 0, 0])
    assert "try cluster.k: 2" in problem([5, 5, 0, 0, 0])
    assert "try refine.k: 2" in problem([5, 5, 0, 0, 0], refined=True)
    assert "largest of 4 clusters holds 97%" in problem([97, 1, 1, 1])
    assert "as uneven as" in problem([50] + [1] * 99, limits=Limits(0.9, 0.5, 0.5, 1.5, 1.0))
    strict = Limits(0.2, 0.5, 0.5, 1.5, max_drift=0.4)
    assert "drift 1.00, most allowed 0.4" in problem([2, 2], previous=[0, 1, 0, 1], limits=strict)
    assert problem([2, 2], previous=[0, 1, 0, 1]) is None


class TestStage:
    def collapse(self, value=0.0):
        """Features that are all alike, as an artifact of epoch 1."""
        ids = artifacts.open_store(layout.features(1), "features", made_by="").ids
        provenance = artifacts.Provenance(IMAGES, ids, 1)
        with artifacts.write_store(layout.features(1), "features", provenance) as store:
            store.array("features", np.full((IMAGES, 256), value, np.float32), ("sample", "feature"))

    def test_collapsed_features_stop_before_training(self, workspace, outcome):
        self.collapse(3.0)
        assert outcome("pca", "--epoch", "1")[0] == 0
        before = workspace.digests("data/history")
        status, _, err = outcome("cluster", "--epoch", "1")
        assert status == 2
        assert err.startswith("error: cluster@1: collapse: the features vary along 0.00 directions")
        assert err.count("\n") == 1
        assert "deepcluster sweep-k --epoch 1" in err
        assert workspace.digests("data/history") == before

    def test_the_gate_can_be_opened(self, workspace, outcome):
        self.collapse()
        edit_params(Path("params.yaml"), {"cluster.fail_on_collapse": False})
        assert outcome("pca", "--epoch", "1")[0] == 0
        status, out, err = outcome("cluster", "--epoch", "1")
        assert status == 0, err
        assert "warning: collapse: the features vary along 0.00 directions" in out
        store = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
        assert store.attributes["health"]["empty"] == 3
        assert store.read("sizes").tolist().count(0) == 3

    def test_what_is_recorded(self, workspace, outcome):
        store = artifacts.open_store(layout.clusters(2), "clusters", made_by="")
        recorded = store.attributes["health"]
        assert set(recorded) == {"effective_k", "largest_share", "empty", "feature_rank", "drift"}
        assert recorded["largest_share"] == pytest.approx(store.read("sizes").max() / IMAGES, rel=1e-5)
        assert 0 <= recorded["drift"] <= 1
        assert store.attributes["trained_on"] == IMAGES
        first = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
        assert first.attributes["health"]["drift"] is None

    def test_without_pca_the_rank_comes_from_the_rows(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"pca.enabled": False})
        for command in ("pca", "cluster"):
            status, _, err = outcome(command, "--epoch", "1")
            assert status == 0, err
        found = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
        assert found.attributes["health"]["feature_rank"] > 1

    def test_limits_are_params(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"cluster.collapse.max_drift": 0.0})
        status, _, err = outcome("cluster", "--epoch", "2")
        assert status == 2
        assert "most allowed 0" in err


class TestSweep:
    def test_table_json_and_plot(self, workspace, outcome):
        import csv
        import json

        before = workspace.digests("data/epochs", "data/history", "data/evaluation")
        status, out, err = outcome("sweep-k", "--epoch", "2", "--k", "6,2,3,3", "--seeds", "3")
        assert status == 0, err
        assert out.split()[:2] == ["k", "objective"]
        assert "highest silhouette: k = " in out
        assert "most stable: k = " in out
        with open("data/sweeps/2/sweep-k.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["k"] for row in rows] == ["2", "3", "6"]
        explained = [float(row["explained"]) for row in rows]
        assert explained == sorted(explained)
        content = json.loads(Path("data/sweeps/2/sweep-k.json").read_text())
        assert content["rows"][1]["silhouette"] == pytest.approx(float(rows[1]["silhouette"]))
        assert content["rows"][0]["nmi"] is not None
        assert Path("data/sweeps/2/sweep-k.svg").read_text().startswith("<svg")
        assert workspace.digests("data/epochs", "data/history", "data/evaluation") == before

    def test_its_first_run_is_the_stage(self, workspace, outcome):
        import json

        status, out, err = outcome("sweep-k", "--epoch", "1", "--k", "4", "--seeds", "1", "--json")
        assert status == 0, err
        (row,) = json.loads(out)["rows"]
        stage = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
        assert row["objective"] == pytest.approx(stage.read("distances").sum(dtype=np.float64), rel=1e-6)
        assert row["stability"] is None
        assert row["effective_k"] == pytest.approx(stage.attributes["health"]["effective_k"], rel=1e-5)

    @pytest.mark.parametrize("text", ["", "1", "ten", "10,,20", "10;20", "-4", "2.5"])
    def test_bad_k(self, workspace, outcome, text):
        status, _, err = outcome("sweep-k", "--epoch", "1", "--k", text)
        assert status == 2
        assert err == (f"error: --k: must be whole numbers >= 2 with commas between, as in 10,20,50; got {text!r}\n")

    def test_more_clusters_than_images_and_no_such_epoch(self, workspace, outcome):
        status, _, err = outcome("sweep-k", "--epoch", "1", "--k", f"2,{IMAGES + 1}")
        assert (status, err) == (2, f"error: --k: must be <= N = {IMAGES} images; got {IMAGES + 1}\n")
        status, _, err = outcome("sweep-k", "--epoch", "9", "--k", "2")
        expected = "--epoch: must be one that is scheduled (1 to 2); got 9; `deepcluster plan --epochs 9` schedules it"
        assert (status, err) == (2, f"error: {expected}\n")
        assert outcome("sweep-k", "--epoch", "0", "--k", "2")[0] == 2
        assert not Path("data/sweeps").exists()

    def test_stability_is_the_mean_over_all_pairs_and_the_rest_of_the_best_run(self):
        from deepcluster.clustering.kmeans import Clustering
        from deepcluster.evaluation.choosing_k import choices
        from deepcluster.metrics import ari

        labels = [np.array(text, np.int32) for text in ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2], [0, 1, 2, 0, 1, 2])]

        def cluster(k, run):
            distances_N = np.full(6, 1.0 + abs(run - 1), np.float32)  # run 1 is the best
            sizes_K = np.bincount(labels[run], minlength=k)
            return Clustering(labels[run], distances_N, np.zeros((k, 2)), distances_N.sum(keepdims=True), sizes_K, 6)

        settings = {"silhouette_rows": 6, "seed": 0, "targets_N": labels[1]}
        (found,) = choices(np.arange(12, dtype=np.float32).reshape(6, 2), [3], cluster=cluster, runs=3, **settings)
        pairs = [ari(labels[0], labels[1]), ari(labels[0], labels[2]), ari(labels[1], labels[2])]
        assert found.stability == pytest.approx(sum(pairs) / 3)
        assert (found.objective, found.nmi, found.largest_share) == (6.0, pytest.approx(1), 0.5)

    def test_silhouette_and_stability_by_scikit_learn(self):
        from sklearn.metrics import silhouette_score

        from deepcluster.clustering.kmeans import kmeans
        from deepcluster.evaluation.choosing_k import choices

        rng = np.random.default_rng(0)
        rows_Nd = (np.repeat(rng.normal(size=(4, 3)) * 30, 50, axis=0) + rng.normal(size=(200, 3))).astype(np.float32)
        found = list(
            choices(
                rows_Nd,
                [3, 4, 5],
                cluster=lambda k, run: kmeans(rows_Nd, k=k, backend="faiss", seed=run, restarts=5),
                runs=3,
                silhouette_rows=10**6,
                seed=0,
                targets_N=np.repeat(np.arange(4), 50),
            )
        )
        assert max(found, key=lambda choice: choice.silhouette).k == 4
        assert found[1].stability == found[1].nmi == pytest.approx(1)
        assert found[1].silhouette == pytest.approx(silhouette_score(rows_Nd, np.repeat(np.arange(4), 50)), abs=1e-6)
        assert found[1].explained == pytest.approx(
            1 - found[1].objective / ((rows_Nd - rows_Nd.mean(0)) ** 2).sum(), rel=1e-4
        )
