"""Power iteration clustering, against the formula written densely in float64, and by hand."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import EPOCH_STAGES, IMAGES, edit_params, write_images
from threadpoolctl import threadpool_limits

from deepcluster import artifacts, blockwise, layout, memory
from deepcluster.clustering import neighbours as neighbours_module
from deepcluster.clustering.health import Health, Limits, collapsed
from deepcluster.clustering.neighbours import nearest_neighbours
from deepcluster.clustering.pic import affinities, centrality, memory_needed, pic
from deepcluster.errors import NumericsError


def blobs(kinds=6, each=40, spread=0.04, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.repeat(np.arange(kinds), each))
    rows = np.eye(8)[targets] * 5 + rng.normal(size=(len(targets), 8)) * spread
    return rows.astype(np.float32), targets


def noise(count=300, d=5, seed=0, scale=0.3):
    return (np.random.default_rng(seed).normal(size=(count, d)) * scale).astype(np.float32)


def line(*positions):
    return np.array(positions, np.float32)[:, None]


def partition(labels_N):
    """The clusters as sets of rows, whatever their numbers."""
    return {frozenset(np.flatnonzero(labels_N == label).tolist()) for label in np.unique(labels_N)}


def dense_pic(rows, neighbours, sigma, alpha):
    """The formula as the module's docstring states it, with loops, and singletons given away as it says."""
    rows = rows.astype(np.float64)
    count = len(rows)
    squares = ((rows[:, None] - rows) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    nearest = np.argsort(squares, axis=1, kind="stable")[:, :neighbours]
    A = np.zeros((count, count))
    for i in range(count):
        A[i, nearest[i]] = np.exp(-squares[i, nearest[i]] / sigma**2)
    W = A + A.T
    v = np.full(count, 1 / count)
    for _ in range(200):
        v = alpha * W @ v + (1 - alpha) / count
        v /= v.sum()
    roots = []
    for start in range(count):
        at = start
        while (gain := W[at] * (v - v[at])).max() > 0:
            at = int(gain.argmax())
        roots.append(at)
    roots = np.array(roots)
    sizes = {root: int((roots == root).sum()) for root in set(roots.tolist())}
    given = roots.copy()
    large = [root for root in sizes if sizes[root] > 1]
    means = np.stack([rows[roots == root].mean(axis=0) for root in large])
    for i in np.flatnonzero([sizes[root] == 1 for root in roots]):
        friends = [j for j in nearest[i] if sizes[roots[j]] > 1]
        given[i] = roots[friends[0]] if friends else large[int(((means - rows[i]) ** 2).sum(axis=1).argmin())]
    return given


class TestNeighbours:
    @pytest.mark.parametrize("offset", [0.0, 1000.0])
    def test_are_those_of_float64_without_the_row_itself(self, offset):
        rows = noise(3000, d=64) + np.float32(offset)
        squares = ((rows[:50].astype(np.float64)[:, None] - rows.astype(np.float64)) ** 2).sum(axis=2)
        np.fill_diagonal(squares, np.inf)
        numbers, distances = nearest_neighbours(rows, 7)
        np.testing.assert_array_equal(numbers[:50], np.argsort(squares, axis=1, kind="stable")[:, :7])
        np.testing.assert_allclose(distances[:50], np.sort(squares, axis=1)[:, :7], rtol=1e-12)
        assert not (numbers == np.arange(3000)[:, None]).any()

    def test_copies_are_neighbours_of_each_other_lowest_number_first(self):
        rows = np.repeat(noise(20), 3, axis=0)
        numbers, distances = nearest_neighbours(rows, 2)
        for row in range(60):
            assert numbers[row].tolist() == [other for other in range(row // 3 * 3, row // 3 * 3 + 3) if other != row]
        assert not distances.any()

    def test_of_rows_that_are_all_alike_none_is_its_own(self):
        numbers, distances = nearest_neighbours(np.ones((50, 3), np.float32), 5)
        assert not (numbers == np.arange(50)[:, None]).any()
        assert not distances.any()

    def test_what_float32_cannot_rank_is_ranked_in_float64(self):
        """Groups 200 apart whose ten members are hundredths apart: float32 squares are off by more than that."""
        rng = np.random.default_rng(0)
        rows = (np.repeat(rng.choice([-50.0, 50.0], (40, 16)), 10, axis=0) + rng.normal(size=(400, 16)) * 0.003).astype(
            np.float32
        )
        squares = ((rows.astype(np.float64)[:, None] - rows.astype(np.float64)) ** 2).sum(axis=2)
        np.fill_diagonal(squares, np.inf)
        np.testing.assert_array_equal(nearest_neighbours(rows, 5)[0], np.argsort(squares, axis=1)[:, :5])

    def test_all_others(self):
        numbers, _ = nearest_neighbours(noise(5), 4)
        assert [sorted(row) for row in numbers.tolist()] == [sorted({0, 1, 2, 3, 4} - {row}) for row in range(5)]


class TestByHand:
    def test_affinities(self):
        """Three points on a line; 0 and 2 both have 1 as their nearest, 1 has 0."""
        numbers, distances = nearest_neighbours(line(0, 1, 3), 1)
        near, far = np.exp(-1 / 4), np.exp(-4 / 4)
        expected = [[0, 2 * near, 0], [2 * near, 0, far], [0, far, 0]]
        np.testing.assert_allclose(affinities(numbers, distances, 2.0).toarray(), expected)

    def test_centrality(self):
        """With a vanishing alpha 1 + alpha x (degree - mean degree); with any alpha what the iteration leaves alone."""
        graph = affinities(*nearest_neighbours(line(0, 1, 3), 1), 2.0)
        degree = graph.toarray().sum(axis=1)
        np.testing.assert_allclose((centrality(graph, 1e-6) - 1) / 1e-6, degree - degree.mean(), rtol=1e-4)
        settled = centrality(graph, 0.3)
        again = 0.3 * graph.toarray() @ settled + 0.7
        np.testing.assert_allclose(again / again.mean(), settled, rtol=1e-12)

    def test_images_climb_to_the_most_central_one(self):
        """Two crowds, in each of which the middle one has the most near neighbours."""
        rows = line(0.0, 0.1, 0.19, 0.3, 0.4, 5.0, 5.1, 5.2)
        found = pic(rows, neighbours=2)
        assert found.labels_N.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
        assert found.sizes_K.tolist() == [5, 3]
        np.testing.assert_allclose(found.centroids_Kd[:, 0], [0.198, 5.1], rtol=1e-6)
        np.testing.assert_allclose(found.distances_N, (rows[:, 0] - np.repeat([0.198, 5.1], [5, 3])) ** 2, atol=1e-6)
        assert found.objective == pytest.approx([found.distances_N.sum()])
        assert found.trained_on == 8

    def test_an_image_far_from_all_joins_its_nearest_neighbour(self):
        """1,000 from the others its affinities vanish; of the two crowds, the second is nearer."""
        rows = line(0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 5.3, 1000.0)
        assert pic(rows, neighbours=2).labels_N.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]

    def test_images_far_from_all_but_each_other_join_the_nearest_mean(self):
        """Three apart from each other: all their neighbours are as alone as they are."""
        rows = line(0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 5.3, -900.0, -1000.0, -1100.0)
        assert pic(rows, neighbours=2).labels_N.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]

    def test_of_two_equal_ways_up_the_first_is_taken(self):
        """The last image lies amid two crowds that mirror each other."""
        assert pic(line(2, 3, 4, -4, -3, -2, 0), neighbours=2, sigma=2.0).labels_N.tolist() == [0, 0, 0, 1, 1, 1, 0]

    def test_numbers_go_from_large_to_small_and_by_the_first_image(self):
        rows = line(9, 9.1, 9.2, 0, 0.1, 0.2, 5, 5.1, 5.2, 5.3)
        assert pic(rows, neighbours=2).labels_N.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0, 0]


class TestAgainstTheFormula:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(
        ("neighbours", "sigma", "alpha"), [(5, 0.2, 0.001), (3, 0.5, 0.2), (8, 0.15, 0.6), (1, 0.1, 0.01)]
    )
    def test_same_clusters(self, seed, neighbours, sigma, alpha):
        rows = noise(seed=seed)
        found = pic(rows, neighbours=neighbours, sigma=sigma, alpha=alpha)
        if (
            neighbours > 1
        ):  # pairs of mutual neighbours are level: one cluster here, two singletons by the plain formula
            assert partition(found.labels_N) == partition(dense_pic(rows, neighbours, sigma, alpha))
        assert found.sizes_K.min() > 1

    def test_separate_blobs_are_found_or_divided_but_never_mixed(self):
        rows, targets = blobs()
        found = pic(rows, sigma=0.2)
        for label in range(len(found.sizes_K)):
            assert len(set(targets[found.labels_N == label])) == 1

    def test_separate_blobs_are_found_exactly_with_enough_neighbours(self):
        rows, targets = blobs()
        assert partition(pic(rows, neighbours=39).labels_N) == partition(targets)


class TestInvariances:
    def test_permuted_rows_give_permuted_clusters(self):
        rows = noise(500)
        order = np.random.default_rng(1).permutation(500)
        found, permuted = pic(rows), pic(rows[order])
        assert partition(permuted.labels_N) == partition(found.labels_N[order])
        assert found.sizes_K.tolist() == permuted.sizes_K.tolist() == sorted(found.sizes_K, reverse=True)

    @pytest.mark.parametrize("copies", [2, 3, 6])
    def test_copies_share_their_cluster(self, copies):
        rows, order = noise(200), np.random.default_rng(2).permutation(200 * copies)
        labels = np.empty(200 * copies, int)
        labels[order] = pic(np.tile(rows, (copies, 1))[order]).labels_N
        assert (labels.reshape(copies, 200) == labels[:200]).all()

    def test_what_only_the_order_of_a_sum_tells_apart_is_level(self):
        """Every corner of a box has the same six edges, summed in another order: one peak for each of two boxes."""
        corners = np.array(np.meshgrid(*[[0, side] for side in (1, 1.0625, 1.125, 1.1875, 1.25, 1.3125)])).reshape(
            6, -1
        )
        rows = np.concatenate([corners.T, corners.T + 64])[np.random.default_rng(0).permutation(128)].astype(np.float32)
        assert pic(rows, neighbours=6, sigma=1.0, alpha=0.9).sizes_K.tolist() == [64, 64]

    def test_a_crowd_of_copies_is_one_cluster(self):
        rows = np.concatenate([np.zeros((60, 3)), np.ones((70, 3)), np.full((5, 3), 2.0)]).astype(np.float32)
        assert pic(rows).sizes_K.tolist() == [75, 60]  # the five are neighbours of some of the seventy only

    def test_bytes_do_not_depend_on_the_number_of_threads(self, monkeypatch):
        rows, found = np.concatenate([noise(2000), noise(2000)[:300]]), []
        monkeypatch.setattr(neighbours_module, "_BLOCK_ROWS", 256)
        for threads in (1, 2, 3):
            monkeypatch.setattr(blockwise, "_available_cores", lambda threads=threads: threads)
            with threadpool_limits(threads):
                result = pic(rows)
            found.append(result.labels_N.tobytes() + result.centroids_Kd.tobytes() + result.distances_N.tobytes())
        assert found[0] == found[1] == found[2]

    def test_types(self):
        found = pic(noise())
        types = [
            getattr(found, name).dtype for name in ("labels_N", "distances_N", "centroids_Kd", "objective", "sizes_K")
        ]
        assert types == [np.int32, np.float32, np.float32, np.float64, np.int64]
        assert found.sizes_K.tolist() == np.bincount(found.labels_N).tolist()


class TestErrors:
    def refused(self, rows, **settings):
        with pytest.raises(NumericsError) as error:
            pic(rows, **settings)
        return str(error.value)

    def test_too_many_neighbours(self):
        assert self.refused(noise(5)) == "cluster.pic.neighbours: must be < N = 5 images; got 5"

    def test_rows_that_are_not_finite(self):
        rows = noise()
        rows[17, 2] = np.nan
        assert self.refused(rows) == "rows: must be finite; got NaN or infinity in row 17"

    def test_rows_beyond_float32_distances(self):
        expected = "rows: too large for distances in float32; turn on pca.normalize or pca.whiten"
        assert self.refused(noise() * np.float32(1e25)) == expected

    def test_sigma_too_small(self):
        expected = (
            "cluster.pic.sigma: at 0.2 20 of 20 images are alone in their cluster, as half of the images are 10 and "
            "more from their nearest neighbour; try a sigma of about that, or pca.normalize"
        )
        assert self.refused(line(*range(0, 200, 10)), neighbours=1) == expected

    def test_sigma_too_small_for_all_but_one_cluster(self):
        rows = line(*range(0, 200, 10), 200.0, 200.1)
        assert self.refused(rows, neighbours=1).startswith("cluster.pic.sigma: at 0.2 20 of 22 images are alone in")

    def test_one_cluster(self):
        expected = (
            "cluster.pic: all images form one cluster; try fewer cluster.pic.neighbours, another cluster.pic.sigma, "
            "or cluster.method kmeans"
        )
        assert self.refused(np.ones((9, 2), np.float32), neighbours=8) == expected


def set_params(**changes):
    edit_params(Path("params.yaml"), {key.replace("__", "."): value for key, value in changes.items()})


def clusters(epoch):
    return artifacts.open_store(layout.clusters(epoch), "clusters", made_by="")


class TestStage:
    @pytest.fixture(autouse=True)
    def method(self, workspace):
        set_params(cluster__method="pic", cluster__pic__neighbours=3, cluster__pic__sigma=0.5)

    def test_two_epochs_to_the_report(self, workspace, outcome):
        for epoch in ("1", "2"):
            for command in ("extract", "pca", "cluster", "train"):
                status, out, err = outcome(command, "--epoch", epoch)
                assert status == 0, err
                if command == "cluster":
                    (line,) = out.splitlines()
                    k = len(clusters(epoch).read("sizes"))
                    expected = (
                        rf"cluster@{epoch}: \d+ to \d+ images a cluster, effective k [\d.]+ of {k} found, feature"
                    )
                    assert re.match(expected, line)
        for command in ("evaluate", "report", "summary"):
            status, out, err = outcome(command)
            assert status == 0, err
        for epoch in (1, 2):
            rows_Nd = artifacts.open_store(layout.pca(epoch), "pca", made_by="").read("reduced")
            expected, found = pic(rows_Nd, neighbours=3, sigma=0.5), clusters(epoch)
            np.testing.assert_array_equal(found.read("labels"), expected.labels_N)
            np.testing.assert_array_equal(found.read("distances"), expected.distances_N)
            np.testing.assert_array_equal(found.read("centroids"), expected.centroids_Kd)
            np.testing.assert_array_equal(found.read("sizes"), expected.sizes_K)
            assert (found.shape("objective"), found.attributes["trained_on"]) == ((1,), IMAGES)
        with open("data/evaluation/epochs.csv", newline="") as file:
            assert [int(row["k"]) for row in csv.DictReader(file)] == [len(clusters(e).read("sizes")) for e in (1, 2)]
        assert "final clustering" in out

    def test_health_is_measured_by_the_clusters_found(self, workspace, outcome):
        set_params(cluster__collapse__max_largest_share=0.01, cluster__fail_on_collapse=False)
        status, out, err = outcome("cluster", "--epoch", "1")
        assert status == 0, err
        warning = out.splitlines()[1]
        k = len(clusters(1).read("sizes"))
        assert re.fullmatch(
            rf"warning: collapse: the largest of {k} clusters holds \d+% of the images; try another "
            r"cluster\.pic\.sigma, pca\.whiten, or a lower train\.optimizer\.lr",
            warning,
        )

    def test_advice_against_drift_names_no_setting_of_kmeans(self):
        state = Health(effective_k=2, largest_share=0.5, empty=0, feature_rank=3, drift=0.8)
        limits = Limits(0.2, 0.5, 0.5, 1.05, max_drift=0.5)
        found = collapsed(state, np.array([2, 2]), 3, limits, method="pic")
        assert found is not None
        assert found.endswith("most allowed 0.5); try more cluster.pic.neighbours or a lower train.optimizer.lr")

    def test_a_collapse_does_not_send_to_sweep_k(self, workspace, outcome):
        set_params(cluster__collapse__max_largest_share=0.01)
        status, _, err = outcome("cluster", "--epoch", "1")
        assert status == 2
        assert err.endswith("Nothing was published; cluster.fail_on_collapse: false goes on all the same\n")

    def test_without_targets_the_final_k_is_cluster_k(self, workspace, outcome):
        set_params(data__root=str(flat_folder(Path("flat"))))
        for command in (["prepare"], ["initialise"], *([name, "--epoch", e] for e in "12" for name in EPOCH_STAGES)):
            status, _, err = outcome(*command)
            assert status == 0, err
        assert outcome("evaluate")[0] == 0
        assert json.loads(Path("data/evaluation/metrics.json").read_text())["k"] == 4

    def test_settings_that_do_not_fit(self, workspace, outcome):
        set_params(cluster__pic__neighbours=IMAGES)
        expected = f"error: cluster.pic.neighbours: must be < N = {IMAGES} images; got {IMAGES}\n"
        assert outcome("cluster", "--epoch", "1") == (2, "", expected)

    def test_memory(self, workspace, outcome, monkeypatch):
        monkeypatch.setattr(memory, "available_memory", lambda: 1000.0)
        expected = (
            "error: cluster: 48 x 4 values need about 0.00 GB of memory and 0.00 GB are available; "
            "take fewer pca.components\n"
        )
        assert outcome("cluster", "--epoch", "1") == (2, "", expected)
        monkeypatch.setattr(blockwise, "_available_cores", lambda: 2)
        blocks = 2 * 4096 * (4 * 1024 + 24 * 64)
        assert memory_needed(60_000, 64, 5) == 16 * 60_000 * 64 + 150 * 60_000 * 5 + blocks

    def test_sweep_k_is_for_kmeans(self, workspace, outcome):
        expected = "error: cluster.method: sweep-k compares runs of kmeans alone; epoch 1 has 'pic'\n"
        assert outcome("sweep-k", "--epoch", "1", "--k", "2,3") == (2, "", expected)


def flat_folder(folder):
    """The tiny project's images without classes."""
    write_images(folder / "classes")
    for path in (folder / "classes").rglob("*.png"):
        path.rename(folder / f"{path.parent.name}-{path.name}")
    shutil.rmtree(folder / "classes")
    return folder
