"""What must not matter to the sampler, PCA and k-means: order of rows, rotation, duplicates, offset, scale, numbering.

Data are made so that the answer is known to be stable: spectra with gaps for PCA, separated groups for k-means. So the
tolerances bound rounding alone, and say from where.
"""

import numpy as np
import pytest
from fuzzing import REFUSED, outcomes
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from deepcluster.clustering.kmeans import kmeans
from deepcluster.metrics import ari
from deepcluster.reduction.pca import fit_transform
from deepcluster.sampling import each_in_turn, nearest_of_each, uniform_over_clusters

SEEDS = st.integers(0, 2**31 - 1)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(lambda labels: np.array(labels, np.int32))


def orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random rotation, float64 [size, size]."""
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def sample(labels_N: np.ndarray, size: int, seed: int, **kwargs: np.ndarray) -> np.ndarray:
    return uniform_over_clusters(labels_N, size=size, rng=np.random.default_rng(seed), **kwargs)


def test_the_sampler_does_not_care_how_clusters_are_numbered_or_images_ordered():
    def act(given: tuple[np.ndarray, int, int, int]) -> str:
        labels_N, size, seed, factor = given
        drawn = sample(labels_N, size, seed)
        # numbers that ascend alike give the same draws, to the index
        assert (sample(labels_N * factor + 3, size, seed) == drawn).all()
        # in another order, as many from each cluster, and as often the same number of repeats
        order = np.random.default_rng(seed).permutation(len(labels_N))
        moved = sample(labels_N[order], size, seed)
        assert (np.bincount(labels_N[order][moved]) == np.bincount(labels_N[drawn])).all()
        repeats = [np.sort(np.bincount(found, minlength=len(labels_N))) for found in (drawn, moved)]
        sizes = np.bincount(labels_N)
        if size <= sizes[sizes > 0].min():
            assert repeats[0].max(initial=0) <= 1
            assert repeats[1].max(initial=0) <= 1
        # all images allowed is as none named; a single one allowed in each cluster is all that is drawn
        assert (sample(labels_N, size, seed, among_N=np.ones(len(labels_N), bool)) == drawn).all()
        firsts = np.unique(labels_N, return_index=True)[1]
        only_N = np.isin(np.arange(len(labels_N)), firsts)
        assert set(sample(labels_N, size, seed, among_N=only_N)) <= set(firsts.tolist())
        return "drawn"

    inputs = st.tuples(LABELS, st.integers(0, 100), SEEDS, st.integers(1, 9))
    outcomes("sampler: clusters", inputs, act, quick=50)


def test_the_nearest_do_not_depend_on_order_scale_or_duplicates():
    def act(given: tuple[np.ndarray, float, int]) -> str:
        labels_N, share, seed = given
        rng = np.random.default_rng(seed)
        distances_N = rng.permutation(len(labels_N)).astype(np.float32)  # no two alike
        nearest_N = nearest_of_each(labels_N, distances_N, share=share)
        order = rng.permutation(len(labels_N))
        assert (nearest_of_each(labels_N[order], distances_N[order], share=share) == nearest_N[order]).all()
        assert (nearest_of_each(labels_N, distances_N * 4 + 1, share=share) == nearest_N).all()
        twice = nearest_of_each(np.repeat(labels_N, 2), np.repeat(distances_N, 2), share=share)
        assert (twice[::2] >= twice[1::2]).all()  # of two copies the first goes first
        assert set(np.flatnonzero(twice) // 2) <= set(np.flatnonzero(nearest_N))
        return "chosen"

    inputs = st.tuples(LABELS, st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.7, 1.0]), SEEDS)
    outcomes("sampler: nearest", inputs, act, quick=50)


def test_turns_are_fair():
    def act(given: tuple[int, int, int]) -> str:
        count, size, seed = given
        counts = np.bincount(each_in_turn(count, size=size, rng=np.random.default_rng(seed)), minlength=count)
        assert len(counts) == count
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
        return "drawn"

    inputs = st.tuples(st.integers(1, 30), st.integers(1, 100), SEEDS)
    outcomes("sampler: turns", inputs, act, quick=30)


def with_gaps(rng: np.random.Generator, count: int, features: int) -> tuple[np.ndarray, int]:
    """Rows float64 whose standard deviations along (rotated) axes halve from one to the next, and how many axes."""
    rank = min(features, count - 1, 5)
    scores = rng.normal(size=(count, rank))
    frame = np.linalg.qr(scores - scores.mean(axis=0))[0]  # uncorrelated to the last digit
    return frame * 0.5 ** np.arange(rank) @ orthogonal(rng, features)[:rank] * np.sqrt(count), rank


@pytest.mark.parametrize("backend", ["streaming", "sklearn", "faiss"])
def test_pca_does_not_care_for_order_rotation_duplicates_or_offset(backend):
    def act(given: tuple[int, int, int, bool, bool]) -> str:
        seed, count, features, whiten, normalize = given
        rng = np.random.default_rng(seed)
        rows_ND, rank = with_gaps(rng, count, features)

        def reduced(values: np.ndarray) -> np.ndarray:
            found = fit_transform(
                values.astype(np.float32), backend=backend, components=rank, whiten=whiten, normalize=normalize, seed=1
            )
            return found.reduced_Nd

        before = reduced(rows_ND)
        # Rounding the features to float32 moves them by 2**-24 of the largest. The smallest axis is 1/16 of that, and
        # variances are at least 1/340 of the largest apart, so an axis turns by 16 x 340 x 2**-24 = 3e-4 at worst
        # (Davis and Kahan). An offset of 8 has a digit less for the rest.
        close = {"rtol": 0, "atol": 1e-3 * np.abs(before).max()}
        order = rng.permutation(count)
        np.testing.assert_allclose(reduced(rows_ND[order]), before[order], **close)
        doubled = reduced(np.repeat(rows_ND, 2, axis=0))
        # divisor 2N - 1 in the place of N - 1: whitened rows shrink by what both differ, unless they are normalised
        shrunk = np.sqrt(count / (count - 1) / (2 * count / (2 * count - 1))) if whiten and not normalize else 1.0
        np.testing.assert_allclose(doubled[::2] / shrunk, before, **close)
        assert (doubled[::2] == doubled[1::2]).all()
        np.testing.assert_allclose(reduced(rows_ND + 8.0), before, **(close | {"atol": 10 * close["atol"]}))
        turned = reduced(rows_ND @ orthogonal(rng, features))
        signs = np.sign((turned * before).sum(axis=0))  # an axis has no sign of its own
        np.testing.assert_allclose(turned * signs, before, **close)
        return f"rank {rank}"

    inputs = st.tuples(SEEDS, st.integers(8, 40), st.integers(2, 9), st.booleans(), st.booleans())
    outcomes(f"pca: {backend}", inputs, act, quick=5, cost=10)


@pytest.mark.parametrize("backend", ["streaming", "sklearn", "faiss"])
def test_pca_of_any_features_is_finite_or_refused(backend):
    values = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0, 3e38, 1e-45, 1e20])
    shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)

    def act(features_ND: np.ndarray) -> str:
        found = fit_transform(features_ND, backend=backend, components=1, whiten=True, normalize=False, seed=1)
        assert np.isfinite(found.reduced_Nd).all()
        assert np.isfinite(found.components_dD).all()
        assert np.isfinite(found.explained_variance_d).all()
        assert (found.explained_variance_ratio_d >= 0).all()
        assert (found.explained_variance_ratio_d <= 1 + 1e-6).all()
        return "reduced"

    counts = outcomes(f"pca: any features, {backend}", arrays(np.float32, shapes, elements=values), act, quick=20)
    assert counts["reduced"] >= counts.total() // 10


def groups(rng: np.random.Generator, k: int, each: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in k groups of radius 1 whose centres lie 20 apart at least, their groups, and the centres."""
    centres = orthogonal(rng, max(k, d))[:k, :d] if d >= k else np.zeros((k, d))
    if d < k:
        centres[:, 0] = np.arange(k)
    centres = centres * 20
    labels_N = np.repeat(np.arange(k), each)
    noise = rng.uniform(-1, 1, (k * each, d)) / np.sqrt(d)
    return centres[labels_N] + noise, labels_N, centres


@pytest.mark.parametrize("backend", ["faiss", "sklearn", "minibatch"])
def test_kmeans_does_not_care_for_order_rotation_duplicates_or_offset(backend):
    def act(given: tuple[int, int, int, int]) -> str:
        seed, k, each, d = given
        rng = np.random.default_rng(seed)
        if backend == "minibatch":  # which draws its batches: of few rows it may draw none of a group
            each += 20
        rows_Nd, truth_N, centres = groups(rng, k, each, d)

        def clustered(rows: np.ndarray, start: np.ndarray):
            return kmeans(
                rows.astype(np.float32), k=k, backend=backend, seed=1, initial_centroids_Kd=start.astype(np.float32)
            )

        before = clustered(rows_Nd, centres)
        assert (before.labels_N == truth_N).all()
        # sums of up to 40 numbers below 21 in float32: 40 x 21 x 2**-24; a mini-batch's means are of the rows it drew
        close = {"rtol": 0, "atol": 1e-4} if backend != "minibatch" else {"rtol": 0, "atol": 2.0}
        order = rng.permutation(len(rows_Nd))
        moved = clustered(rows_Nd[order], centres)
        assert (moved.labels_N == before.labels_N[order]).all()
        np.testing.assert_allclose(moved.centroids_Kd, before.centroids_Kd, **close)
        numbered = rng.permutation(k)
        renamed = clustered(rows_Nd, centres[numbered])
        assert (numbered[renamed.labels_N] == before.labels_N).all()
        turn = orthogonal(rng, d)
        turned = clustered(rows_Nd @ turn, centres @ turn)
        assert (turned.labels_N == before.labels_N).all()
        np.testing.assert_allclose(turned.centroids_Kd @ turn.T, before.centroids_Kd, **close)
        doubled = clustered(np.repeat(rows_Nd, 2, axis=0), centres)
        assert (doubled.labels_N == np.repeat(before.labels_N, 2)).all()
        np.testing.assert_allclose(doubled.centroids_Kd, before.centroids_Kd, **close)
        offset = clustered(rows_Nd + 100, centres + 100)
        assert (offset.labels_N == before.labels_N).all()
        free = kmeans(rows_Nd.astype(np.float32), k=k, backend=backend, seed=seed, init="k-means++", restarts=3)
        return "the groups" if ari(free.labels_N, truth_N) == 1 else "others, from k-means++"

    inputs = st.tuples(SEEDS, st.integers(2, 5), st.integers(2, 8), st.integers(1, 6))
    costly = backend == "minibatch"
    counts = outcomes(f"k-means: {backend}", inputs, act, quick=3 if costly else 6, cost=100 if costly else 10)
    assert counts["the groups"] >= counts.total() // 2


@pytest.mark.parametrize("backend", ["faiss", "sklearn", "minibatch"])
def test_kmeans_of_any_rows_is_what_it_says_or_refused(backend):
    values = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0, 3e38, 1e-45, 1e20])
    small = st.integers(-2, 2).map(float)
    shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
    rows = st.one_of(arrays(np.float32, shapes, elements=small), arrays(np.float32, shapes, elements=values))

    def act(given: tuple[np.ndarray, int, int, bool]) -> str:
        rows_Nd, k, seed, spherical = given
        spherical = spherical and backend == "faiss"
        found = kmeans(rows_Nd, k=k, backend=backend, seed=seed, spherical=spherical)
        assert np.isfinite(found.centroids_Kd).all()
        assert (found.sizes_K == np.bincount(found.labels_N, minlength=k)).all()
        assert (found.distances_N >= 0).all()
        _, same = np.unique(rows_Nd + 0.0, axis=0, return_inverse=True)  # -0.0 is 0.0
        for group in range(same.max() + 1):  # duplicates share their cluster
            assert len(set(found.labels_N[same.reshape(-1) == group].tolist())) == 1
        if not spherical and same.max() + 1 >= k:
            assert found.sizes_K.all()
        return "clustered"

    inputs = st.tuples(rows, st.sampled_from([2, 2, 3, 4, 1]), st.integers(0, 99), st.booleans())
    counts = outcomes(f"k-means: any rows, {backend}", inputs, act, quick=25)
    assert counts["clustered"] >= counts.total() // 10
    assert counts[REFUSED] >= 1
