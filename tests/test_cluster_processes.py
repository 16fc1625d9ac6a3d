"""cluster by several processes: the clustering of one, however the rows are cut, and one decision of all."""

import re
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params
from hypothesis import given
from hypothesis import strategies as st
from ranks import in_processes, stage_in_processes
from test_resuming import _settings, ready, run, set_params  # noqa: F401 - fixtures

from deepcluster import artifacts, layout
from deepcluster.artifacts import store as store_module
from deepcluster.clustering import sharded
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.sharded import Part, kmeans_of_parts, means_of_clusters_of_parts
from deepcluster.clustering.warm_start import means_of_clusters
from deepcluster.distributed import ALONE
from deepcluster.errors import NumericsError
from stages.cluster import cluster

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(500, 6)).astype(np.float32) + 3
CENTRES = RNG.normal(size=(5, 6)).astype(np.float32) * 20
BLOBS = (CENTRES[RNG.integers(5, size=400)] + RNG.normal(size=(400, 6))).astype(np.float32)
COPIES = np.repeat(RNG.normal(size=(4, 3)), 10, axis=0).astype(np.float32)


def part_of(rows_Nd, process, step=37):
    own = process.rows(len(rows_Nd), step)
    return Part(rows_Nd[own], own.start, len(rows_Nd), process)


def by_parts(rows_Nd, count, folder, **settings):
    """The clustering at the first process; the others have none."""
    first, *others = in_processes(count, lambda process: kmeans_of_parts(part_of(rows_Nd, process), **settings), folder)
    assert others == [None] * (count - 1)
    return first


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"restarts": 3},
        {"spherical": True},
        {"points_per_centroid": 9},
        {"initial_centroids_Kd": NOISE[7:27]},
        {"iterations": 2},
    ],
    ids=["plain", "restarts", "spherical", "sample", "given", "few"],
)
def test_as_one_process(tmp_path, settings):
    """On rows without clusters, where another start or another split would end elsewhere."""
    chosen = {"k": 20, "seed": 3} | settings
    one = kmeans(NOISE, backend="faiss", gpu=False, **chosen)
    found = by_parts(NOISE, 3, tmp_path, **chosen)
    np.testing.assert_allclose(found.objective[-1], one.objective[-1], rtol=1e-5)
    rough = 1e-4 if "spherical" in settings else 1e-5  # faiss adds up cosines in float32
    np.testing.assert_allclose(found.objective, one.objective, rtol=rough)
    assert (found.labels_N == one.labels_N).mean() > 0.99
    np.testing.assert_allclose(found.sizes_K.sum(), 500)
    assert (found.trained_on, found.labels_N.dtype, found.distances_N.dtype) == (one.trained_on, np.int32, np.float32)


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_separated_blobs_have_the_same_labels(tmp_path, init):
    settings = {"k": 5, "seed": 1, "restarts": 4, "init": init}
    one = kmeans(BLOBS, backend="faiss", gpu=False, **settings)
    found = by_parts(BLOBS, 2, tmp_path, **settings)
    pairs = set(zip(found.labels_N.tolist(), one.labels_N.tolist(), strict=True))
    assert len(pairs) == 5
    np.testing.assert_allclose(found.objective[-1], one.objective[-1], rtol=1e-5)
    if init == "random":
        assert all(a == b for a, b in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_empty_clusters_are_split_and_filled_as_in_one_process(tmp_path, seed):
    """Twelve clusters of 40 rows of which four differ: most are empty in every iteration."""
    rows_Nd = COPIES + np.float32(1e-3) * RNG.normal(size=COPIES.shape).astype(np.float32)
    one = kmeans(rows_Nd, k=12, backend="faiss", seed=seed, gpu=False, iterations=5)
    found = by_parts(rows_Nd, 2, tmp_path, k=12, seed=seed, iterations=5)
    assert found.sizes_K.all()
    np.testing.assert_allclose(found.objective[-1], one.objective[-1], rtol=1e-4)
    np.testing.assert_array_equal(found.sizes_K, np.bincount(found.labels_N, minlength=12))


def test_fewer_distinct_rows_than_clusters_and_processes_without_rows(tmp_path):
    found = in_processes(4, lambda process: kmeans_of_parts(part_of(COPIES, process, 20), k=6, seed=1), tmp_path)[0]
    assert sorted(found.sizes_K.tolist()) == [0, 0, 10, 10, 10, 10]
    assert found.distances_N.sum() == 0


def test_as_many_clusters_as_rows(tmp_path):
    found = by_parts(NOISE[:40], 2, tmp_path, k=40, seed=1)
    assert sorted(found.labels_N) == list(range(40))
    np.testing.assert_array_equal(found.centroids_Kd, NOISE[:40])


def test_a_warm_start_of_parts(tmp_path):
    labels_N = RNG.integers(5, size=500).astype(np.int32)

    def work(process):
        part = part_of(NOISE, process)
        own_M = labels_N[part.first : part.first + len(part.rows_Md)]
        return (
            means_of_clusters_of_parts(part, own_M, k=5),
            means_of_clusters_of_parts(part, own_M, k=6),
            means_of_clusters_of_parts(part, own_M, k=4),
            means_of_clusters_of_parts(part, np.full_like(own_M, -1), k=5),
        )

    for means_Kd, *none in in_processes(3, work, tmp_path):
        np.testing.assert_allclose(means_Kd, means_of_clusters(NOISE, labels_N, k=5), rtol=1e-6)
        assert none == [None, None, None]


def test_wrong_rows_have_their_numbers_among_all():
    rows_Nd = NOISE.copy()
    rows_Nd[3, 1] = np.inf
    with pytest.raises(NumericsError, match=r"^rows: must be finite; got NaN or infinity in row 103$"):
        kmeans_of_parts(Part(rows_Nd, 100, 900, ALONE), k=3, seed=1)
    with pytest.raises(NumericsError, match=r"^cluster.k: must be <= N = 900 images; got 901$"):
        kmeans_of_parts(Part(NOISE, 100, 900, ALONE), k=901, seed=1)


@pytest.mark.parametrize("seed", [1, 77, 2**31 - 1])
def test_the_rows_to_start_from_are_faiss(seed):
    import faiss

    permuted_N = np.empty(50, np.int32)
    faiss.rand_perm(faiss.swig_ptr(permuted_N), 50, seed)
    assert sharded._drawn(50, 49, seed) == permuted_N[:49].tolist()


@given(st.lists(st.integers(0, 30), min_size=3, max_size=9))
def test_the_draws_are_faiss(sizes):
    """The same cluster is split that a plain loop over faiss's own generator finds."""
    import faiss

    sizes_K = np.array(sizes, float)
    count, k = int(sizes_K.sum()), len(sizes)
    if count <= k or sizes_K.max() < 2:
        return
    bounds_K = ((sizes_K - 1) / (count - k)).astype(np.float32)
    draws, plain = sharded._Draws(k), faiss.RandomGenerator(1234)
    for _ in range(5):
        number = 0
        while plain.rand_float() >= bounds_K[number]:
            number = (number + 1) % k
        assert draws.first_below(bounds_K) == number


@pytest.fixture
def small_chunks(run, monkeypatch):  # noqa: F811 - the fixture
    """pca.zarr in chunks of 4 rows; of epoch 1, which two processes share."""
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 64)
    before = artifacts.open_store(layout.pca(1), "pca", made_by="pca@1")
    arrays = {name: before.read(name) for name in ("reduced", "explained_variance")}
    with artifacts.write_store(layout.pca(1), "pca", artifacts.Provenance(48, before.ids, 1, 1, {})) as store:
        for name, values in arrays.items():
            store.array(name, values, [f"axis_{axis}" for axis in range(values.ndim)])


def published():
    store = artifacts.open_store(layout.clusters(1), "clusters", made_by="cluster@1")
    return store, {name: store.read(name) for name in ("labels", "distances", "centroids", "objective", "sizes")}


@pytest.mark.parametrize("clusterings", [1, 2])
def test_the_stage(small_chunks, tmp_path, capsys, clusterings):
    v2 = {"cluster.clusterings": clusterings, "cluster.spherical": True, "pca.enabled": False}
    edit_params(Path("params.yaml"), v2 if clusterings > 1 else {"cluster.restarts": 2})
    if clusterings > 1:
        set_params(train__method="deepcluster_v2")
    capsys.readouterr()
    cluster(1)
    said = capsys.readouterr().out
    store, one = published()
    several = store.read("labels_all") if clusterings > 1 else None
    artifacts.remove(layout.clusters(1))
    first, second = stage_in_processes(cluster, 2, tmp_path / "ranks")
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", ""), first
    assert first.out == said
    found_store, found = published()
    assert found_store.attributes["health"] == store.attributes["health"]
    for name, values in one.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
    if several is not None:
        np.testing.assert_array_equal(found_store.read("labels_all"), several)


def test_more_processes_than_chunks_are_refused_under_torchrun(small_chunks, tmp_path):
    artifacts.remove(layout.clusters(1))
    ended = stage_in_processes(cluster, 13, tmp_path / "ranks")
    said = "error: cluster@1: 13 processes for 12 chunks, so 1 would have nothing to do; start at most 12, "
    assert "".join(each.err for each in ended) == f"{said}or let them wait: DEEPCLUSTER_ALLOW_IDLE=1\n"
    assert not layout.clusters(1).exists()


def test_a_collapse_ends_all_and_publishes_nothing(small_chunks, tmp_path):
    set_params(cluster__fail_on_collapse=True, cluster__collapse={"min_feature_rank": 5.0})
    artifacts.remove(layout.clusters(1))
    first, second = stage_in_processes(cluster, 2, tmp_path / "ranks")
    assert (first.code, second.out, second.err) == (2, "", "")
    assert re.match(r"error: cluster@1: collapse: the features vary along ", first.err)
    assert not layout.clusters(1).exists()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"cluster__method": "pic"}, "cluster.method pic"),
        ({"cluster__method": "spectral"}, "cluster.method spectral"),
        ({"cluster__backend": "sklearn"}, "cluster.backend sklearn"),
    ],
)
def test_what_one_process_does_alone(run, tmp_path, changes, setting):  # noqa: F811 - the fixture
    set_params(**changes)
    ended = stage_in_processes(cluster, 2, tmp_path / "ranks")
    said = f"error: cluster@1: {setting} works in one process; start the stage without torchrun\n"
    assert "".join(each.err for each in ended) == said


def test_a_part_that_is_all_gives_what_kmeans_gives():
    found = kmeans_of_parts(Part(NOISE, 0, 500, ALONE), k=20, seed=3)
    one = kmeans(NOISE, k=20, seed=3, backend="faiss", gpu=False)
    for value, expected in zip(astuple(found), astuple(one), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
