"""The engines at widths and in settings where shortcuts are taken, each against float64 or the definition."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus
from threadpoolctl import threadpool_limits

from deepcluster import artifacts, blockwise, memory
from deepcluster.artifacts import store as store_module
from deepcluster.clustering import assignment
from deepcluster.clustering.assignment import assign
from deepcluster.clustering.kmeans import kmeans
from deepcluster.errors import ArtifactError, NumericsError, ResourceError
from deepcluster.metrics import ari
from deepcluster.reduction import moments as moments_module
from deepcluster.reduction.moments import WIDE, moments
from deepcluster.reduction.pca import fit, fit_transform, reduce


def wide_features(count=3000, offset=0.0, seed=0):
    """D = 1,100; the leading variances fall by 5 % from one to the next, so that every component is defined well."""
    rng = np.random.default_rng(seed)
    spread_D = np.maximum(0.975 ** np.arange(1100), 0.02)
    axes_DD, _ = np.linalg.qr(rng.normal(size=(1100, 1100)))
    return (rng.normal(size=(count, 1100)) * spread_D @ axes_DD + offset).astype(np.float32)


def blocks_of(rows, sizes=700):
    return lambda _: (rows[start : start + sizes] for start in range(0, len(rows), sizes))


class TestWideRows:
    """From D = 1,024 on products are float32."""

    @pytest.mark.parametrize("offset", [0.0, 0.5, 20.0])
    def test_equal_float64_within_a_ten_thousandth(self, offset):
        features = wide_features(offset=offset)
        assert features.shape[1] >= WIDE
        exact = features.astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(exact.T))
        values, vectors = values[::-1][:32], vectors.T[::-1][:32]
        found = fit(blocks_of(features), features.shape, backend="streaming", components=32, seed=0)
        np.testing.assert_allclose(found.explained_variance_d, values, rtol=1e-4)
        signs = np.sign(np.einsum("dD,dD->d", vectors, found.components_dD))
        np.testing.assert_allclose(found.components_dD, vectors * signs[:, None], atol=1e-4)
        blocks = reduce(blocks_of(features), 1100, found, whiten=True, normalize=False)
        whitened = (exact - exact.mean(axis=0)) @ (vectors * signs[:, None]).T / np.sqrt(values)
        np.testing.assert_allclose(np.concatenate(list(blocks)), whitened, atol=1e-3 if offset else 2e-4)
        np.testing.assert_allclose(whitened.std(axis=0, ddof=1), 1, atol=1e-6)

    def test_covariance_is_symmetric_and_that_of_float64_to_float32_rounding(self):
        features = wide_features(offset=3.0)
        found = moments(blocks_of(features)(0))
        exact = np.cov(features.astype(np.float64).T)
        np.testing.assert_allclose(found.covariance_DD, found.covariance_DD.T, atol=1e-6 * np.abs(exact).max())
        np.testing.assert_allclose(found.covariance_DD, exact, atol=2e-6 * np.abs(exact).max())
        np.testing.assert_allclose(found.mean_D, features.mean(axis=0, dtype=np.float64), atol=1e-6)

    def test_torch_gives_the_same_to_rounding(self):
        features = wide_features()
        expected, found = moments(blocks_of(features)(0)), moments(blocks_of(features)(0), device="cpu")
        assert found.rows == expected.rows == 3000
        np.testing.assert_allclose(found.mean_D, expected.mean_D, atol=1e-7)
        np.testing.assert_allclose(found.covariance_DD, expected.covariance_DD, atol=1e-6)

    def test_narrow_rows_stay_off_the_device(self, monkeypatch):
        monkeypatch.setattr(moments_module, "_on_device", None)
        assert moments(iter([np.eye(4, dtype=np.float32)]), device="cpu").rows == 4

    def test_bytes_do_not_depend_on_the_number_of_threads(self, monkeypatch):
        features, found = wide_features(), []
        for threads in (1, 2, 3):
            monkeypatch.setattr(blockwise, "_available_cores", lambda threads=threads: threads)
            with threadpool_limits(threads):
                result = fit(blocks_of(features), features.shape, backend="streaming", components=8, seed=0)
            found.append(result.components_dD.tobytes())
        assert found[0] == found[1] == found[2]

    def test_a_row_that_is_not_finite_is_named(self):
        features = wide_features()
        features[2222, 3] = np.nan
        with pytest.raises(NumericsError, match=r"^features: must be finite; got NaN or infinity in row 2222$"):
            fit(blocks_of(features), features.shape, backend="streaming", components=8, seed=0)


class TestOtherTypes:
    def test_float16_features_are_reduced_as_float32(self):
        features = np.random.default_rng(0).normal(size=(500, 20)).astype(np.float16)
        settings = {"backend": "streaming", "components": 5, "seed": 0}
        halves = fit(blocks_of(features), features.shape, **settings)
        singles = fit(blocks_of(features.astype(np.float32)), features.shape, **settings)
        assert halves.components_dD.tobytes() == singles.components_dD.tobytes()

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_overflow_is_named(self, dtype):
        features = np.ones((500, 20), dtype)
        with np.errstate(over="ignore"):
            features[400, 7] = dtype(1e39)  # infinite in float16, too large for float32
        for backend in ("streaming", "sklearn", "faiss"):
            with pytest.raises(NumericsError, match=r"got NaN or infinity in row 400$"):
                fit(blocks_of(features), features.shape, backend=backend, components=5, seed=0)
        with pytest.raises(NumericsError, match=r"in row 400$"):
            list(reduce(blocks_of(features), 20, None, whiten=True, normalize=True))


class TestFromAStore:
    def test_blocks_are_whole_chunks_and_all_rows(self, tmp_path):
        rows_ND = np.arange(5000 * 300, dtype=np.float32).reshape(5000, 300)
        with artifacts.write_store(tmp_path / "a.zarr", "features", artifacts.Provenance(5000, "x")) as store:
            store.array("features", rows_ND, ("sample", "feature"))
        opened = artifacts.open_store(tmp_path / "a.zarr", "features", made_by="")
        blocks = list(opened.blocks("features", 2000))
        chunk = (1 << 20) // 1200
        assert {len(block) % chunk for block in blocks[:-1]} == {0}
        assert max(map(len, blocks)) <= 2000
        np.testing.assert_array_equal(np.concatenate(blocks), rows_ND)

    def test_a_shard_missing_in_the_middle_is_named_before_anything_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store_module, "SHARD_BYTES", 1 << 20)
        rows_ND = np.random.default_rng(0).normal(size=(5000, 300)).astype(np.float32)
        with artifacts.write_store(tmp_path / "a.zarr", "features", artifacts.Provenance(5000, "x")) as store:
            store.array("features", rows_ND, ("sample", "feature"))
        opened = artifacts.open_store(tmp_path / "a.zarr", "features", made_by="")
        shards = sorted(path for path in (tmp_path / "a.zarr/features/c").rglob("*") if path.is_file())
        assert len(shards) == 6
        shards[3].unlink()
        with pytest.raises(ArtifactError, match=rf"^{shards[3]}: damaged \(missing, cut short or altered\)"):
            next(opened.blocks("features", 100))


class TestMemory:
    @pytest.mark.parametrize(("backend", "needed"), [("sklearn", "1.79"), ("faiss", "1.45")])
    def test_what_does_not_fit_is_refused_before_anything_is_read(self, monkeypatch, backend, needed):
        def blocks(_):
            raise AssertionError("read")

        expected = (
            f"pca.backend {backend}: 60,000 x 4,096 features need about {needed} GB of memory"
            " and 1.00 GB are available; pca.backend streaming needs 0.44 GB whatever their number"
        )
        monkeypatch.setattr(memory, "available_memory", lambda: 1.0e9)
        with pytest.raises(ResourceError) as caught:
            fit(blocks, (60_000, 4096), backend=backend, components=256, seed=0)
        assert str(caught.value) == expected

    def test_streaming_is_refused_only_for_its_matrix(self, monkeypatch):
        monkeypatch.setattr(memory, "available_memory", lambda: 1.0e9)
        features = np.eye(50, 8, dtype=np.float32)
        fit(blocks_of(features), features.shape, backend="streaming", components=2, seed=0)
        with pytest.raises(ResourceError, match=r"^pca\.backend streaming: 10,000,000 x 16,384 features need about"):
            fit(blocks_of(features), (10_000_000, 16_384), backend="streaming", components=2, seed=0)


class TestAssignment:
    @pytest.fixture(autouse=True)
    def always_quick(self, monkeypatch):
        monkeypatch.setattr(assignment, "_EXACT_FROM_START", 0)
        monkeypatch.setattr(assignment, "_TILE", 16)
        monkeypatch.setattr(assignment, "_SCORES", 1600)

    def by_definition(self, rows_Nd, centroids_Kd):
        distances_NK = ((rows_Nd[:, None].astype(np.float64) - centroids_Kd.astype(np.float64)) ** 2).sum(axis=2)
        return distances_NK.argmin(axis=1), distances_NK.min(axis=1)

    @pytest.mark.parametrize("offset", [0.0, 1000.0])
    @pytest.mark.parametrize("k", [2, 16, 17, 90])
    def test_is_the_definition(self, offset, k):
        rng = np.random.default_rng(k)
        rows_Nd = (rng.normal(size=(730, 12)) + offset).astype(np.float32)
        centroids_Kd = (rng.normal(size=(k, 12)) + offset).astype(np.float32)
        labels_N, distances_N = assign(rows_Nd, centroids_Kd, origin_d=rows_Nd.mean(axis=0))
        expected_labels_N, expected_N = self.by_definition(rows_Nd, centroids_Kd)
        np.testing.assert_array_equal(labels_N, expected_labels_N)
        np.testing.assert_allclose(distances_N, expected_N, rtol=1e-12)

    def test_ties_and_nearly_equal_centroids_are_decided_exactly(self):
        rng = np.random.default_rng(0)
        rows_Nd = rng.normal(size=(400, 8)).astype(np.float32)
        base_Kd = rng.normal(size=(20, 8)).astype(np.float32)
        nudged_Kd = np.nextafter(base_Kd, np.float32(9))
        centroids_Kd = np.concatenate([base_Kd, nudged_Kd, base_Kd])
        labels_N, _ = assign(rows_Nd, centroids_Kd, origin_d=np.zeros(8, np.float32))
        np.testing.assert_array_equal(labels_N, self.by_definition(rows_Nd, centroids_Kd)[0])
        assert labels_N.max() < 40  # the copies at the end never win a tie
        assert (labels_N >= 20).any()

    @pytest.mark.parametrize("scale", [1e25, 1e-20, 1e-22])
    def test_huge_and_tiny_rows_are_decided_in_float64(self, scale):
        rows_Nd = (np.random.default_rng(0).normal(size=(500, 3)) * scale).astype(np.float32)
        labels_N, _ = assign(rows_Nd, rows_Nd[:7], origin_d=np.zeros(3, np.float32))
        np.testing.assert_array_equal(labels_N, self.by_definition(rows_Nd, rows_Nd[:7])[0])

    def test_most_rows_are_certain_without_float64(self, monkeypatch):
        rng, asked = np.random.default_rng(0), []
        exact = assignment._exact
        monkeypatch.setattr(assignment, "_exact", lambda rows, *rest: (asked.append(len(rows)), exact(rows, *rest))[1])
        rows_Nd = rng.normal(size=(2000, 64)).astype(np.float32)
        assign(rows_Nd, rng.normal(size=(50, 64)).astype(np.float32), origin_d=np.zeros(64, np.float32))
        assert sum(asked) < 20


class TestSettings:
    rows_Nd = np.random.default_rng(3).normal(size=(3000, 6)).astype(np.float32)
    blobs_Nd = (
        np.repeat(np.random.default_rng(4).normal(size=(12, 6)) * 9, 100, axis=0)
        + np.random.default_rng(5).normal(size=(1200, 6)) * 0.05
    ).astype(np.float32)

    @pytest.mark.parametrize("backend", ["faiss", "sklearn", "minibatch"])
    @pytest.mark.parametrize("init", ["random", "k-means++"])
    def test_same_seed_same_bytes_other_seed_other_run(self, backend, init):
        def bytes_of(seed):
            found = kmeans(self.rows_Nd, k=20, backend=backend, init=init, seed=seed)
            return found.labels_N.tobytes() + found.centroids_Kd.tobytes()

        assert bytes_of(1) == bytes_of(1)
        assert bytes_of(1) != bytes_of(2)

    @pytest.mark.parametrize("backend", ["faiss", "sklearn", "minibatch"])
    def test_k_means_plus_plus_finds_separate_blobs_more_often_than_random_rows(self, backend):
        truth_N = np.repeat(np.arange(12), 100)

        def found(init):
            runs = [kmeans(self.blobs_Nd, k=12, backend=backend, init=init, seed=seed) for seed in range(8)]
            return np.mean([ari(run.labels_N, truth_N) for run in runs])

        assert found("k-means++") > found("random")

    def test_minibatch_comes_near_lloyd(self):
        full = kmeans(self.rows_Nd, k=10, backend="sklearn", init="k-means++", restarts=3, seed=0)
        part = kmeans(self.rows_Nd, k=10, backend="minibatch", init="k-means++", restarts=3, seed=0)
        assert full.objective[-1] <= part.objective[-1] < 1.05 * full.objective[-1]
        assert part.labels_N.tobytes() != full.labels_N.tobytes()

    @pytest.mark.parametrize("backend", ["faiss", "sklearn", "minibatch"])
    def test_a_sample_trains_and_all_rows_are_assigned(self, backend):
        found = kmeans(self.rows_Nd, k=10, backend=backend, points_per_centroid=30, seed=0)
        everything = kmeans(self.rows_Nd, k=10, backend=backend, seed=0)
        assert (found.trained_on, everything.trained_on) == (300, 3000)
        assert found.sizes_K.sum() == len(found.labels_N) == 3000
        exact = ((self.rows_Nd - found.centroids_Kd[found.labels_N]).astype(np.float64) ** 2).sum()
        assert found.objective[-1] == pytest.approx(exact, rel=1e-6)
        assert found.objective[-1] > everything.objective[-1]
        assert (np.diff(found.objective) <= 0).all()

    def test_all_rows_take_part_by_default(self):
        """faiss alone would look at 256 rows a centroid."""
        rows_Nd = np.random.default_rng(0).normal(size=(2 * 256 * 4, 2)).astype(np.float32)
        found = kmeans(rows_Nd, k=2, backend="faiss", iterations=50, seed=0)
        means_Kd = np.stack([rows_Nd[found.labels_N == label].mean(axis=0) for label in range(2)])
        np.testing.assert_allclose(found.centroids_Kd, means_Kd, atol=1e-4)

    def test_spherical_is_the_largest_cosine_with_unit_centroids(self):
        rows_Nd = self.rows_Nd * np.random.default_rng(0).uniform(0.1, 9, (3000, 1)).astype(np.float32)
        rows_Nd[5] = 0
        found = kmeans(rows_Nd, k=8, backend="faiss", spherical=True, seed=0, iterations=100)
        np.testing.assert_allclose(np.linalg.norm(found.centroids_Kd, axis=1), 1, atol=1e-6)
        unit_Nd = rows_Nd / np.maximum(np.linalg.norm(rows_Nd, axis=1, keepdims=True), 1e-30)
        cosines_NK = unit_Nd.astype(np.float64) @ found.centroids_Kd.T.astype(np.float64)
        clear_N = np.diff(np.sort(cosines_NK, axis=1)[:, -2:])[:, 0] > 1e-6
        np.testing.assert_array_equal(found.labels_N[clear_N], cosines_NK.argmax(axis=1)[clear_N])
        np.testing.assert_allclose(np.delete(found.distances_N, 5), np.delete(2 - 2 * cosines_NK.max(1), 5), atol=1e-5)
        assert found.distances_N[5] == pytest.approx(1)
        sums_Kd = np.stack([unit_Nd[found.labels_N == label].sum(axis=0) for label in range(8)])
        directions_Kd = sums_Kd / np.linalg.norm(sums_Kd, axis=1, keepdims=True)
        np.testing.assert_allclose(found.centroids_Kd, directions_Kd, atol=1e-3)
        assert found.objective[-1] == pytest.approx(found.distances_N.sum(), rel=1e-5)
        assert found.objective[0] / found.objective[-1] < 1.5

    @pytest.mark.parametrize("spherical", [False, True])
    def test_the_objective_of_each_iteration_is_where_a_shorter_run_ends(self, spherical):
        def objective(iterations):
            settings = {"k": 8, "backend": "faiss", "spherical": spherical, "seed": 0}
            return kmeans(self.rows_Nd, iterations=iterations, **settings).objective

        longest = objective(5)
        for iterations in (1, 2, 4):
            assert longest[iterations - 1] == pytest.approx(objective(iterations)[-1], rel=1e-4)
        assert longest[0] > 1.01 * longest[-1]

    def test_spherical_warm_start_takes_directions(self):
        start_Kd = self.rows_Nd[:4] * 100
        found = kmeans(self.rows_Nd, k=4, backend="faiss", spherical=True, initial_centroids_Kd=start_Kd, seed=0)
        same = kmeans(self.rows_Nd, k=4, backend="faiss", spherical=True, initial_centroids_Kd=start_Kd / 50, seed=7)
        np.testing.assert_array_equal(found.labels_N, same.labels_N)

    @pytest.mark.parametrize("backend", ["sklearn", "minibatch"])
    def test_spherical_is_for_faiss_only(self, backend):
        with pytest.raises(ValueError, match="spherical k-means is faiss's"):
            kmeans(self.rows_Nd, k=3, backend=backend, spherical=True, seed=0)

    @pytest.mark.parametrize("backend", ["faiss", "sklearn", "minibatch"])
    @pytest.mark.parametrize("init", ["random", "k-means++"])
    def test_fewer_distinct_rows_than_clusters(self, backend, init):
        rows_Nd = np.repeat(np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32), 20, axis=0)
        found = kmeans(rows_Nd, k=10, backend=backend, init=init, seed=0)
        assert ari(found.labels_N, np.repeat(np.arange(5), 20)) == 1
        assert np.count_nonzero(found.sizes_K) == 5
        assert found.distances_N.max() < 1e-9

    def test_objective_is_that_of_scikit_learn_from_the_same_start(self):
        start_Kd, _ = kmeans_plusplus(self.rows_Nd, 15, random_state=0)
        expected = KMeans(15, init=start_Kd, n_init=1, max_iter=20, tol=0).fit(self.rows_Nd).inertia_
        for backend in ("faiss", "sklearn"):
            found = kmeans(self.rows_Nd, k=15, backend=backend, initial_centroids_Kd=start_Kd, seed=0)
            assert found.objective[-1] == pytest.approx(expected, rel=5e-3)


def test_fit_transform_of_constant_wide_features_gives_zeros():
    found = fit_transform(
        np.full((30, WIDE), 7.5, np.float32), backend="streaming", components=4, whiten=True, normalize=True, seed=0
    )
    assert not found.reduced_Nd.any()
