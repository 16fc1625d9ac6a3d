"""The sampler: equal shares for clusters, and indices that mean what the data set means by them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcluster.sampling import each_in_turn, nearest_of_each, uniform_over_clusters

SIZES = (1, 3, 10, 50, 200, 1000)


def shuffled_labels(seed=0):
    """Clusters 0, 2, 4, ... (odd ones are empty) of very different sizes, not stored in cluster order."""
    labels_N = np.repeat(2 * np.arange(len(SIZES)), SIZES).astype(np.int32)
    return np.random.default_rng(seed).permutation(labels_N)


def test_shares_are_equal_whatever_the_cluster_sizes():
    labels_N = shuffled_labels()
    indices = uniform_over_clusters(labels_N, size=6000, rng=np.random.default_rng(1))
    assert np.bincount(labels_N[indices]).tolist() == [1000, 0] * 5 + [1000]


def test_delivered_pairs_are_the_data_sets_own_pairs():
    # an image that shows its own index and its label: what arrives must agree, for labels in any order
    labels_N = shuffled_labels()
    images_N = np.arange(len(labels_N)) * 100 + labels_N
    indices = uniform_over_clusters(labels_N, size=len(labels_N), rng=np.random.default_rng(2))
    assert (images_N[indices] // 100 == indices).all()
    assert (images_N[indices] % 100 == labels_N[indices]).all()
    assert indices.min() >= 0
    assert indices.max() < len(labels_N)


def test_every_image_of_a_cluster_is_as_likely_as_another():
    labels_N = shuffled_labels()
    rng = np.random.default_rng(3)
    counts = np.zeros(len(labels_N))
    for _ in range(300):
        np.add.at(counts, uniform_over_clusters(labels_N, size=600, rng=rng), 1)
    for label, size in zip(range(0, 12, 2), SIZES, strict=True):
        expected = 300 * 100 / size
        bound = 6 * np.sqrt(expected)
        assert np.abs(counts[labels_N == label] - expected).max() < bound


def test_the_remainder_goes_to_clusters_drawn_at_random():
    labels_N = np.repeat(np.arange(4), 50).astype(np.int32)
    rng = np.random.default_rng(4)
    shares = np.stack([np.bincount(labels_N[uniform_over_clusters(labels_N, size=42, rng=rng)]) for _ in range(1000)])
    assert set(np.unique(shares)) == {10, 11}
    extra = (shares == 11).sum(axis=0)  # binomial, 1000 draws of probability 1/2
    assert (np.abs(extra - 500) < 6 * np.sqrt(250)).all()


def test_within_a_cluster_nothing_repeats_unless_it_must():
    labels_N = np.array([0] * 5 + [1] * 20, dtype=np.int32)
    indices = uniform_over_clusters(labels_N, size=40, rng=np.random.default_rng(5))
    assert sorted(indices[labels_N[indices] == 1]) == list(range(5, 25))
    assert len(indices[labels_N[indices] == 0]) == 20


def test_the_order_is_shuffled():
    labels_N = np.repeat(np.arange(10), 100).astype(np.int32)
    delivered = labels_N[uniform_over_clusters(labels_N, size=1000, rng=np.random.default_rng(6))]
    assert len(np.unique(delivered[:100])) == 10
    assert abs(np.corrcoef(np.arange(1000), delivered)[0, 1]) < 0.1


def test_the_generator_decides():
    labels_N = shuffled_labels()
    first, again, other = (uniform_over_clusters(labels_N, size=99, rng=np.random.default_rng(s)) for s in (7, 7, 8))
    assert first.dtype == np.int64
    assert (first == again).all()
    assert (first != other).any()


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=40), size=st.integers(0, 100), seed=st.integers(0, 99))
def test_size_is_exact_and_shares_differ_by_one_at_most(labels, size, seed):
    labels_N = np.array(labels, dtype=np.int32)
    indices = uniform_over_clusters(labels_N, size=size, rng=np.random.default_rng(seed))
    assert indices.shape == (size,)
    shares = np.bincount(labels_N[indices], minlength=7)[np.unique(labels_N)]
    assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize("labels_N", [np.zeros(0, np.int32), np.array([0, -1], np.int32)])
def test_no_labels_or_negative_ones_are_refused(labels_N):
    with pytest.raises(ValueError, match="labels must be a non-empty array \\[N\\] of cluster numbers from 0"):
        uniform_over_clusters(labels_N, size=4, rng=np.random.default_rng(0))


def test_the_nearest_of_each_cluster_by_hand():
    labels_N = np.array([0, 1, 0, 0, 1, 2, 0], np.int32)
    distances_N = np.array([4, 1, 1, 3, 0, 9, 3], np.float32)
    # cluster 0 holds images 2, 3, 6, 0 by distance, cluster 1 holds 4, 1
    assert np.flatnonzero(nearest_of_each(labels_N, distances_N, share=0.5)).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(nearest_of_each(labels_N, distances_N, share=0.51)).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.flatnonzero(nearest_of_each(labels_N, distances_N, share=0.01)).tolist() == [2, 4, 5]
    assert nearest_of_each(labels_N, distances_N, share=1.0).all()


def test_only_images_among_the_given_are_drawn_and_all_of_them_is_the_same_as_none_given():
    labels_N = shuffled_labels()
    among_N = np.arange(len(labels_N)) % 2 == 0
    drawn = uniform_over_clusters(labels_N, size=5000, rng=np.random.default_rng(5), among_N=among_N)
    assert (drawn % 2 == 0).all()
    possible = np.unique(labels_N[among_N])
    shares = np.bincount(labels_N[drawn])[possible]
    assert shares.max() - shares.min() <= 1
    one, other = (
        uniform_over_clusters(labels_N, size=500, rng=np.random.default_rng(6), among_N=among)
        for among in (None, np.ones(len(labels_N), dtype=bool))
    )
    assert (one == other).all()


def test_in_turn_every_image_comes_once_before_any_comes_again():
    indices = each_in_turn(7, size=17, rng=np.random.default_rng(0))
    assert indices.dtype == np.int64
    assert [sorted(part.tolist()) for part in np.split(indices[:14], 2)] == [list(range(7))] * 2
    assert len(set(indices[14:].tolist())) == 3
    assert indices[:7].tolist() != indices[7:14].tolist() != list(range(7))


def test_turns_depend_on_the_generator_alone():
    first, again, other = (each_in_turn(50, size=50, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize(("share", "count", "taken"), [(0.1, 30, 3), (0.55, 20, 11), (0.7, 10, 7), (0.07, 100, 7)])
def test_a_share_that_divides_evenly_takes_no_image_more(share, count, taken):
    labels_N, distances_N = np.zeros(count, np.int32), np.arange(count, dtype=np.float32)
    assert np.flatnonzero(nearest_of_each(labels_N, distances_N, share=share)).tolist() == list(range(taken))
