"""Where images lie among the final clusters."""

import builtins
import importlib.util

import numpy as np
import pytest
from sklearn.decomposition import PCA

from deepcluster import artifacts
from deepcluster.blockwise import l2_normalize
from deepcluster.clustering.kmeans import Clustering, kmeans
from deepcluster.errors import ArtifactError, UserError
from deepcluster.evaluation import places
from deepcluster.evaluation.places import border_ratios, find_places, on_a_plane, read_places, write_places


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 12)) * 3
    return (centres[rng.integers(0, 4, 300)] + rng.normal(size=(300, 12))).astype(np.float32)


@pytest.fixture(scope="module")
def found(features: np.ndarray) -> Clustering:
    return kmeans(l2_normalize(features), k=4, backend="faiss", iterations=20, restarts=1, seed=0)


class TestBorderRatios:
    def test_by_hand(self):
        """Rows are brought to length 1: (1, 0), (0.6, 0.8) and (0, 1), whose distances to (1, 0) are 0, sqrt(0.8) and
        sqrt(2), and to (0, 1) sqrt(2), sqrt(0.4) and 0; the far centroid (-9, 0) is nearest to none."""
        rows = np.array([[5, 0], [3, 4], [0, 0.1]], np.float32)
        centroids = np.array([[1, 0], [0, 1], [-9, 0]], np.float32)
        ratios, second = border_ratios(rows, centroids, np.array([0, 1, 1], np.int32))
        np.testing.assert_allclose(ratios, [0, np.sqrt(0.4 / 0.8), 0], atol=1e-7)
        assert second.tolist() == [1, 0, 0]
        assert (ratios.dtype, second.dtype) == (np.float32, np.int32)

    def test_on_the_border_and_on_two_equal_centroids(self):
        centroids = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
        ratios, second = border_ratios(np.array([[1, 1], [0, 2]], np.float32), centroids, np.array([0, 1], np.int32))
        np.testing.assert_allclose(ratios, [1, 1])
        assert second.tolist() == [1, 2]

    def test_a_single_cluster_has_no_border(self):
        ratios, second = border_ratios(np.ones((3, 2), np.float32), np.zeros((1, 2), np.float32), np.zeros(3, np.int32))
        assert (ratios.tolist(), second.tolist()) == ([0, 0, 0], [0, 0, 0])

    def test_against_all_distances_in_any_number_of_blocks(self, features, found, monkeypatch):
        rows = l2_normalize(features).astype(np.float64)
        distances = np.linalg.norm(rows[:, None] - found.centroids_Kd.astype(np.float64), axis=2)
        ordered = np.sort(distances, axis=1)
        whole = border_ratios(features, found.centroids_Kd, found.labels_N)
        np.testing.assert_allclose(whole[0], ordered[:, 0] / ordered[:, 1], rtol=1e-5)
        np.testing.assert_array_equal(whole[1], np.argsort(distances, axis=1)[:, 1])
        monkeypatch.setattr(places, "_BLOCK_BYTES", 1)
        for one, other in zip(border_ratios(features, found.centroids_Kd, found.labels_N), whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


class TestFindPlaces:
    def test_components_are_those_of_scikit_learn_for_the_normalised_sample(self, features, found):
        got = find_places(features, found, most=100)
        assert got.sample_S[[0, -1]].tolist() == [0, 299]
        assert len(got.sample_S) == len(set(got.sample_S.tolist())) == 100
        pca = PCA(12, svd_solver="full").fit(l2_normalize(features[got.sample_S]).astype(np.float64))
        expected = pca.transform(l2_normalize(features[got.sample_S]).astype(np.float64))
        signs = np.sign(np.sum(expected * got.components_Sp, axis=0))
        np.testing.assert_allclose(got.components_Sp, expected * signs, atol=1e-5)
        np.testing.assert_allclose(got.explained_variance_ratio_p, pca.explained_variance_ratio_, atol=1e-5)

    def test_fewer_images_than_asked_for_are_all_taken(self, features, found):
        assert find_places(features, found).sample_S.tolist() == list(range(300))

    def test_identical_images(self):
        same = np.ones((6, 3), np.float32)
        clustering = kmeans(l2_normalize(same), k=2, backend="faiss", iterations=2, restarts=1, seed=0)
        got = find_places(same, clustering)
        assert not got.components_Sp.any()
        assert not on_a_plane(got.components_Sp, "tsne", seed=0).any()

    def test_written_and_read(self, features, found, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ArtifactError, match=r"^data/evaluation/map\.zarr: not found; run `deepcluster run`$"):
            read_places("ids")
        got = find_places(features, found)
        write_places(artifacts.Provenance(300, "ids", 2), got)
        read = read_places("ids")
        for name in ("ratios_N", "second_N", "sample_S", "components_Sp", "explained_variance_ratio_p"):
            np.testing.assert_array_equal(getattr(read, name), getattr(got, name))


class TestOnAPlane:
    def test_pca_is_the_first_two_components(self):
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        np.testing.assert_array_equal(on_a_plane(rows, "pca", seed=0), rows[:, :2])
        np.testing.assert_array_equal(on_a_plane(rows[:, :1], "pca", seed=0), [[0, 0], [3, 0], [6, 0], [9, 0]])

    def test_tsne_keeps_groups_together_and_repeats(self):
        rng = np.random.default_rng(0)
        group = np.arange(60) % 3
        rows = (np.eye(3)[group] * 20 + rng.normal(size=(60, 3))).astype(np.float32)
        plane = on_a_plane(rows, "tsne", seed=1)
        assert (plane.shape, plane.dtype) == ((60, 2), np.dtype(np.float32))
        np.testing.assert_array_equal(on_a_plane(rows, "tsne", seed=1), plane)
        distances = np.linalg.norm(plane[:, None] - plane, axis=2) + np.diag(np.full(60, np.inf))
        np.testing.assert_array_equal(group[distances.argmin(axis=1)], group)

    @pytest.mark.parametrize("count", [2, 4, 5, 7])
    def test_tsne_of_very_few_images(self, count):
        rows = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
        assert np.isfinite(on_a_plane(rows, "tsne", seed=0)).all()

    def test_tsne_of_one_component(self):
        assert on_a_plane(np.arange(9, dtype=np.float32)[:, None], "tsne", seed=0).shape == (9, 2)

    def test_umap_that_is_not_installed(self, monkeypatch):
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "umap" else real(name))
        with pytest.raises(UserError) as error:
            on_a_plane(np.zeros((3, 2), np.float32), "umap", seed=0)
        assert str(error.value) == (
            "report.map: umap needs the package umap-learn; run `pip install umap-learn`, or take pca or tsne"
        )

    def test_umap_is_asked_for_the_same_places_every_time(self, monkeypatch):
        asked = {}

        class Umap:
            def __init__(self, **settings):
                asked.update(settings)

            def fit_transform(self, rows):
                return rows[:, :2].astype(np.float64)

        real = builtins.__import__
        fake = type("umap", (), {"UMAP": Umap})
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(builtins, "__import__", lambda name, *rest: fake if name == "umap" else real(name, *rest))
        plane = on_a_plane(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), "umap", seed=3)
        assert asked == {"n_neighbors": 7, "random_state": 3, "n_jobs": 1}
        assert plane.dtype == np.float32
