"""Two nearest centroids, against scipy's distances; and what batches and blocks may not change."""

import numpy as np
import pytest
from bundles import CPU, motifs, noise_bundle
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from test_bundle import components

from deepcluster.blockwise import l2_normalize
from deepcluster.reduction.pca import transform
from deepcluster.using.bundle import Clusters, Reduction
from deepcluster.using.nearest import features_of, joined_placements, nearest, place, reduced


def clusters(centroids_Kd, sizes=None, thresholds=None) -> Clusters:
    centroids_Kd = np.asarray(centroids_Kd, np.float32)
    sizes_K = np.ones(len(centroids_Kd), np.int64) if sizes is None else np.array(sizes)
    thresholds_K = np.full(len(centroids_Kd), np.inf) if thresholds is None else np.array(thresholds, float)
    return Clusters(centroids_Kd, sizes_K, thresholds_K)


@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
def test_both_are_scipys(seed, k, spherical):
    rng = np.random.default_rng(seed)
    rows_Nd, centroids_Kd = (rng.standard_normal((n, 5)).astype(np.float32) for n in (40, k))
    found = nearest(rows_Nd, clusters(centroids_Kd, rng.integers(1, 9, k)), Reduction(spherical=spherical))
    expected_NK = cdist(rows_Nd.astype(float), centroids_Kd.astype(float))
    order_NK = expected_NK.argsort(axis=1)
    np.testing.assert_array_equal(found.labels_N, order_NK[:, 0])
    np.testing.assert_array_equal(found.second_N, order_NK[:, 1])
    sorted_NK = np.sort(expected_NK, axis=1)
    np.testing.assert_allclose(found.distances_N, sorted_NK[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found.second_distances_N, sorted_NK[:, 1], rtol=1e-6)
    assert (found.labels_N.dtype, found.second_N.dtype) == (np.int32, np.int32)


def test_by_hand():
    found = nearest(
        np.array([[0, 0], [3, 4], [0.5, 0]], np.float32),
        clusters([[0, 0], [3, 0], [9, 9]], thresholds=[1, 3, 5]),
        Reduction(),
    )
    assert found.labels_N.tolist() == [0, 1, 0]
    assert found.distances_N.tolist() == [0, 4, 0.5]
    assert found.second_N.tolist() == [1, 0, 1]
    assert found.second_distances_N.tolist() == [3, 5, 2.5]
    assert found.outliers_N.tolist() == [False, True, False]


def test_at_the_threshold_an_image_is_no_outlier():
    rows_Nd = np.array([[0.1], [0.2]], np.float32)
    squared_N = (rows_Nd[:, 0].astype(float) ** 2).astype(np.float32)
    threshold = np.sqrt(squared_N[0].astype(np.float64))  # as of an artifact's float32 squares
    found = nearest(rows_Nd, clusters([[0], [9]], thresholds=[threshold, 0]), Reduction())
    assert found.outliers_N.tolist() == [False, True]


def test_ties_go_to_the_lower_number():
    found = nearest(np.array([[1]], np.float32), clusters([[0], [2], [0]]), Reduction())
    assert (found.labels_N.tolist(), found.second_N.tolist()) == ([0], [1])


def test_clusters_without_a_training_image_are_not_asked():
    rows_Nd = np.array([[5.0], [1.0]], np.float32)
    found = nearest(rows_Nd, clusters([[5], [1], [1], [4]], sizes=[0, 0, 3, 2]), Reduction())
    assert found.labels_N.tolist() == [3, 2]
    assert found.second_N.tolist() == [2, 3]


def test_one_cluster_only_has_no_second():
    found = nearest(np.array([[5.0]], np.float32), clusters([[5], [5]], sizes=[7, 0]), Reduction())
    assert (found.labels_N.tolist(), found.second_N.tolist()) == ([0], [-1])
    assert np.isnan(found.second_distances_N).all()


def test_more_rows_than_one_block(monkeypatch):
    rng = np.random.default_rng(0)
    rows_Nd, centroids = rng.standard_normal((50, 3)).astype(np.float32), clusters(rng.standard_normal((6, 3)))
    whole = nearest(rows_Nd, centroids, Reduction())
    monkeypatch.setattr("deepcluster.using.nearest._SCORES", 6 * 7)
    np.testing.assert_array_equal(nearest(rows_Nd, centroids, Reduction()).second_N, whole.second_N)


def test_no_images():
    found = joined_placements([])
    assert [column.dtype for column in vars(found).values()] == [np.int32, float, np.int32, float, bool]
    assert all(len(column) == 0 for column in vars(found).values())


class TestImages:
    def test_every_motif_is_its_own_cluster(self):
        found = place(noise_bundle(6), [motifs(6)], CPU)
        assert found.labels_N.tolist() == [0, 1, 2, 3, 4, 5]
        assert not found.outliers_N.any()
        assert place(noise_bundle(6), [motifs(2, seed=9)], CPU).outliers_N.all()

    @pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 9), tuple(range(1, 11))])
    def test_blocks_change_no_bit(self, cuts, monkeypatch):
        monkeypatch.setattr("deepcluster.using.nearest._IMAGES_AT_ONCE", 8)
        bundle, images = noise_bundle(4, reduction=Reduction(block_rows=3)), motifs(11, seed=5)
        whole, parts = place(bundle, [images], CPU), place(bundle, np.split(images, cuts), CPU)
        for name, column in vars(whole).items():
            np.testing.assert_array_equal(getattr(parts, name), column)

    @pytest.mark.parametrize(("count", "batches"), [(9, [4, 4, 4]), (4, [4]), (2, [4])])
    def test_batches_have_the_size_of_training(self, count, batches):
        seen: list[int] = []
        bundle = noise_bundle(4, batch_size=4)
        handle = bundle.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        features = np.concatenate(list(features_of(bundle, [motifs(count)], CPU)))
        handle.remove()
        assert seen == batches
        assert features.shape == (count, 256)

    def test_reduced_as_a_pca_stage_would(self):
        reduction = Reduction(components(), whiten=True, normalize=True)
        bundle = noise_bundle(4, reduction=reduction)
        features_ND = np.concatenate(list(features_of(bundle, [motifs(9)], CPU)))
        parameters = list(vars(reduction.components).values())[:3]
        expected_Nd = transform(features_ND, *parameters, whiten=True, normalize=True)
        np.testing.assert_array_equal(np.concatenate(list(reduced([features_ND], reduction))), expected_Nd)

    def test_spherical_rows_have_norm_one(self):
        rows = np.array([[3, 4], [0, 0]], np.float32)
        found = np.concatenate(list(reduced([rows], Reduction(normalize=False, spherical=True))))
        np.testing.assert_array_equal(found, l2_normalize(rows))
        np.testing.assert_array_equal(np.concatenate(list(reduced([rows], Reduction(normalize=False)))), rows)
