"""Scores by hand, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcluster.errors import NumericsError
from deepcluster.metrics import (
    ari,
    cluster_statistics,
    collapse_warning,
    contingency,
    effective_k,
    hungarian_accuracy,
    nmi,
    purity,
    refuse_non_finite,
)

SCORES = [nmi, ari, hungarian_accuracy, purity]

labelings = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n).map(np.array)] * 2)
)


@pytest.mark.parametrize("score", SCORES)
def test_perfect_labels_under_other_names_score_one(score):
    targets = np.array([0, 0, 0, 1, 1, 2])
    assert score(np.array([7, 7, 7, -1, -1, 0]), targets) == pytest.approx(1)


def test_independent_labels():
    labels, targets = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    assert nmi(labels, targets) == pytest.approx(0, abs=1e-12)
    assert ari(labels, targets) == pytest.approx(-0.5)
    assert hungarian_accuracy(labels, targets) == 0.5
    assert purity(labels, targets) == 0.5
    large = np.repeat(np.arange(4), 100), np.tile(np.arange(4), 100)
    assert nmi(*large) == pytest.approx(0, abs=1e-12)
    assert ari(*large) == pytest.approx(0, abs=0.02)


def test_nmi_by_hand_with_more_clusters_than_classes():
    # H(labels) = log 4, H(targets) = log 2, mutual information log 2: log 2 / ((log 4 + log 2) / 2) = 2 / 3,
    # where the geometric mean would give 0.707, the minimum 1 and the maximum 0.5.
    assert nmi(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])) == pytest.approx(2 / 3)


def test_nmi_by_hand_with_one_mistake():
    labels, targets = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    mutual = 0.5 * math.log(1 / 0.75) + 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(0.25 / 0.125)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert nmi(labels, targets) == pytest.approx(2 * mutual / (math.log(2) + entropy))


def test_ari_by_hand():
    # Pairs together in both 2, in labels 2 + 1 ... : cells 2, 1, 2 of rows 2, 3 and columns 3, 2.
    # index = 1 + 0 + 1 = 2; rows 1 + 3 = 4; columns 3 + 1 = 4; expected 16 / 10; ARI = (2 - 1.6) / (4 - 1.6) = 1 / 6.
    assert ari(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1])) == pytest.approx(1 / 6)


def test_hungarian_matches_one_to_one():
    # Greedy takes the cell of 4 (and then 0); the best matching is 3 + 3.
    labels, targets = np.repeat([0, 0, 1], [4, 3, 3]), np.repeat([0, 1, 0], [4, 3, 3])
    assert contingency(labels, targets).tolist() == [[4, 3], [3, 0]]
    assert hungarian_accuracy(labels, targets) == pytest.approx(0.6)
    assert purity(labels, targets) == pytest.approx(0.7)


def test_hungarian_with_another_number_of_clusters_than_classes():
    targets = np.array([0, 0, 0, 1, 1, 1])
    more, fewer = np.array([0, 0, 1, 2, 2, 2]), np.zeros(6, int)
    assert hungarian_accuracy(more, targets) == pytest.approx(5 / 6)
    assert hungarian_accuracy(fewer, targets) == pytest.approx(1 / 2)
    assert purity(more, targets) == 1
    assert nmi(fewer, targets) == 0


def test_contingency_by_hand():
    table = contingency(np.array([5, 5, -1, 5]), np.array([10, 30, 20, 30]))
    assert table.tolist() == [[0, 1, 0], [1, 0, 2]]
    assert table.dtype == np.int64


@given(labelings, st.permutations(range(6)), st.randoms(use_true_random=False))
def test_names_of_clusters_and_order_of_rows_do_not_matter(pair, names, random):
    labels, targets = pair
    order = np.array(random.sample(range(len(labels)), len(labels)))
    for score in SCORES:
        value = score(labels, targets)
        assert score(np.array(names)[labels], targets) == pytest.approx(value, abs=1e-9)
        assert score(labels, np.array(names)[targets]) == pytest.approx(value, abs=1e-9)
        assert score(labels[order], targets[order]) == pytest.approx(value, abs=1e-9)


@given(labelings)
def test_ranges_and_symmetry(pair):
    labels, targets = pair
    assert 0 <= nmi(labels, targets) <= 1
    assert nmi(labels, targets) == pytest.approx(nmi(targets, labels), abs=1e-9)
    assert hungarian_accuracy(labels, targets) == pytest.approx(hungarian_accuracy(targets, labels))
    assert 0 < hungarian_accuracy(labels, targets) <= purity(labels, targets) <= 1
    assert nmi(labels, labels) == pytest.approx(1)


@pytest.mark.parametrize("score", [*SCORES, contingency])
def test_labelings_of_unequal_length_or_none_are_refused(score):
    with pytest.raises(ValueError, match=r"equal shape \[N\] expected; got \(3,\) and \(2,\)"):
        score(np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"got \(0,\) and \(0,\)"):
        score(np.zeros(0, int), np.zeros(0, int))


def test_effective_k_by_hand():
    assert effective_k(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert effective_k(np.array([20, 0, 0, 0])) == pytest.approx(1)
    assert effective_k(np.array([2, 1, 1])) == pytest.approx(2**1.5)
    with pytest.raises(ValueError, match="at least one image; got a total of 0"):
        effective_k(np.zeros(3, int))


def test_cluster_statistics_by_hand():
    assert cluster_statistics(np.array([6, 0, 2, 0])) == {
        "smallest": 2,
        "largest": 6,
        "empty": 2,
        "effective_k": pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
        "largest_share": 0.75,
    }


@pytest.mark.parametrize("sizes", [[5] * 10, [60, 40], [30, 10, 10, 10, 10, 10, 10, 5, 4, 1], [74, 26]])
def test_no_warning_for_even_clusters(sizes):
    assert collapse_warning(np.array(sizes)) is None


def test_collapse_warnings():
    dominated = np.array([991, 3, 3, 3])
    assert collapse_warning(dominated) == "collapse: the largest of 4 clusters holds 99% of the images"
    assert collapse_warning(np.array([76, 24])) == "collapse: the largest of 2 clusters holds 76% of the images"
    uneven = np.array([40, 40, 20] + [0] * 97)
    expected = "collapse: 100 clusters are as uneven as 2.9 equal ones (effective k)"
    assert collapse_warning(uneven) == expected
    assert collapse_warning(uneven, min_effective_share=0.02) is None
    assert collapse_warning(dominated, max_largest_share=1.0, min_effective_share=0.1) is None


def test_refused_rows_are_named_and_counted():
    rows = np.ones((20, 3), np.float32)
    assert refuse_non_finite(rows, "features") is None
    rows[2:18:2, 1] = np.nan
    with pytest.raises(NumericsError) as caught:
        refuse_non_finite(rows, "features", first_row=100)
    expected = "features: must be finite; got NaN or infinity in row 102, 104, 106, 108, 110 and 3 more"
    assert str(caught.value) == expected
