"""Spectral clustering, against the formula written densely in float64, scikit-learn's, and by hand."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy
from conftest import EPOCH_STAGES, IMAGES, edit_params
from sklearn.cluster import SpectralClustering
from threadpoolctl import threadpool_limits

from deepcluster import artifacts, layout
from deepcluster.clustering import spectral as module
from deepcluster.clustering.health import Health, Limits, collapsed
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.kmeans import memory_needed as kmeans_memory
from deepcluster.clustering.neighbours import nearest_neighbours, search_memory
from deepcluster.clustering.spectral import adjacency, embedding, memory_needed, spectral
from deepcluster.errors import NumericsError
from deepcluster.metrics import nmi
from deepcluster.params import Collapse, Params, at_epoch, load_params, misfits
from deepcluster.seeding import derive_seed


def rings(each=300, seed=0):
    """Two rings about one centre, which no pair of centroids separates."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, 2 * each)
    radius = np.repeat([1.0, 2.0], each) + rng.normal(scale=0.05, size=2 * each)
    order = rng.permutation(2 * each)
    rows = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    return rows[order], np.repeat([0, 1], each)[order]


def blobs(kinds=6, each=100, spread=0.9, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.repeat(np.arange(kinds), each))
    rows = np.eye(8)[targets] * 5 + rng.normal(size=(len(targets), 8)) * spread
    return rows.astype(np.float32), targets


def dense_embedding(rows, neighbours, vectors):
    """The formula as the module's docstring states it, with loops."""
    rows = rows.astype(np.float64)
    squares = ((rows[:, None] - rows) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    A = np.zeros_like(squares)
    for i in range(len(rows)):
        for j in np.argsort(squares[i], kind="stable")[:neighbours]:
            A[i, j] = A[j, i] = 1
    degrees = A.sum(axis=1)
    L = A / np.sqrt(np.outer(degrees, degrees))
    _, found = np.linalg.eigh(L)
    largest = found[:, ::-1][:, :vectors]
    return A, largest / np.linalg.norm(largest, axis=1, keepdims=True)


def graph_of(rows, neighbours):
    return adjacency(nearest_neighbours(rows, neighbours)[0])


class TestFormula:
    @pytest.mark.parametrize("each", [50, 100], ids=["all eigenvectors", "those of Lanczos"])
    def test_as_written_densely(self, each):
        rows, _ = blobs(each=each)
        A, expected = dense_embedding(rows, 10, 7)
        graph = graph_of(rows, 10)
        assert np.array_equal(graph.toarray(), A)
        found = embedding(graph, 7)
        # signs, and turns among equal eigenvalues, are free: products of rows are not
        assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-4)
        assert found.dtype == np.float32

    def test_both_ways_to_the_eigenvectors_are_tried(self):
        assert 300 <= module._DENSE < 600

    def test_neighbours_of_either_side_are_joined(self):
        graph = graph_of(np.array([[0.0], [1.0], [1.9], [3.0]], np.float32), 1)
        assert graph.toarray().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]

    def test_path_of_four_by_hand(self):
        """0-1-2-3: L's eigenvalues are 1 and 1/2, of (1, r, r, 1) and (r, 1/2, -1/2, -r) with r = sqrt(2), over r."""
        root = np.sqrt(2)
        by_hand = np.array([[1, root, root, 1], [1, 1 / root, -1 / root, -1]]).T / [[np.sqrt(6), np.sqrt(3)]]
        by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
        found = embedding(graph_of(np.array([[0.0], [1.0], [1.9], [3.0]], np.float32), 1), 2)
        assert np.allclose(found @ found.T, by_hand @ by_hand.T, atol=1e-6)

    def test_pieces_and_what_comes_after_them(self):
        """48 groups of 12 copies: 48 vectors of eigenvalue 1, then only negative ones, which are not those again."""
        rows = np.repeat(np.eye(48, dtype=np.float32), 12, axis=0)
        normalised, known = self.normalised(graph_of(rows, 11))
        others = module._others(normalised, known, 3)
        assert np.abs(known.T @ others).max() < 1e-6
        assert np.allclose((others * (normalised @ others)).sum(axis=0), -1 / 11)

    @staticmethod
    def normalised(graph):
        root_N = np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
        part_N = np.arange(len(root_N)) // 12
        scaled = graph.multiply(1 / np.outer(root_N, root_N)).tocsr()
        return scaled, module._vectors_of_parts(root_N, part_N, 48)

    def test_like_scikit_learns(self):
        rows, _ = blobs(spread=1.3)
        graph = graph_of(rows, 10)
        theirs = SpectralClustering(6, affinity="precomputed", random_state=0, n_init=10).fit_predict(graph)
        ours = spectral(rows, k=6, extra_vectors=0, restarts=10, init="k-means++", seed=1).labels_N
        assert nmi(ours, theirs) > 0.95


class TestClusters:
    def test_of_any_shape(self):
        rows, targets = rings()
        found = spectral(rows, k=2, neighbours=10, extra_vectors=0, restarts=5, seed=1)
        assert nmi(found.labels_N, targets) == pytest.approx(1)
        assert nmi(kmeans(rows, k=2, backend="faiss", restarts=5, seed=1).labels_N, targets) < 0.1

    def test_are_told_by_their_means(self):
        rows, _ = blobs()
        found = spectral(rows, k=6, restarts=5, seed=1)
        assert (found.labels_N.dtype, found.sizes_K.tolist()) == (np.int32, np.bincount(found.labels_N).tolist())
        for cluster in range(6):
            own = rows[found.labels_N == cluster].astype(np.float64)
            assert np.allclose(found.centroids_Kd[cluster], own.mean(axis=0), atol=1e-5)
            assert np.allclose(
                found.distances_N[found.labels_N == cluster], ((own - own.mean(axis=0)) ** 2).sum(axis=1), rtol=1e-4
            )
        assert found.objective == pytest.approx([found.distances_N.sum()], rel=1e-5)

    def test_same_bytes_on_any_number_of_threads(self):
        rows, _ = blobs(each=120)
        found = []
        for threads in (1, 4):
            with threadpool_limits(threads):
                found.append(spectral(rows, k=6, seed=3).labels_N.tobytes())
        assert found[0] == found[1]
        assert spectral(rows, k=6, seed=4).labels_N.tobytes() != found[0]

    @pytest.mark.parametrize(
        ("count", "settings", "vectors"), [(60, {}, 9), (60, {"extra_vectors": 0}, 6), (8, {"neighbours": 3}, 7)]
    )
    def test_are_found_among_more_eigenvectors_than_clusters(self, monkeypatch, count, settings, vectors):
        asked = []
        monkeypatch.setattr(module, "embedding", lambda graph, V: asked.append(V) or embedding(graph, V))
        spectral(blobs(each=10)[0][:count], k=6, seed=0, **settings)
        assert asked == [vectors]

    def test_few_rows(self):
        rows = np.eye(12, dtype=np.float32) + np.linspace(0, 3, 12, dtype=np.float32)[:, None]
        for count in (3, 4, 12):
            found = spectral(rows[:count], k=count, neighbours=2, restarts=20, seed=0)
            assert found.sizes_K.tolist() == [1] * count

    def test_copies_give_the_same_clusters_each_time(self):
        rows = np.repeat(np.eye(48, dtype=np.float32), 12, axis=0)
        found = [spectral(rows, k=48, neighbours=11, seed=0, restarts=3).labels_N.tobytes() for _ in range(3)]
        assert found[0] == found[1] == found[2]


class TestMistakes:
    def test_graph_in_more_parts_than_vectors(self):
        rows = np.repeat(np.eye(9, dtype=np.float32), 12, axis=0)
        message = (
            "cluster.spectral: the graph of neighbours falls into 9 parts, more than its 6 vectors, as many images "
            "have copies or are alike; try more cluster.spectral.neighbours or extra_vectors, or k-means"
        )
        with pytest.raises(NumericsError) as caught:
            spectral(rows, k=3, seed=0)
        assert str(caught.value) == message
        found = spectral(rows, k=9, restarts=10, init="k-means++", seed=0)
        assert found.sizes_K.tolist() == [12] * 9
        assert (found.labels_N.reshape(9, 12) == found.labels_N[::12, None]).all()

    def test_fewer_differences_than_clusters(self, monkeypatch):
        rows = np.repeat(np.eye(2, dtype=np.float32), 300, axis=0)
        rows += np.random.default_rng(0).normal(scale=0.01, size=rows.shape).astype(np.float32)
        graph = adjacency(nearest_neighbours(rows, 10)[0])
        two_NV = embedding(graph, 2)
        monkeypatch.setattr(module, "embedding", lambda graph, vectors: np.round(two_NV))
        with pytest.raises(NumericsError) as caught:
            spectral(rows, k=6, seed=0)
        assert str(caught.value) == (
            "cluster.k (beyond refine.after refine.k): 9 eigenvectors of the graph of neighbours tell only 2 clusters "
            "apart; got 6; try a smaller one, or more cluster.spectral.extra_vectors"
        )

    def test_two_rows(self):
        with pytest.raises(NumericsError) as caught:
            spectral(np.eye(2, dtype=np.float32), k=2, neighbours=1, seed=0)
        assert str(caught.value) == "cluster.method: spectral needs 3 images or more; got 2"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"neighbours": 600}, "cluster.spectral.neighbours: must be < N = 600 images; got 600"),
            ({"k": 601}, "cluster.k: must be <= N = 600 images; got 601"),
            ({"k": 1}, "cluster.k: must be >= 2; got 1"),
        ],
    )
    def test_numbers(self, changes, message):
        with pytest.raises(NumericsError) as caught:
            spectral(blobs()[0], **{"k": 6, "seed": 0} | changes)
        assert str(caught.value) == message

    def test_fewer_eigenvectors_than_clusters(self):
        with pytest.raises(ValueError, match=r"^expected extra_vectors >= 0; got -1$"):
            spectral(blobs()[0], k=6, extra_vectors=-1, seed=0)

    def test_rows_that_are_not_finite(self):
        rows, _ = blobs()
        rows[7, 2] = np.nan
        with pytest.raises(NumericsError, match="rows"):
            spectral(rows, k=6, seed=0)

    def test_eigenvectors_that_are_not_found(self, monkeypatch):
        from scipy.sparse import linalg

        def give_up(*_, **__):
            raise linalg.ArpackNoConvergence("gave up", np.array([]), np.array([]))

        monkeypatch.setattr(linalg, "eigsh", give_up)
        with pytest.raises(NumericsError) as caught:
            spectral(blobs()[0], k=6, seed=0)
        assert str(caught.value).endswith(
            "try fewer cluster.spectral.extra_vectors, or more cluster.spectral.neighbours"
        )

    def test_params_that_do_not_fit_the_images(self):
        first = Params.model_validate({"cluster": {"method": "spectral", "spectral": {"neighbours": 50}}})
        assert list(misfits(first, images=40, features=256))[1:] == [
            "cluster.spectral.neighbours: must be < N = 40 images; got 50"
        ]
        later = {"cluster": {"spectral": {"neighbours": 70}}, "refine": {"after": 1, "k": 10, "method": "spectral"}}
        assert "cluster.spectral.neighbours: must be < N = 64 images; got 70" in misfits(
            Params.model_validate(later), images=64, features=256
        )

    def test_refused_together(self):
        for section in ({"spherical": True}, {"warm_start": True}):
            with pytest.raises(NumericsError, match=r"is for cluster\.method kmeans; got 'spectral'"):
                _load({"cluster": {"method": "spectral"} | section})
            later = {"cluster": section, "refine": {"after": 1, "k": 3, "method": "spectral"}}
            with pytest.raises(NumericsError, match=r"is for refine\.method kmeans; got 'spectral'"):
                _load(later)

    def test_a_head_that_stays_is_not(self):
        """As many clusters each epoch, numbered as before."""
        _load({"cluster": {"method": "spectral", "match_labels": True}, "train": {"head": {"reset": False}}})


def _load(content):
    from deepcluster.params.contradictions import contradictions

    if problems := list(contradictions(Params.model_validate(content))):
        raise NumericsError("\n".join(problems))


def test_collapse_says_what_to_try_for_this_method():
    found = Health(effective_k=1.1, largest_share=0.97, empty=0, feature_rank=9.0, drift=None)
    message = collapsed(found, np.array([97, 2, 1]), 8, Limits(**Collapse().model_dump()), method="spectral")
    assert message is not None
    assert message.endswith(
        "try another cluster.k, other cluster.spectral.neighbours or extra_vectors, pca.whiten, or a lower "
        "train.optimizer.lr"
    )


def test_memory_grows_with_what_it_holds():
    search, kmeans_own = search_memory(60_000, 64), kmeans_memory("faiss", 60_000, 31)
    held = 8 * 60_000 * (2 * 31 + 1 + 2 * 31)
    assert held > kmeans_own
    assert memory_needed(60_000, 64, 10, 31) == 16 * 60_000 * 64 + 100 * 60_000 * 10 + held + search
    few = memory_needed(60_000, 64, 10, 2) - search - 16 * 60_000 * 64 - 100 * 60_000 * 10
    assert few == 8 * 60_000 * (20 + 4)  # Lanczos' method keeps no fewer


def test_refining_may_be_spectral_after_kmeans():
    params = Params.model_validate({"refine": {"after": 3, "k": 7, "method": "spectral", "restarts": 4}})
    assert at_epoch(params, 3).cluster.method == "kmeans"
    late = at_epoch(params, 4).cluster
    assert (late.method, late.k, late.restarts, late.init) == ("spectral", 7, 4, "k-means++")


class TestStages:
    CHANGES: ClassVar = {
        "cluster.method": "spectral",
        "cluster.k": 5,
        "cluster.restarts": 3,
        "cluster.spectral.neighbours": 8,
        "cluster.spectral.extra_vectors": 2,
        "refine.after": 1,
        "refine.k": 4,
        "refine.method": "spectral",
        "refine.restarts": 2,
    }

    def test_labels_are_those_of_the_function(self, workspace, outcome):
        edit_params(Path("params.yaml"), self.CHANGES)
        seed = load_params().seed
        for epoch, how in ((1, {"k": 5, "restarts": 3}), (2, {"k": 4, "restarts": 2, "init": "k-means++"})):
            for command in EPOCH_STAGES:
                status, out, err = outcome(command, "--epoch", str(epoch))
                assert status == 0, err
                if command == "cluster":
                    assert f" of {how['k']}, feature" in out
            rows_Nd = artifacts.open_store(layout.pca(epoch), "pca", made_by="").read("reduced")
            own_seed = derive_seed(seed, "kmeans", epoch)
            how |= {"neighbours": 8, "extra_vectors": 2, "iterations": load_params().cluster.iterations}
            expected = spectral(rows_Nd, seed=own_seed, **how)
            found = artifacts.open_store(layout.clusters(epoch), "clusters", made_by="")
            np.testing.assert_array_equal(found.read("labels"), expected.labels_N)
            np.testing.assert_array_equal(found.read("distances"), expected.distances_N)
            np.testing.assert_array_equal(found.read("centroids"), expected.centroids_Kd)
            assert found.attributes["packages"]["scipy"] == scipy.__version__  # whose eigenvectors they are
        for command in ("evaluate", "report", "summary"):
            status, _, err = outcome(command)
            assert status == 0, err

    def test_settings_that_do_not_fit(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"cluster.method": "spectral", "cluster.spectral.neighbours": IMAGES})
        expected = f"error: cluster.spectral.neighbours: must be < N = {IMAGES} images; got {IMAGES}\n"
        assert outcome("cluster", "--epoch", "1") == (2, "", expected)

    def test_sweep_k_is_for_kmeans(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"cluster.method": "spectral"})
        expected = "error: cluster.method: sweep-k compares runs of kmeans alone; epoch 1 has 'spectral'\n"
        assert outcome("sweep-k", "--epoch", "1", "--k", "3,4") == (2, "", expected)

    def test_no_centroids_to_bundle(self, workspace, outcome):
        edit_params(Path("params.yaml"), self.CHANGES)
        assert outcome("cluster", "--epoch", "1")[0] == 0
        status, _, err = outcome("bundle", "--labels", "pseudo", "--epoch", "1", "--out", "a bundle")
        assert status == 2
        assert "the clusters of epoch 1 were made by method spectral" in err
        assert not Path("a bundle").exists()
