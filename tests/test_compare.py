"""`deepcluster compare`: agreement by hand and by brute force, CKA by its formula, the files, and what is refused."""

import csv
import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from deepcluster import artifacts, layout
from deepcluster.compare import comparison
from deepcluster.compare.agreement import Flow, Parts, agreement
from deepcluster.compare.cka import linear_cka
from deepcluster.compare.sheet import MOVERS, ROWS, movers, sheet_of
from deepcluster.compare.sides import parse_side
from deepcluster.errors import UserError


class TestAgreement:
    # A's cluster 0 falls into 3 and 1 of B (3 and 2 images), 1 stays as 2 (4 images), and 2 joins it (2 images).
    A = np.array([0] * 5 + [1] * 4 + [2] * 2)
    B = np.array([3] * 3 + [1] * 2 + [2] * 4 + [2] * 2)

    def test_by_hand(self):
        found = agreement(self.A, self.B)
        assert found.flows == [Flow(1, 2, 4, True), Flow(0, 3, 3, True), Flow(0, 1, 2, False), Flow(2, 2, 2, False)]
        assert np.flatnonzero(found.moved_N).tolist() == [3, 4, 9, 10]
        assert found.split == [Parts(0, 5, {3: 3, 1: 2})]
        assert found.merged == [Parts(2, 6, {1: 4, 2: 2})]
        assert (found.vanished, found.appeared) == ([2], [1])

    def test_the_threshold_is_a_share_of_the_cluster(self):
        assert agreement(self.A, self.B, threshold=0.4).split == [Parts(0, 5, {3: 3, 1: 2})]  # exactly 40 %
        found = agreement(self.A, self.B, threshold=0.41)
        assert (found.split, found.merged) == ([], [])

    def test_the_same_clusters_under_other_numbers(self):
        found = agreement(self.A, np.array([7, 0, 3])[self.A])
        assert (found.ari, found.nmi, found.moved_N.any()) == (1, 1, False)
        assert (found.split, found.merged, found.vanished, found.appeared) == ([], [], [], [])
        assert all(flow.matched for flow in found.flows)

    def test_as_many_stay_as_under_the_best_of_all_matchings(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            a_N, b_N = rng.integers(0, 5, 40), rng.integers(0, 4, 40)
            best = max(int((np.array(names)[b_N] == a_N).sum()) for names in permutations(range(5), 4))
            found = agreement(a_N, b_N)
            assert int((~found.moved_N).sum()) == best == sum(flow.images for flow in found.flows if flow.matched)
            assert found.ari == pytest.approx(adjusted_rand_score(a_N, b_N))
            assert found.nmi == pytest.approx(normalized_mutual_info_score(a_N, b_N))
            assert sum(flow.images for flow in found.flows) == 40

    def test_clusters_of_one_image_and_one_cluster_of_all(self):
        single = agreement(np.array([0, 1, 2]), np.array([0, 0, 1]))
        assert single.split == []
        assert single.merged == [Parts(0, 2, {0: 1, 1: 1})]
        one = agreement(np.zeros(4, int), np.zeros(4, int))
        assert (one.ari, one.nmi, one.moved_N.any()) == (1, 1, False)
        apart = agreement(np.zeros(4, int), np.arange(4))
        assert apart.split == [Parts(0, 4, {0: 1, 1: 1, 2: 1, 3: 1})]
        assert apart.moved_N.sum() == 3

    @pytest.mark.parametrize("threshold", [0, 0.51, -1, float("nan")])
    def test_a_wrong_threshold(self, threshold):
        with pytest.raises(ValueError, match=r"threshold must be > 0 and <= 0\.5"):
            agreement(self.A, self.B, threshold=threshold)


def by_kernels(x_ND, y_NE):
    """Linear CKA as HSIC of centred kernels, N x N."""
    centring_NN = np.eye(len(x_ND)) - 1 / len(x_ND)
    k_NN, l_NN = (centring_NN @ (rows @ rows.T) @ centring_NN for rows in (x_ND.astype(float), y_NE.astype(float)))
    return float((k_NN * l_NN).sum() / np.sqrt((k_NN**2).sum() * (l_NN**2).sum()))


def in_blocks(x_ND, y_NE, size=7):
    return ((x_ND[i : i + size], y_NE[i : i + size]) for i in range(0, len(x_ND), size))


class TestCKA:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 9)).astype(np.float32) + 4
    Y = (X[:, :5] ** 2 + rng.normal(size=(60, 5))).astype(np.float32)

    @pytest.mark.parametrize("size", [1, 7, 60])
    def test_equals_the_formula_with_kernels(self, size):
        value, rows = linear_cka(in_blocks(self.X, self.Y, size))
        assert rows == 60
        assert 0.1 < value < 0.9
        assert value == pytest.approx(by_kernels(self.X, self.Y), rel=1e-9)

    def test_rotation_scale_and_offset_change_nothing(self):
        rotation, _ = np.linalg.qr(self.rng.normal(size=(9, 9)))
        assert linear_cka(in_blocks(self.X, 3 * self.X @ rotation - 5))[0] == pytest.approx(1, abs=1e-9)
        shifted = self.Y.astype(np.float64) + 1e6
        assert linear_cka(in_blocks(self.X, shifted))[0] == pytest.approx(by_kernels(self.X, self.Y), rel=1e-6)

    def test_rows_that_are_not_finite_are_left_out(self):
        x_ND, y_NE = self.X.copy(), self.Y.copy()
        x_ND[3, 0], y_NE[11, 2] = np.nan, np.inf
        kept = np.delete(np.arange(60), [3, 11])
        assert linear_cka(in_blocks(x_ND, y_NE)) == (pytest.approx(by_kernels(self.X[kept], self.Y[kept])), 58)

    def test_undefined(self):
        assert linear_cka(in_blocks(np.ones((8, 3)), self.Y[:8])) == (None, 8)
        assert linear_cka(in_blocks(np.full((8, 3), np.nan), self.Y[:8])) == (None, 0)
        assert linear_cka(iter([])) == (None, 0)


class TestSheet:
    def test_the_largest_moves_and_of_each_the_images_nearest_to_their_new_centroid(self):
        a_N, b_N = np.array([0] * 6 + [1] * 3), np.array([0] * 3 + [1] * 3 + [1] * 3)
        distances_N = np.array([0, 0, 0, 3, 1, 2, 0, 0, 0.0])
        flows = [Flow(0, 0, 3, True), Flow(1, 1, 3, True), Flow(0, 1, 3, False)]
        assert movers(flows, a_N, b_N, distances_N) == [(flows[2], [4, 5, 3])]

    def test_no_more_than_fit(self):
        a_N, b_N = np.repeat(np.arange(20), 10), np.zeros(200, int)
        flows = [Flow(a, 0, 10, False) for a in range(20)]
        found = movers(flows, a_N, b_N, np.zeros(200))
        assert [flow.a for flow, _ in found] == list(range(ROWS))
        assert all(images == list(range(10 * flow.a, 10 * flow.a + MOVERS)) for flow, images in found)

    def test_places(self):
        sheet = sheet_of(
            [(Flow(0, 1, 2, False), [5, 6]), (Flow(2, 1, 1, False), [7])],
            {0: 10, 2: 12},
            {1: 11},
            lambda index: np.full((1, 2, 2), index, np.uint8),
        )
        assert sheet[..., 0, 0, 0].tolist() == [[10, 5, 6, 128, 11], [12, 7, 128, 128, 11]]


class TestSides:
    @pytest.mark.parametrize(
        ("text", "side"),
        [
            ("7", (None, 7)),
            ("main", ("main", None)),
            ("HEAD~1:3", ("HEAD~1", 3)),
            ("feature/x", ("feature/x", None)),
            ("1234567:2", ("1234567", 2)),
        ],
    )
    def test_texts(self, text, side):
        assert parse_side(text, "A") == side

    @pytest.mark.parametrize("text", ["", ":3", "main:", "main:x", "main:-1"])
    def test_wrong_texts(self, text):
        with pytest.raises(
            UserError, match=r"^B: must be EPOCH, REVISION or REVISION:EPOCH, as 7, main~1, main~1:7; got"
        ):
            parse_side(text, "B")


def recluster(epoch, labels_N, **provenance):
    """Other clusters in the place of an epoch's."""
    store = artifacts.open_store(layout.clusters(epoch), "clusters", made_by="x")
    made = {"samples": store.samples, "ids": store.ids, "epoch": epoch, "seed": 1} | provenance
    extra = {name: store.attributes[name] for name in ("health", "trained_on")}
    arrays = {name: store.read(name) for name in ("distances", "centroids", "objective")}
    with artifacts.write_store(layout.clusters(epoch), "clusters", artifacts.Provenance(**made), **extra) as writer:
        writer.array("labels", labels_N.astype(np.int32), ("sample",))
        writer.array("sizes", np.bincount(labels_N), ("cluster",))
        for name, values in arrays.items():
            writer.array(name, values, [f"axis_{axis}" for axis in range(values.ndim)])


@pytest.fixture
def two(workspace):
    """Epoch 1: clusters 0 to 2 of 20, 20 and 8 images. Epoch 2: other numbers; four images of 0 and all of 2 in 9."""
    before_N = np.repeat([0, 1, 2], [20, 20, 8])
    after_N = np.array([5, 3, 9])[before_N]
    after_N[:4] = 9
    recluster(1, before_N)
    recluster(2, after_N)
    return workspace


class TestCommand:
    def test_what_is_said_and_written(self, two, outcome):
        status, out, err = outcome("compare", "1", "2")
        assert (status, err) == (0, "")
        assert out.splitlines()[0] == "A: epoch 1, 3 clusters; B: epoch 2, 10 clusters"
        assert "  moved     4 images, 8.3%\n" in out
        assert "A \\ B   5   3  9\n    0  16   -  4\n    1   -  20  -\n    2   -   -  8\n" in out
        assert "A -> B  images\n0 -> 9       4\n" in out
        assert "in each of several of B\n  none\n" in out
        assert "from each of several of A\n  9  12 images, from 2 (67%), 0 (33%)\n" in out
        folder = Path("data/comparisons/1-2")
        names = ["comparison.json", "confusion.csv", "movers.csv", "movers.png"]
        assert sorted(path.name for path in folder.iterdir()) == names
        found = json.loads((folder / "comparison.json").read_text())
        assert (found["moved"], found["images"], found["threshold"]) == (4, 48, 0.25)
        assert found["merged"][0]["from"] == [{"cluster": 2, "images": 8}, {"cluster": 0, "images": 4}]
        ids = artifacts.open_store(layout.IMAGES, "images", made_by="x").strings("sample_ids")
        rows = list(csv.reader((folder / "movers.csv").open()))
        assert rows == [["index", "sample", "cluster_a", "cluster_b"], *([str(i), ids[i], "0", "9"] for i in range(4))]
        confusion = (folder / "confusion.csv").read_text()
        assert confusion == "cluster_a,cluster_b,images,matched\n1,3,20,yes\n0,5,16,yes\n2,9,8,yes\n0,9,4,no\n"
        sheet = Image.open(folder / "movers.png")
        assert sheet.size == (96 + 8 + 5 * 98 + 96, 96)  # the old centre, four movers, grey, the new centre

    def test_features(self, two, outcome):
        found = json.loads(outcome("compare", "1", "2", "--json")[1])
        features = [artifacts.open_store(layout.features(e), "features", made_by="x").read("features") for e in (1, 2)]
        assert found["cka"] == pytest.approx(by_kernels(*features), rel=1e-6)
        assert (found["cka_rows"], found["cka_problem"]) == (48, None)
        shutil.rmtree(layout.features(2))
        found = json.loads(outcome("compare", "1", "2", "--json")[1])
        problem = "data/epochs/2/features.zarr: not found; run `dvc repro extract@2`"
        assert (found["cka"], found["cka_problem"]) == (None, problem)
        assert f"CKA       - ({problem})" in outcome("compare", "1", "2")[1]

    def test_of_many_rows_evenly_spaced_ones(self, two, outcome, monkeypatch):
        monkeypatch.setattr(comparison, "CKA_ROWS", 12)
        monkeypatch.setattr(comparison, "BLOCK_ROWS", 10)
        found = json.loads(outcome("compare", "1", "2", "--json")[1])
        features = [artifacts.open_store(layout.features(e), "features", made_by="x").read("features") for e in (1, 2)]
        assert found["cka_rows"] == 12
        assert found["cka"] == pytest.approx(by_kernels(*(rows[::4] for rows in features)), rel=1e-6)

    def test_a_second_run_without_movers_leaves_no_old_sheet(self, two, outcome):
        folder = Path("a folder")
        assert outcome("compare", "1", "2", "--out", str(folder))[0] == 0
        assert (folder / "movers.png").exists()
        status, out, _ = outcome("compare", "2", "2", "--out", str(folder))
        assert status == 0
        assert "movers.png       none: no image moved\n" in out
        assert not (folder / "movers.png").exists()
        assert (folder / "movers.csv").read_text().count("\n") == 1

    def test_without_the_images(self, two, outcome):
        shutil.rmtree(layout.IMAGES)
        status, out, _ = outcome("compare", "1", "2")
        assert status == 0
        assert "movers.png       none: the images are not there\n" in out
        assert Path("data/comparisons/1-2/movers.csv").read_text().splitlines()[1] == "0,,0,9"

    def test_many_clusters_without_the_matrix(self, two, outcome):
        recluster(1, np.arange(48) % 40)
        out = outcome("compare", "1", "2")[1]
        assert "A \\ B" not in out
        assert "The largest moves\n" in out

    def test_nothing_but_the_folder_is_written(self, two, outcome):
        before = two.digests("data", "stages")
        assert outcome("compare", "1", "2", "--out", "elsewhere")[0] == 0
        assert two.digests("data", "stages") == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("1", "9"), "B: must be one that was run (1 to 2); got 9"),
            (("0", "1"), "A: must be an epoch >= 1 (epoch 0 is the untrained backbone, with no clusters); got 0"),
            (("1", "2", "--threshold", "0.6"), "--threshold: must be > 0 and <= 0.5; got 0.6"),
            (("1", "2", "--out", "params.yaml"), "--out: params.yaml cannot be written: File exists"),
        ],
    )
    def test_refusals(self, two, outcome, arguments, message):
        assert outcome("compare", *arguments) == (2, "", f"error: {message}\n")

    def test_other_images(self, two, outcome):
        recluster(2, np.zeros(48, int), ids="others")
        message = "error: epoch 1 and epoch 2 are of different images, or in another order (48 and 48 images)\n"
        assert outcome("compare", "1", "2") == (2, "", message)


def test_revisions(project, outcome, monkeypatch):
    """The clusters of the commit beside others in the workspace, with a path that a folder's name cannot hold."""
    project.commit("a run")
    project.run("git", "branch", "some/branch")
    monkeypatch.chdir(project.root)
    for name, value in project.environment.items():
        if name.startswith(("DVC", "GIT")):
            monkeypatch.setenv(name, value)
    labels_N = artifacts.open_store(layout.clusters(2), "clusters", made_by="x").read("labels")
    shutil.rmtree(layout.clusters(1))
    shutil.rmtree(layout.features(1))
    found = json.loads(outcome("compare", "some/branch:1", "HEAD", "--json")[1])
    assert [(found[side]["name"], found[side]["epoch"]) for side in "ab"] == [
        ("epoch 1 at some/branch", 1),
        ("epoch 2 at HEAD", 2),
    ]
    assert 0 < found["cka"] < 1
    assert Path("data/comparisons/some_branch_1-HEAD/movers.csv").exists()
    moved_N = labels_N.copy()
    moved_N[0] = (moved_N[0] + 1) % 4
    recluster(2, moved_N)
    found = json.loads(outcome("compare", "HEAD", "2", "--json")[1])
    assert (found["moved"], found["cka"]) == (1, pytest.approx(1))
    assert found["flows"] == [{"a": int(labels_N[0]), "b": int(moved_N[0]), "images": 1}]
