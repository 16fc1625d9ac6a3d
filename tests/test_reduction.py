"""PCA: all backends against scikit-learn's full SVD in float64."""

import time
import weakref
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from deepcluster import blockwise
from deepcluster.errors import NumericsError
from deepcluster.reduction.moments import moments
from deepcluster.reduction.pca import Backend, fit_transform, l2_normalize, transform
from deepcluster.reduction.streaming import fit_streaming, project

BACKENDS = get_args(Backend)


def make_features(count=600, features=24, offset=0.0, seed=0):
    """Correlated features with standard deviations from 3 down to 0.03 along random axes, all moved by `offset`."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(features, features)))
    spread = np.geomspace(3, 0.03, features)
    return (rng.normal(size=(count, features)) * spread @ axes + offset).astype(np.float32)


def reduce(features, backend, *, components=10, whiten=True, normalize=False, seed=0):
    return fit_transform(
        features, backend=backend, components=components, whiten=whiten, normalize=normalize, seed=seed
    )


def same_signs(rows, reference):
    """`rows` with each row's sign that of the reference."""
    return rows * np.sign(np.einsum("dn,dn->d", rows, reference))[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("shape", [(600, 24), (30, 50), (5000, 12)])
@pytest.mark.parametrize("whiten", [True, False])
def test_equals_full_svd_in_float64_up_to_sign(backend, offset, shape, whiten):
    features = make_features(*shape, offset=offset)
    reference = PCA(10, whiten=whiten, svd_solver="full").fit(features.astype(np.float64))
    expected = reference.transform(features.astype(np.float64))
    found = reduce(features, backend, whiten=whiten)
    tolerance = (
        2e-3 if offset else 1e-4
    )  # float32 rounds values of 100 to 4e-6, a ten-thousandth of the tenth component
    np.testing.assert_allclose(
        same_signs(found.components_dD, reference.components_), reference.components_, atol=tolerance
    )
    np.testing.assert_allclose(same_signs(found.reduced_Nd.T, expected.T).T, expected, atol=tolerance * 5)
    np.testing.assert_allclose(found.explained_variance_d, reference.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio_d, reference.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(found.mean_D, reference.mean_, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 0.5, 1000.0])
def test_whitened_components_have_unit_variance_and_no_correlation(backend, offset):
    reduced = reduce(make_features(2000, 40, offset), backend, components=20).reduced_Nd
    np.testing.assert_allclose(np.cov(reduced.T.astype(np.float64)), np.eye(20), atol=2e-3)
    np.testing.assert_allclose(reduced.mean(axis=0, dtype=np.float64), 0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whitening_of_small_features_with_a_common_offset(backend):
    rng = np.random.default_rng(1)
    features = (0.5 + 0.01 * rng.normal(size=(800, 256))).astype(np.float32)
    deviations = reduce(features, backend, components=32).reduced_Nd.std(axis=0, ddof=1, dtype=np.float64)
    np.testing.assert_allclose(deviations, 1, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_largest_loading_is_positive_and_backends_agree(backend, offset):
    features = make_features(offset=offset)
    found, reference = reduce(features, backend), reduce(features, "streaming")
    largest = np.abs(found.components_dD).argmax(axis=1)
    assert (found.components_dD[np.arange(10), largest] > 0).all()
    np.testing.assert_allclose(found.reduced_Nd, reference.reduced_Nd, atol=5e-3 if offset else 2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("count", [5, 50])
def test_constant_features_give_zeros(backend, whiten, value, count):
    found = reduce(np.full((count, 8), value, np.float32), backend, components=4, whiten=whiten, normalize=True)
    assert not found.reduced_Nd.any()
    assert not found.explained_variance_d.any()
    assert not found.explained_variance_ratio_d.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_of_large_features_is_no_variance(backend):
    steps = np.random.default_rng(5).integers(-1, 2, size=(100, 8))
    features = (np.float32(1000) + steps * np.spacing(np.float32(1000))).astype(np.float32)
    assert features.std() > 0
    assert not reduce(features, backend, components=4).reduced_Nd.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(400, 12), (10, 30)])
def test_directions_without_variance_are_zeros_and_leave_the_others_alone(backend, shape):
    rng = np.random.default_rng(2)
    features = (rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1])) + 5).astype(np.float32)
    found = reduce(features, backend, components=8)
    assert (found.explained_variance_d > 0).tolist() == [True] * 3 + [False] * 5
    assert not found.components_dD[3:].any()
    assert not found.reduced_Nd[:, 3:].any()
    np.testing.assert_allclose(found.reduced_Nd[:, :3].std(axis=0, ddof=1), 1, atol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio_d.sum(), 1, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_many_components_as_images_leaves_the_last_one_zero(backend):
    found = reduce(make_features(10, 30), backend, components=10)
    assert not found.reduced_Nd[:, 9].any()
    np.testing.assert_allclose(found.reduced_Nd[:, :9].std(axis=0, ddof=1), 1, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalized_rows_have_norm_one_in_the_whitened_direction(backend):
    features = make_features()
    plain, unit = reduce(features, backend), reduce(features, backend, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit.reduced_Nd, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(plain.reduced_Nd, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.reduced_Nd * lengths, plain.reduced_Nd, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whiten", [True, False])
def test_transform_of_the_fitted_rows_is_what_the_fit_returned(backend, whiten):
    features = make_features(offset=3)
    fit = reduce(features, backend, whiten=whiten, normalize=True)
    parameters = (fit.components_dD, fit.mean_D, fit.explained_variance_d)
    again = transform(features, *parameters, whiten=whiten, normalize=True)
    assert again.tobytes() == fit.reduced_Nd.tobytes()
    some = transform(features[100:150], *parameters, whiten=whiten, normalize=True)
    np.testing.assert_allclose(some, fit.reduced_Nd[100:150], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_input_gives_the_same_bytes_and_no_seed_matters(backend):
    features = make_features(5000, 32, 1.0)
    first, second = reduce(features, backend, seed=1), reduce(features, backend, seed=2)
    for name in ("reduced_Nd", "components_dD", "mean_D", "explained_variance_d", "explained_variance_ratio_d"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
        assert getattr(first, name).dtype == np.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_rows_and_features_does_not_matter(backend):
    features, rng = make_features(), np.random.default_rng(3)
    rows, columns = rng.permutation(600), rng.permutation(24)
    found, shuffled = reduce(features, backend), reduce(features[rows][:, columns], backend)
    np.testing.assert_allclose(shuffled.reduced_Nd, found.reduced_Nd[rows], atol=5e-4)
    np.testing.assert_allclose(shuffled.components_dD, found.components_dD[:, columns], atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_is_left_alone_and_may_be_read_only(backend):
    features = make_features(offset=2)
    before = features.copy()
    features.flags.writeable = False
    reduce(features, backend)
    assert np.array_equal(features, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_components_than_rank_allows(backend):
    with pytest.raises(NumericsError) as caught:
        reduce(np.zeros((1797, 128), np.float32), backend, components=256)
    assert str(caught.value) == "pca.components: must be <= min(N, D) = min(1797, 128); got 256"
    with pytest.raises(NumericsError, match=r"^pca\.components: must be <= min\(N, D\) = min\(5, 128\); got 6$"):
        reduce(np.zeros((5, 128), np.float32), backend, components=6)
    with pytest.raises(NumericsError, match=r"^pca\.components: must be >= 1; got 0$"):
        reduce(np.zeros((5, 128), np.float32), backend, components=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_image_is_refused(backend):
    with pytest.raises(NumericsError, match=r"^pca: needs at least 2 images; got 1$"):
        reduce(np.ones((1, 4), np.float32), backend, components=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(backend, value):
    features = make_features()
    features[[7, 300], [1, 2]] = value
    with pytest.raises(NumericsError) as caught:
        reduce(features, backend)
    assert str(caught.value) == "features: must be finite; got NaN or infinity in row 7, 300"


def test_streaming_counts_rows_over_blocks():
    blocks = np.split(make_features(), 6)
    blocks[4] = blocks[4].copy()
    blocks[4][[0, 3]] = np.nan
    with pytest.raises(NumericsError, match=r"in row 400, 403$"):
        fit_streaming(lambda: iter(blocks), components=3)
    with pytest.raises(NumericsError, match=r"min\(100, 24\); got 25$"):
        fit_streaming(lambda: iter(blocks[:1]), components=25)
    with pytest.raises(NumericsError, match=r"needs at least 2 images; got 0$"):
        fit_streaming(lambda: iter([]), components=1)


@pytest.mark.parametrize("cuts", [[], [1], [300], [2, 2, 599], list(range(1, 600, 7))])
def test_streaming_does_not_depend_on_the_blocks(cuts):
    features = make_features(offset=20)
    features[:2] += 30  # a first block unlike the rest
    reference = PCA(10, svd_solver="full").fit(features.astype(np.float64))
    fit = fit_streaming(lambda: iter(np.split(features, cuts)), components=10)
    np.testing.assert_allclose(fit.explained_variance_d, reference.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(same_signs(fit.components_dD, reference.components_), reference.components_, atol=1e-6)
    assert fit.total_variance == pytest.approx(features.astype(np.float64).var(axis=0, ddof=1).sum(), rel=1e-9)
    components, mean, variance, _ = fit
    reduced = project(features[5:9], components, mean, variance, whiten=True, normalize=False)
    expected = reference.transform(features[5:9].astype(np.float64)) / np.sqrt(reference.explained_variance_)
    np.testing.assert_allclose(np.abs(reduced), np.abs(expected), atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_do_not_depend_on_the_number_of_threads(backend, monkeypatch):
    features = make_features(20_000, 64)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(blockwise, "_available_cores", lambda threads=threads: threads)
        with threadpool_limits(threads):
            result = reduce(features, backend, components=32, normalize=True)
        found.append((result.reduced_Nd.tobytes(), result.components_dD.tobytes()))
    assert found[0] == found[1] == found[2]


def test_in_order_keeps_the_order_waits_for_the_consumer_and_passes_errors_on(monkeypatch):
    monkeypatch.setattr(blockwise, "_available_cores", lambda: 3)
    asked = []

    def items():
        for item in range(20):
            asked.append(item)
            yield item

    def slow_square(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    found = []
    for square in blockwise.in_order(slow_square, items()):
        found.append(square)
        assert len(asked) <= len(found) + 3
    assert found == [item * item for item in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(blockwise.in_order(lambda item: 1 // (item - 5), range(20)))


def test_streaming_reads_once_and_lets_go_of_each_block(monkeypatch):
    monkeypatch.setattr(blockwise, "_available_cores", lambda: 2)
    seen, still_held, passes = [], [], []

    def blocks():
        passes.append(1)
        for seed in range(20):
            seen.append(weakref.ref(block := make_features(50, 6, seed=seed)))
            yield block
            still_held.append(sum(reference() is not None for reference in seen))

    fit_streaming(blocks, components=3)
    assert len(passes) == 1
    assert max(still_held) <= 2 + 2  # two being worked on, one waiting, one read


def test_moments_by_hand():
    count, mean, covariance = moments(iter([np.array([[1.0, 2.0]]), np.array([[3.0, 2.0], [5.0, 8.0]])]))
    assert count == 3
    np.testing.assert_allclose(mean, [3, 4])
    np.testing.assert_allclose(covariance, [[4, 6], [6, 12]])


def test_l2_normalize_by_hand():
    rows = np.array([[3, 4], [0, 0], [0, -2], [3e-30, 4e-30]], np.float32)
    np.testing.assert_allclose(l2_normalize(rows), [[0.6, 0.8], [0, 0], [0, -1], [0.6, 0.8]], rtol=1e-6)
    assert l2_normalize(rows).dtype == np.float32
    assert rows[0, 0] == 3


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (20, 5), elements=st.floats(-100, 100, width=32)))
def test_whatever_the_features_the_result_is_finite(features):
    for backend in ("faiss", "streaming"):
        reduced = reduce(features, backend, components=5, normalize=True).reduced_Nd
        norms = np.linalg.norm(reduced, axis=1)
        assert np.isfinite(reduced).all()
        assert (np.isclose(norms, 1, atol=1e-5) | (norms == 0)).all()
