"""Clusters numbered as in the epoch before."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster import artifacts, layout, memory
from deepcluster.clustering.kmeans import Clustering, kmeans
from deepcluster.clustering.matching import match_labels, memory_needed, renumbered


def match(labels, previous, k):
    return match_labels(np.array(labels, np.int32), np.array(previous, np.int32), k).tolist()


class TestByHand:
    def test_a_permutation_is_undone(self):
        assert match([2, 2, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2], 3) == [1, 2, 0]

    def test_most_images_keep_their_label_not_the_largest_cluster(self):
        """Cluster 0 shares 3 images with 0 and 2 with 1, cluster 1 shares 2 with 0: 2 + 2 beat 3 + 0."""
        assert match([0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0], 2) == [1, 0]

    def test_equal_agreement_leaves_the_numbers(self):
        assert match([0, 0, 1, 1], [0, 1, 0, 1], 2) == [0, 1]
        assert match([1, 1, 0, 0, 2], [0, 1, 0, 1, 2], 3) == [0, 1, 2]

    def test_nothing_before(self):
        assert match([2, 0, 1], [-1, -1, -1], 3) == [0, 1, 2]

    def test_images_without_a_label_before_count_for_nothing(self):
        assert match([1, 1, 1, 0], [-1, -1, 0, 1], 2) == [1, 0]

    def test_more_clusters_than_before(self):
        """2 is the old 0. The new 0 cannot keep its number and takes the lowest free one; 1 is the old 1, 3 stays."""
        assert match([2, 2, 1, 1, 0, 3], [0, 0, 1, 1, 1, 1], 4) == [2, 1, 0, 3]

    def test_fewer_clusters_than_before(self):
        """Numbers from k on cannot be given: cluster 1, once 3, keeps its number."""
        assert match([0, 0, 1, 1, 2], [2, 2, 3, 3, 0], 3) == [2, 1, 0]

    def test_clusters_without_a_predecessor_keep_their_numbers_where_they_can(self):
        """0 is the old 2; 1 stays, and 2, whose number is taken, is 0."""
        assert match([0], [2], 3) == [2, 1, 0]

    def test_an_empty_cluster_takes_what_is_left(self):
        assert match([0, 0, 2, 2], [1, 1, 0, 0], 3) == [1, 2, 0]

    def test_other_images(self):
        with pytest.raises(ValueError, match=r"^labels of the same images expected; got \(2,\) and \(3,\)$"):
            match([0, 1], [0, 1, 0], 2)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_is_the_best_of_all_permutations_and_never_worse_than_before(seed, k, k_before, count):
    rng = np.random.default_rng(seed)
    labels_N, previous_N = (
        rng.integers(0, k, count).astype(np.int32),
        rng.integers(-1, k_before, count).astype(np.int32),
    )
    number_K = match_labels(labels_N, previous_N, k)
    assert sorted(number_K.tolist()) == list(range(k))
    agreement = int((number_K[labels_N] == previous_N).sum())
    every = [int((np.array(order)[labels_N] == previous_N).sum()) for order in itertools.permutations(range(k))]
    assert agreement == max(every)
    if every[0] == agreement:  # the first permutation is the identity
        assert number_K.tolist() == list(range(k))
    np.testing.assert_array_equal(match_labels(labels_N, previous_N, k), number_K)


def test_a_shuffled_clustering_of_many_is_recovered():
    rng = np.random.default_rng(0)
    order, previous_N = rng.permutation(500).astype(np.int32), rng.integers(0, 500, 20_000).astype(np.int32)
    labels_N = np.where(rng.random(20_000) < 0.6, order[previous_N], rng.integers(0, 500, 20_000)).astype(np.int32)
    np.testing.assert_array_equal(match_labels(labels_N, previous_N, 500)[order], np.arange(500))


def test_a_renumbered_clustering_is_the_same_clustering():
    rows_Nd = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    found = kmeans(rows_Nd, k=7, backend="faiss", seed=1)
    number_K = np.array([3, 0, 6, 1, 5, 2, 4], np.int32)
    other: Clustering = renumbered(found, number_K)
    np.testing.assert_array_equal(other.labels_N, number_K[found.labels_N])
    np.testing.assert_array_equal(other.centroids_Kd[other.labels_N], found.centroids_Kd[found.labels_N])
    np.testing.assert_array_equal(other.sizes_K, np.bincount(other.labels_N))
    squares_NK = ((rows_Nd[:, None].astype(np.float64) - other.centroids_Kd) ** 2).sum(axis=2)
    np.testing.assert_array_equal(squares_NK.argmin(axis=1), other.labels_N)
    assert (other.labels_N.dtype, other.objective is found.objective, other.trained_on) == (np.int32, True, 400)


def test_memory():
    assert memory_needed(10_000) == 1.2e9


class TestStage:
    def cluster(self, outcome, epoch, **settings):
        edit_params(Path("params.yaml"), {f"cluster.{name}": value for name, value in settings.items()})
        status, _, err = outcome("cluster", "--epoch", str(epoch))
        assert status == 0, err
        store = artifacts.open_store(layout.clusters(epoch), "clusters", made_by="")
        return {name: store.read(name) for name in ("labels", "centroids", "sizes", "distances")}

    @pytest.mark.parametrize("method", ["kmeans", "pic", "spectral"])
    def test_the_artifact_is_renumbered_as_a_whole(self, workspace, outcome, method):
        edit_params(Path("params.yaml"), {"cluster.pic.neighbours": 3, "cluster.pic.sigma": 0.5})
        before = self.cluster(outcome, 1, method=method)
        plain = self.cluster(outcome, 2, method=method)
        matched = self.cluster(outcome, 2, method=method, match_labels=True)
        k = len(plain["sizes"])
        number_K = match_labels(plain["labels"], before["labels"], k)
        assert number_K.tolist() != list(range(k))
        np.testing.assert_array_equal(matched["labels"], number_K[plain["labels"]])
        np.testing.assert_array_equal(matched["centroids"][number_K], plain["centroids"])
        np.testing.assert_array_equal(matched["sizes"], np.bincount(matched["labels"], minlength=k))
        np.testing.assert_array_equal(matched["distances"], plain["distances"])
        agreement = [(found["labels"] == before["labels"]).mean() for found in (plain, matched)]
        assert agreement[1] > agreement[0]
        if method == "kmeans":
            rows_Nd = artifacts.open_store(layout.pca(2), "pca", made_by="").read("reduced").astype(np.float64)
            squares_NK = ((rows_Nd[:, None] - matched["centroids"]) ** 2).sum(axis=2)
            np.testing.assert_array_equal(squares_NK.argmin(axis=1), matched["labels"])

    def test_in_the_first_epoch_nothing_is_renumbered(self, workspace, outcome):
        plain, matched = self.cluster(outcome, 1), self.cluster(outcome, 1, match_labels=True)
        np.testing.assert_array_equal(plain["labels"], matched["labels"])

    def test_another_k_before(self, workspace, outcome):
        self.cluster(outcome, 1, k=6)
        matched = self.cluster(outcome, 2, k=3, match_labels=True)
        assert sorted(set(matched["labels"].tolist())) == [0, 1, 2]

    def test_tables_that_do_not_fit_are_refused(self, workspace, outcome, monkeypatch):
        edit_params(Path("params.yaml"), {"cluster.match_labels": True, "cluster.k": 40})
        monkeypatch.setattr(memory, "available_memory", lambda: 12.0 * 40 * 40 - 1)
        expected = (
            "error: cluster.match_labels: tables of 40 clusters need about 0.00 GB of memory and 0.00 GB are "
            "available; switch it off\n"
        )
        assert outcome("cluster", "--epoch", "2") == (2, "", expected)
