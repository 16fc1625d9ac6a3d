"""k-means: faiss and scikit-learn, with the same definition of labels, distances and objective."""

import re
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans

from deepcluster.clustering.kmeans import KMeansBackend, kmeans
from deepcluster.errors import NumericsError, UserError
from deepcluster.metrics import ari

BACKENDS = get_args(KMeansBackend)
LLOYD = ("faiss", "sklearn")  # the others do not look at every row in every step
START = {"faiss": "random", "sklearn": "k-means++", "minibatch": "k-means++"}


def make_rows(count=500, d=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, d)).astype(np.float32)


def make_blobs(offset=0.0, centres=6, each=50, d=5):
    rng = np.random.default_rng(4)
    means = rng.normal(size=(centres, d)) * 20
    truth = np.repeat(np.arange(centres), each)
    return (means[truth] + rng.normal(size=(len(truth), d)) + offset).astype(np.float32), truth


def squared_distances(rows, centroids):
    return np.square(rows[:, None].astype(np.float64) - centroids[None].astype(np.float64)).sum(axis=2)


def assert_consistent(found, rows, k):
    """Labels are nearest centroids, distances and sizes theirs, and the types those documented."""
    exact = squared_distances(rows, found.centroids_Kd)
    own = exact[np.arange(len(rows)), found.labels_N]
    assert (own <= exact.min(axis=1) * (1 + 1e-12)).all()
    np.testing.assert_allclose(found.distances_N, own, rtol=1e-6, atol=0)
    assert found.sizes_K.tolist() == np.bincount(found.labels_N, minlength=k).tolist()
    assert (np.diff(found.objective) <= 0).all()
    assert own.sum() <= found.objective[-1] * (1 + 1e-9)
    dtypes = [a.dtype for a in (found.labels_N, found.distances_N, found.centroids_Kd, found.objective, found.sizes_K)]
    assert dtypes == [np.int32, np.float32, np.float32, np.float64, np.int64]
    assert found.centroids_Kd.shape == (k, rows.shape[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("count", "k"), [(500, 2), (500, 40), (500, 499), (500, 500), (3000, 100)])
def test_result_is_consistent_and_no_cluster_is_empty(backend, count, k):
    rows = make_rows(count)
    found = kmeans(rows, k=k, backend=backend, seed=1)
    assert_consistent(found, rows, k)
    assert found.sizes_K.min() >= 1


@pytest.mark.parametrize("backend", LLOYD)
@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_separated_blobs_are_found_as_by_scikit_learn(backend, offset):
    rows, truth = make_blobs(offset)
    reference = KMeans(6, n_init=10, random_state=0).fit(rows.astype(np.float64))
    found = kmeans(rows, k=6, backend=backend, init=START[backend], restarts=10, seed=3)
    assert ari(found.labels_N, truth) == 1
    assert found.objective[-1] == pytest.approx(reference.inertia_, rel=1e-5)
    assert found.distances_N.sum() == pytest.approx(reference.inertia_, rel=1e-5)
    order, expected = np.argsort(found.centroids_Kd[:, 0]), np.argsort(reference.cluster_centers_[:, 0])
    np.testing.assert_allclose(found.centroids_Kd[order], reference.cluster_centers_[expected], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", LLOYD)
def test_same_start_gives_what_lloyd_gives_by_hand(backend):
    rows = np.array([[0.0], [1.0], [2.0], [10.0], [12.0]], np.float32)
    # Start 0 and 1: {0} {1, 2, 10, 12} -> 0, 6.25 -> {0, 1, 2} {10, 12} -> 1, 11.
    start = np.array([[0.0], [1.0]], np.float32)
    one = kmeans(rows, k=2, backend=backend, iterations=1, seed=0, initial_centroids_Kd=start)
    np.testing.assert_allclose(one.centroids_Kd, [[0], [6.25]])
    assert one.objective[-1] == pytest.approx(0 + 1 + 4 + 3.75**2 + 5.75**2)
    two = kmeans(rows, k=2, backend=backend, iterations=2, seed=0, initial_centroids_Kd=start)
    np.testing.assert_allclose(two.centroids_Kd, [[1], [11]])
    assert two.labels_N.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(two.distances_N, [1, 0, 1, 1, 1])
    assert two.objective[-1] == pytest.approx(4)
    if backend == "faiss":
        np.testing.assert_allclose(two.objective, [0 + 1 + 4 + 3.75**2 + 5.75**2, 4], rtol=1e-5)


@pytest.mark.parametrize("k", [3, 20, 200])
def test_objective_never_rises_and_ends_at_the_sum_of_distances(k):
    rows = make_rows(800, 4)
    found = kmeans(rows, k=k, backend="faiss", iterations=25, seed=2)
    assert 5 < len(found.objective) <= 25
    assert (np.diff(found.objective) <= 0).all()
    assert found.objective[0] > found.objective[-1]
    assert found.objective[-1] == pytest.approx(found.distances_N.sum(dtype=np.float64), rel=1e-6)


def test_backends_reach_the_same_objective_from_the_same_start():
    rows = make_rows(2000, 6)
    start = rows[:15]
    reached = [
        kmeans(rows, k=15, backend=b, iterations=100, seed=0, initial_centroids_Kd=start).objective[-1]
        for b in BACKENDS
    ]
    assert reached[0] == pytest.approx(reached[1], rel=1e-4)


def test_all_rows_train():
    """The default of 256 rows a centroid would leave most of these out, and move the centroids off the means."""
    rows = make_rows(5000, 3)
    found = kmeans(rows, k=2, backend="faiss", iterations=200, seed=0)
    for cluster in range(2):
        mean = rows[found.labels_N == cluster].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(found.centroids_Kd[cluster], mean, atol=2e-3)


def test_nothing_is_printed(capfd):
    kmeans(make_rows(50), k=20, backend="faiss", seed=0)
    kmeans(np.ones((50, 4), np.float32), k=20, backend="faiss", seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", LLOYD)
def test_a_shared_offset_changes_nothing(backend):
    rows = np.round(make_rows(400, 20) * 64).astype(np.float32) / 64  # exact also after the move
    here, there = (kmeans(r, k=10, backend=backend, seed=5) for r in (rows, rows + np.float32(32768)))
    assert ari(here.labels_N, there.labels_N) > 0.98
    assert there.objective[-1] == pytest.approx(here.objective[-1], rel=1e-5)
    assert_consistent(there, rows + np.float32(32768), 10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("restarts", [1, 3])
def test_same_seed_same_bytes_other_seed_other_clusters(backend, restarts):
    rows = make_rows(2000, 16)
    first, second, other = (kmeans(rows, k=30, backend=backend, restarts=restarts, seed=s) for s in (8, 8, 9))
    for name in ("labels_N", "distances_N", "centroids_Kd", "objective", "sizes_K"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.labels_N.tobytes() != other.labels_N.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_several_restarts_the_best_is_kept(backend):
    rows = make_rows(300, 2)
    reached = [
        kmeans(rows, k=12, backend=backend, init=START[backend], restarts=r, seed=0).objective[-1]
        for r in (1, 2, 4, 8, 16)
    ]
    assert sorted(reached, reverse=True) == reached
    assert reached[-1] < reached[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**63])
def test_any_seed_will_do(backend, seed):
    assert kmeans(make_rows(60), k=3, backend=backend, restarts=2, seed=seed).sizes_K.sum() == 60


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_fewer_distinct_rows_than_k(backend, seed):
    distinct = make_rows(6, 4, seed)
    rows = distinct[np.random.default_rng(seed).integers(0, 6, 300)]
    found = kmeans(rows, k=20, backend=backend, seed=seed)
    assert_consistent(found, rows, 20)
    assert np.count_nonzero(found.sizes_K) == 6
    assert not found.distances_N.any()
    for label in np.unique(found.labels_N):
        assert len(np.unique(rows[found.labels_N == label], axis=0)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 0.1, 7.0])
def test_equal_rows_are_one_cluster(backend, value):
    rows = np.full((40, 3), value, np.float32)
    found = kmeans(rows, k=5, backend=backend, seed=0)
    assert sorted(found.sizes_K.tolist()) == [0, 0, 0, 0, 40]
    assert not found.distances_N.any()
    assert_consistent(found, rows, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_as_many_distinct_rows_as_k_among_many_equal_ones(backend, seed):
    """A thousand rows in one point and nine alone: faiss's random start sees the one point only."""
    rows = np.concatenate([np.zeros((1000, 3), np.float32), make_rows(9, 3, seed)])
    found = kmeans(rows, k=10, backend=backend, seed=seed)
    assert_consistent(found, rows, 10)
    assert sorted(found.sizes_K.tolist()) == [1] * 9 + [1000]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_an_empty_cluster_takes_a_far_row_and_all_that_is_nearer_to_it(backend, seed):
    """A thousand rows in one point and nine pairs: each cluster filled with one of a pair gets the other too."""
    far = make_rows(9, 3, seed)
    rows = np.concatenate([np.zeros((1000, 3), np.float32), far, far + np.float32(1e-3)])
    found = kmeans(rows, k=10, backend=backend, init=START[backend], iterations=1, seed=seed)
    assert_consistent(found, rows, 10)
    assert found.labels_N[1000:1009].tolist() == found.labels_N[1009:].tolist()
    assert sorted(found.sizes_K.tolist()) == [2] * 9 + [1000]


def test_a_cluster_that_starts_empty_is_filled():
    rows = np.array([[0.0], [0.0], [0.0], [0.0], [9.0], [10.0]], np.float32)
    start = np.array([[0.0], [10.0], [1e6]], np.float32)
    found = kmeans(rows, k=3, backend="faiss", iterations=1, seed=0, initial_centroids_Kd=start)
    assert_consistent(found, rows, 3)
    assert sorted(found.sizes_K.tolist()) == [1, 1, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_be_read_only_and_not_contiguous(backend):
    rows = make_rows(200, 12)
    rows.flags.writeable = False
    view = rows[::2, ::3]
    found = kmeans(view, k=4, backend=backend, seed=0)
    assert found.labels_N.tobytes() == kmeans(view.copy(), k=4, backend=backend, seed=0).labels_N.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_rows_does_not_matter_for_a_given_start(backend):
    rows, _ = make_blobs()
    order = np.random.default_rng(0).permutation(len(rows))
    first = kmeans(rows, k=6, backend=backend, seed=0, initial_centroids_Kd=rows[::50])
    second = kmeans(rows[order], k=6, backend=backend, seed=0, initial_centroids_Kd=rows[::50])
    assert np.array_equal(first.labels_N[order], second.labels_N)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("k", "text"),
    [
        (100, "cluster.k: must be <= N = 50 images; got 100"),
        (51, "cluster.k: must be <= N = 50 images; got 51"),
        (1, "cluster.k: must be >= 2; got 1"),
        (0, "cluster.k: must be >= 2; got 0"),
    ],
)
def test_k_that_does_not_fit(backend, k, text):
    with pytest.raises(NumericsError) as caught:
        kmeans(make_rows(50), k=k, backend=backend, seed=0)
    assert str(caught.value) == text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(value):
    rows = make_rows(50)
    rows[[3, 41], 2] = value
    with pytest.raises(NumericsError) as caught:
        kmeans(rows, k=5, backend="faiss", seed=0)
    assert str(caught.value) == "rows: must be finite; got NaN or infinity in row 3, 41"


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_too_large_for_sums_of_squares_are_refused(backend):
    """faiss would end the process: its check that a sum is finite fails in a thread of its own."""
    rows_Nd = np.array([[3e38], [0.0], [-3e38]], np.float32)
    message = (
        "rows: values up to 3.0e+38 are too large for sums of squares in float32; scale them down to 1e+15 at most"
    )
    with pytest.raises(NumericsError, match=re.escape(message)):
        kmeans(rows_Nd, k=2, backend=backend, seed=0)
    assert np.isfinite(kmeans(rows_Nd / np.float32(4e23), k=2, backend=backend, seed=0).centroids_Kd).all()


def test_wrong_calls():
    rows = make_rows(50)
    with pytest.raises(ValueError, match=r"must have shape \(5, 8\); got \(4, 8\)"):
        kmeans(rows, k=5, backend="faiss", seed=0, initial_centroids_Kd=rows[:4])
    with pytest.raises(ValueError, match="iterations and restarts must be >= 1; got 0 and 1"):
        kmeans(rows, k=5, backend="faiss", seed=0, iterations=0)


def test_a_gpu_insisted_on_must_be_there(monkeypatch):
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(UserError, match="a GPU was asked for and faiss sees none"):
        kmeans(make_rows(50), k=5, backend="faiss", seed=0, gpu=True)
    assert kmeans(make_rows(50), k=5, backend="faiss", seed=0, gpu=None).sizes_K.sum() == 50


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (24, 2), elements=st.integers(-3, 3).map(float)), st.integers(2, 24), st.integers(0, 99))
def test_ties_and_duplicates(rows, k, seed):
    found = kmeans(rows, k=k, backend="faiss", iterations=6, seed=seed)
    assert_consistent(found, rows, k)
    distinct = len(np.unique(rows, axis=0))
    assert np.count_nonzero(found.sizes_K) == k if distinct >= k else np.count_nonzero(found.sizes_K) == distinct
