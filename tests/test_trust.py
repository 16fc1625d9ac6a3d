"""The label-free measures against numbers computed by hand, and the choice that is made by them."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from deepcluster.augment import Augmentation
from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.kmeans import Clustering
from deepcluster.evaluation.baselines import final_clusters
from deepcluster.evaluation.trust import (
    COLLAPSED,
    Trust,
    Views,
    agreements,
    explained,
    half_stability,
    kmeans_runs,
    margin,
    measured,
    neighbour_agreements,
    rival_gap,
    stability,
    view_agreement,
    view_cosine,
)
from deepcluster.evaluation.trust_choice import preferred, rank_correlations, trust_scores
from deepcluster.evaluation.trust_runs import sampled_rows, still, views_of


def labels(text):
    return np.array([int(digit) for digit in text], np.int32)


def clustering(rows_ND, centroids_KD, labels_N, objective=None):
    rows_ND, centroids_KD = np.asarray(rows_ND, np.float32), np.asarray(centroids_KD, np.float32)
    distances_N = np.square(rows_ND - centroids_KD[labels_N]).sum(axis=1)
    total = distances_N.sum() if objective is None else objective
    sizes_K = np.bincount(labels_N, minlength=len(centroids_KD))
    return Clustering(labels_N, distances_N, centroids_KD, np.array([total]), sizes_K, len(rows_ND))


def of_objective(text, objective):
    rows_N1 = np.zeros((len(text), 1))
    return clustering(rows_N1, np.zeros((3, 1)), labels(text), objective)


def final(k):
    return lambda features_ND, *, seed, restarts: final_clusters(
        features_ND, k=k, seed=seed, restarts=restarts, gpu=False
    )


def blobs(count=90, spread=0.4):
    features_ND, targets_N = make_blobs(count, 5, centers=3, cluster_std=spread, random_state=0)
    return features_ND.astype(np.float32), targets_N


class TestStability:
    def test_mean_ari_of_all_pairs(self):
        same, crossed = labels("1100"), labels("0101")  # crossed: pairs together in neither, so ARI -0.5
        assert stability([labels("0011"), same]) == 1
        assert stability([labels("0011"), same, crossed]) == pytest.approx((1 - 0.5 - 0.5) / 3)
        assert stability([same]) is None

    def test_halves_label_all_images_and_are_compared(self):
        corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
        seen = []

        def split_by_side_then_by_height(features_ND, *, seed, restarts):
            seen.append((features_ND, restarts))
            centroids_KD = [[-1, 0], [1, 0]] if len(seen) % 2 else [[0, -1], [0, 1]]
            return clustering(features_ND, centroids_KD, np.zeros(len(features_ND), np.int32))

        found = half_stability(corners, cluster=split_by_side_then_by_height, halvings=3, k=2, seed=0)
        assert found == pytest.approx(-0.5)
        assert [restarts for _, restarts in seen] == [5] * 6
        for (one, _), (other, _) in zip(seen[::2], seen[1::2], strict=True):
            assert {tuple(row) for row in (*one, *other)} == {tuple(row) for row in corners}
        assert len({tuple(map(tuple, one)) for one, _ in seen[::2]}) > 1  # each time other halves

    def test_clear_clusters_are_stable_and_noise_is_not(self):
        clear, _ = blobs()
        noise = np.random.default_rng(1).normal(size=(90, 5)).astype(np.float32)
        found = [half_stability(rows, cluster=final(3), halvings=5, k=3, seed=0) for rows in (clear, noise)]
        assert found[0] == 1
        assert found[1] < 0.6

    def test_halves_must_hold_k_images(self):
        features_ND, _ = blobs(10)
        assert half_stability(features_ND, cluster=final(6), halvings=1, k=6, seed=0) is None
        assert half_stability(features_ND, cluster=final(5), halvings=1, k=5, seed=0) is not None


class TestRuns:
    def test_the_best_run_is_the_final_clustering(self):
        features_ND = np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32)
        best, runs = kmeans_runs(features_ND, cluster=final(7), restarts=6, seed=31)
        whole = final_clusters(features_ND, k=7, seed=31, restarts=6, gpu=False)
        np.testing.assert_array_equal(best.labels_N, whole.labels_N)
        assert best.objective[-1] == whole.objective[-1] == min(run.objective[-1] for run in runs)
        assert len({float(run.objective[-1]) for run in runs}) > 1

    def test_gap_to_the_second_local_optimum(self):
        best = of_objective("001122", 10.0)
        runs = [of_objective("012012", 12.0), best, of_objective("110022", 10.5), of_objective("001112", 11.0)]
        assert rival_gap(best, runs) == pytest.approx(0.1)  # 10.5 is the best clustering under other names
        assert rival_gap(best, [best, runs[2]]) is None

    def test_agreements_with_all_others_and_with_neighbours(self):
        one, crossed = labels("0011"), labels("0101")
        assert agreements([one, one, crossed]) == pytest.approx([0.25, 0.25, -0.5])
        assert neighbour_agreements([one, one, crossed]) == pytest.approx([1, 0.25, -0.5])
        assert agreements([one]) == neighbour_agreements([one]) == [None]

    def test_what_has_collapsed_agrees_with_nothing(self):
        one, none = labels("0011"), labels("0000")
        assert agreements([none, one, none, one]) == [None, 1, None, 1]
        assert neighbour_agreements([none, none, one, one]) == [None, None, 1, 1]


class TestShape:
    def test_explained(self):
        rows = [[0.0], [2.0], [10.0], [12.0]]
        assert explained(np.array(rows, np.float32), clustering(rows, [[1], [11]], labels("0011"))) == pytest.approx(
            1 - 4 / 104
        )
        assert explained(np.ones((3, 1), np.float32), clustering(np.ones((3, 1)), [[1]], labels("000"))) is None

    def test_margin(self):
        rows = np.array([[0.0], [1.0], [2.0], [4.0]], np.float32)
        found = margin(rows, clustering(rows, [[0], [4], [1]], labels("0001")))  # the cluster at 1 holds no image
        assert found == pytest.approx((1 + (1 - 1 / 3) + 0 + 1) / 4)
        assert margin(rows, clustering(rows, [[0], [4]], labels("0000"))) is None

    def test_margin_where_two_centroids_are_one(self):
        rows = np.array([[0.0], [0.0]], np.float32)
        assert margin(rows, clustering(rows, [[0], [0]], labels("01"))) == 0

    def test_margin_over_many_blocks(self, monkeypatch):
        features_ND, _ = blobs()
        found = final(3)(features_ND, seed=0, restarts=2)
        rows_ND = l2_normalize(features_ND)
        two_N2 = np.sort(cdist(rows_ND, found.centroids_Kd), axis=1)[:, :2]
        monkeypatch.setattr("deepcluster.evaluation.trust._BLOCK_VALUES", 21)
        assert margin(rows_ND, found) == pytest.approx(np.mean(1 - two_N2[:, 0] / two_N2[:, 1]))


class TestViews:
    def test_share_that_stays_in_its_cluster(self):
        found = clustering(np.zeros((4, 2)), [[1, 0], [0, 0.2]], labels("0011"))
        views_VD = np.array([[0.05, 0.04], [0.1, 0.2], [0, 3]], np.float32)  # the first is nearer to 1 before L2
        assert view_agreement(found, Views(np.array([0, 1, 3]), views_VD, views_VD)) == pytest.approx(2 / 3)

    def test_cosine(self):
        features = np.array([[1, 0], [0, 2], [3, 3], [0, 0]], np.float32)
        views = np.array([[1, 1], [0, -7], [1, 1], [1, 0]], np.float32)
        expected = (np.sqrt(0.5) - 1 + 1 + 0) / 4
        assert view_cosine(Views(np.arange(4), features, views)) == pytest.approx(expected, abs=1e-6)

    def test_without_augmentation_views_are_the_images(self):
        images = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
        rows = np.array([1, 4, 5])
        np.testing.assert_array_equal(views_of(images, rows, Augmentation(), seed=1, at_once=2), images[rows])

    def test_same_seed_same_views(self):
        images = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)
        turned = Augmentation(rotation=40)
        one, same, other = (views_of(images, np.arange(7), turned, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any(axis=(1, 2, 3)).all()
        assert (one != images).any(axis=(1, 2, 3)).all()

    def test_which_augmentation_moves_nothing(self):
        assert still(Augmentation(padding="reflection", crop_scale=(0.5, 1)))
        assert not still(Augmentation(flip=True))
        assert not still(Augmentation(crop=True))

    def test_sampled_rows(self):
        found = sampled_rows(100, 10, seed=3)
        assert len(found) == len(set(found.tolist())) == 10
        assert (np.diff(found) > 0).all()
        np.testing.assert_array_equal(sampled_rows(5, 10, seed=3), np.arange(5))


class TestMeasured:
    def measure(self, features_ND, k=3):
        best, runs = kmeans_runs(features_ND, cluster=final(k), restarts=3, seed=1)
        views = [Views(np.arange(9), features_ND[:9], features_ND[:9] + np.float32(shift)) for shift in (0, 3)]
        return (
            measured(features_ND, best, runs, views, cluster=final(k), halvings=2, silhouette_rows=50, seed=4),
            best,
            views,
        )

    def test_every_measure_where_it_belongs(self):
        features_ND, _ = blobs(spread=2.5)
        found, best, views = self.measure(features_ND)
        assert found.view_agreement == pytest.approx(np.mean([view_agreement(best, view) for view in views]))
        assert found.view_cosine == pytest.approx(np.mean([view_cosine(view) for view in views]))
        assert found.margin == margin(l2_normalize(features_ND), best)
        assert found.explained == explained(l2_normalize(features_ND), best)
        assert -1 < found.silhouette < 1
        assert found.stability <= 1
        assert found.half_stability <= 1

    def test_lengths_of_features_do_not_count(self):
        features_ND, _ = blobs(spread=2.5)
        assert self.measure(features_ND)[0].silhouette == self.measure(features_ND * 4)[0].silhouette

    def test_no_measure_of_one_cluster(self):
        """ARI calls two collapsed clusterings equal: they would be the most stable of all."""
        found, _, _ = self.measure(np.ones((30, 5), np.float32))
        assert found == COLLAPSED == Trust(None, None, None, None, None, None, None, None)

    def test_no_views(self):
        features_ND, _ = blobs()
        best, runs = kmeans_runs(features_ND, cluster=final(3), restarts=1, seed=1)
        found = measured(features_ND, best, runs, [], cluster=final(3), halvings=1, silhouette_rows=50, seed=4)
        assert (found.view_agreement, found.view_cosine, found.stability) == (None, None, None)

    def test_better_clusters_are_trusted_more(self):
        clear, noisy = (self.measure(blobs(spread=spread)[0])[0] for spread in (0.5, 4.0))
        for name in ("silhouette", "margin", "half_stability", "explained"):
            assert getattr(clear, name) > getattr(noisy, name), name

    def test_scikit_learn_agrees_on_ari(self):
        one, other = labels("00112"), labels("01122")
        assert stability([one, other]) == pytest.approx(adjusted_rand_score(one, other))


class TestChoice:
    ROWS = ({"a": 1.0, "drift": 0.5}, {"a": 2.0, "drift": None}, {"a": 2.0, "drift": 0.1})

    def test_mean_ranks(self):
        # ranks by a: 1, 2.5, 2.5; by drift, lower being better and nothing the worst: 2, 1, 3
        assert trust_scores(self.ROWS, ["a", "drift"]) == pytest.approx([0.25, 0.375, 0.875])

    def test_one_row_and_no_difference(self):
        assert trust_scores(self.ROWS[:1], ["a"]) == [0.5]
        assert trust_scores([{"a": None}, {"a": None}], ["a"]) == [0.5, 0.5]

    def test_the_last_of_the_best(self):
        assert preferred([0.1, 0.9, 0.9, 0.2]) == 2

    def test_spearman_by_its_formula(self):
        rows = [{"a": value, "drift": value} for value in (3.0, 1.0, 4.0, 2.0)]
        accuracies = [0.7, 0.6, 0.8, 0.9]  # ranks 2 1 3 4 beside 3 1 4 2
        expected = 1 - 6 * (1 + 0 + 1 + 4) / (4 * (16 - 1))
        found = rank_correlations(rows, ["a", "drift"], accuracies)
        assert found == pytest.approx({"a": expected, "drift": -expected})

    def test_rows_without_a_value_have_no_part_in_a_correlation(self):
        rows = [{"a": None}, *({"a": value} for value in (1.0, 2.0, 3.0))]
        assert rank_correlations(rows, ["a"], [0.9, 0.1, 0.2, 0.3]) == {"a": pytest.approx(1)}

    @pytest.mark.parametrize(
        ("values", "accuracies"), [([1, 2], [0.1, 0.2]), ([1, 1, 1], [0.1, 0.2, 0.3]), ([1, 2, 3], [0.5, 0.5, 0.5])]
    )
    def test_nothing_to_correlate(self, values, accuracies):
        assert rank_correlations([{"a": float(value)} for value in values], ["a"], accuracies) == {"a": None}


def test_runs_with_names_that_a_spreadsheet_would_run():
    from deepcluster.trust import Compared, _csv

    rows = [{"run": name, "epoch": 2, "drift": None, "score": -1.5} for name in ("=1+1", "@a\rb", "plain")]
    assert _csv(Compared("run", rows, 0, None)) == (
        'run,epoch,drift,score,accuracy\n./=1+1,2,,-1.5,\n"./@a\rb",2,,-1.5,\nplain,2,,-1.5,\n'
    )
