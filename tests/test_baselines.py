"""The clusterings judged by true labels: on easy data right, on meaningless data at chance."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepcluster.clustering.kmeans import kmeans
from deepcluster.evaluation.baselines import (
    best_of,
    filtered_baseline,
    filtered_pixels,
    final_clusters,
    pixel_rows,
    score,
)
from deepcluster.models.frontend import build_front_end


def make_directions(each=40):
    """Three directions, each at lengths from 1 to 1,000: clusters only once rows have norm 1."""
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(3), each)
    rows = np.eye(3)[targets] + rng.normal(size=(len(targets), 3)) * 0.05
    return (rows * np.geomspace(1, 1000, len(rows))[rng.permutation(len(rows)), None]).astype(np.float32), targets


def test_features_are_clustered_by_direction():
    features, targets = make_directions()
    assert score(final_clusters(features, k=3, seed=0).labels_N, targets) == {"nmi": 1.0, "ari": 1.0, "accuracy": 1.0}
    plain = kmeans(features, k=3, backend="faiss", init="k-means++", restarts=20, seed=0)
    assert score(plain.labels_N, targets)["nmi"] < 0.7


def test_features_are_neither_centred_nor_whitened():
    """Distances of the final clustering are those of the raw rows divided by their norms."""
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(200, 6)) * [9, 3, 1, 1, 1, 1] + 2).astype(np.float32)
    found = final_clusters(features, k=5, seed=0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for cluster in range(5):
        mean = unit[found.labels_N == cluster].mean(axis=0)
        np.testing.assert_allclose(found.centroids_Kd[cluster], mean, atol=1e-5)


def test_every_group_is_found_where_random_starts_miss_some():
    rng = np.random.default_rng(4)
    targets = np.repeat(np.arange(40), 15)
    features = (np.eye(40)[targets] + rng.normal(size=(600, 40)) * 0.003).astype(np.float32)
    assert score(final_clusters(features, k=40, seed=0, restarts=3).labels_N, targets)["accuracy"] == 1
    random = kmeans(features, k=40, backend="faiss", restarts=3, seed=0)
    assert score(random.labels_N, targets)["accuracy"] < 1


def test_rows_of_zeros_are_clustered_too():
    features, _ = make_directions()
    features[:10] = 0
    found = final_clusters(features, k=4, seed=0)
    assert len(np.unique(found.labels_N[:10])) == 1
    assert found.labels_N[0] not in found.labels_N[10:]


def test_restarts_never_make_it_worse_and_the_seed_repeats():
    features = np.random.default_rng(2).normal(size=(300, 3)).astype(np.float32)
    once, often, again = (final_clusters(features, k=12, seed=1, restarts=r) for r in (1, 10, 10))
    assert often.objective[-1] < once.objective[-1]
    assert often.labels_N.tobytes() == again.labels_N.tobytes()


def test_score_by_hand():
    found = score(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1]))
    assert found == {"nmi": pytest.approx(2 / 3), "ari": pytest.approx(0), "accuracy": 0.5}


def of_pixels(images, targets):
    """Scores of k-means on the pixels, as evaluate makes it."""
    return score(best_of(pixel_rows(images), k=2, seed=0, restarts=20, gpu=None).labels_N, targets)


def test_pixels_tell_dark_images_from_bright_ones():
    rng = np.random.default_rng(3)
    targets = np.repeat([0, 1], 30)
    images = (40 + 150 * targets[:, None, None, None] + rng.integers(0, 30, (60, 3, 4, 4))).astype(np.uint8)
    assert of_pixels(images, targets) == {"nmi": 1.0, "ari": 1.0, "accuracy": 1.0}
    assert of_pixels(images, rng.permutation(targets))["nmi"] < 0.1


def test_pixels_are_not_divided_by_their_norm():
    """Images of one colour differ in length only: divided by their norm they would be one point."""
    targets = np.repeat([0, 1], 20)
    images = np.where(targets[:, None, None, None], 200, 50) * np.ones((1, 1, 2, 2))
    assert of_pixels(images.astype(np.uint8), targets)["accuracy"] == 1


class TestSobelFiltered:
    """k-means on two channels, from colour and from grey."""

    horizontal = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])

    @pytest.mark.parametrize(
        ("channels", "grayscale", "weights"),
        [(1, False, [1.0]), (3, False, [1 / 3, 1 / 3, 1 / 3]), (3, True, [0.299, 0.587, 0.114])],
    )
    def test_pixels_are_those_of_a_convolution_by_another_library(self, channels, grayscale, weights):
        images = np.random.default_rng(0).integers(0, 256, (700, channels, 6, 5), dtype=np.uint8)
        front_end, _ = build_front_end(channels=channels, sobel=True, grayscale=grayscale)
        found = filtered_pixels(images, front_end)
        assert (found.dtype, found.shape) == (np.float32, (700, 2 * 6 * 5))
        grey = np.einsum("nchw,c->nhw", images / 255, weights)
        for row in (0, 511, 512, 699):
            for place, kernel in enumerate((self.horizontal, self.horizontal.T)):
                expected = ndimage.correlate(grey[row], kernel, mode="constant")
                np.testing.assert_allclose(found[row].reshape(2, 6, 5)[place], expected, atol=2e-6)

    def test_edges_are_told_apart_where_pixels_are_not(self):
        """Stripes across and stripes along, at any brightness: their mean colours say nothing."""
        rng = np.random.default_rng(0)
        targets = np.repeat([0, 1], 40)
        stripes = np.tile([0, 0, 60, 60], 4)[None, :] * np.ones((16, 1))
        images = np.stack([stripes if target else stripes.T for target in targets])[:, None]
        images = (images + rng.integers(0, 190, (80, 1, 1, 1))).astype(np.uint8).repeat(3, axis=1)
        images += rng.integers(0, 5, images.shape, dtype=np.uint8)
        front_end, _ = build_front_end(channels=3, sobel=True, grayscale=False)
        assert filtered_baseline(images, front_end, targets, k=2, seed=0)["accuracy"] == 1
        assert of_pixels(images, targets)["accuracy"] < 0.7

    def test_the_front_end_stays_where_it_is(self):
        front_end, _ = build_front_end(channels=1, sobel=True, grayscale=False)
        front_end.to("meta")
        with pytest.raises(NotImplementedError):  # a copy of it cannot leave the meta device: it was not moved itself
            filtered_pixels(np.zeros((1, 1, 4, 4), np.uint8), front_end)
        assert {buffer.device.type for buffer in front_end.buffers()} == {torch.device("meta").type}
