"""Centroids to start from."""

import numpy as np

from deepcluster.clustering.warm_start import means_of_clusters


def test_means_by_hand():
    rows_Nd = np.array([[1, 2], [10, 10], [3, 6], [20, 30]], np.float32)
    labels_N = np.array([1, 0, 1, 0], np.int32)
    np.testing.assert_array_equal(means_of_clusters(rows_Nd, labels_N, k=2), [[15, 20], [2, 4]])


def test_none_unless_exactly_k_clusters_have_images():
    rows_Nd = np.zeros((3, 2), np.float32)
    for labels, k in [([0, 0, 2], 3), ([0, 1, 2], 2), ([-1, -1, -1], 2), ([0, 1, 1], 3)]:
        assert means_of_clusters(rows_Nd, np.array(labels, np.int32), k=k) is None
