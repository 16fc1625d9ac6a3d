"""Clusters followed through the epochs."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster import artifacts, layout
from deepcluster.errors import ArtifactError
from deepcluster.evaluation import lineage
from deepcluster.evaluation.lineage import flows, history_row, matched, read_lineage, splits_and_merges, write_lineage
from deepcluster.evaluation.tables import write_results

FIRST = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], np.int32)
"""Twelve images in three clusters of four."""


def ids(*epochs, k):
    return [found.tolist() for found in matched([np.array(labels, np.int32) for labels in epochs], k=k)]


class TestMatching:
    def test_a_permutation_changes_nothing(self):
        permuted = np.array([2, 0, 1], np.int32)[FIRST]
        assert ids(FIRST, permuted, FIRST, k=3) == [FIRST.tolist()] * 3

    def test_each_epoch_is_matched_with_the_ids_of_the_one_before_not_with_its_numbers(self):
        once, twice = np.array([1, 2, 0], np.int32)[FIRST], np.array([2, 0, 1], np.int32)[FIRST]
        once[0] = 2  # an image of cluster 0 goes to the old 1
        second, third = ids(FIRST, once, twice, k=3)[1:]
        assert second == [1, *FIRST[1:].tolist()]
        assert third == FIRST.tolist()

    def test_another_number_of_clusters_each_epoch(self):
        """Of three clusters one ends, and its images join the second; then a new one has the free id."""
        two = np.where(FIRST == 2, 0, 1 - FIRST % 2).astype(np.int32)
        assert two.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
        second, third = ids(FIRST, two, FIRST, k=3)[1:]
        assert second == [0] * 4 + [1] * 8
        assert third == FIRST.tolist()

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 6))
    def test_ids_are_a_renaming_that_leaves_no_more_images_in_place_by_any_other(self, seed, before, after):
        from itertools import permutations

        rng = np.random.default_rng(seed)
        one, two = rng.integers(0, before, 40).astype(np.int32), rng.integers(0, after, 40).astype(np.int32)
        k = max(before, after)
        _, found = matched([one, two], k=k)
        assert len(set(zip(two.tolist(), found.tolist(), strict=True))) == len(set(two.tolist())) == len(set(found))
        best = max(int(np.sum(np.array(names)[two] == one)) for names in permutations(range(k)))
        assert int(np.sum(found == one)) == best


class TestFlows:
    def test_by_hand(self):
        found = flows(np.array([0, 0, 0, 2, 2, 1]), np.array([5, 5, 1, 1, 1, 5]))
        assert [array.tolist() for array in found] == [[0, 0, 1, 2], [1, 5, 5, 1], [1, 2, 1, 2]]

    def test_wrong_shapes(self):
        with pytest.raises(ValueError, match=r"labels of the same images expected; got \(2,\) and \(3,\)"):
            flows(np.zeros(2, int), np.zeros(3, int))


class TestSplitsAndMerges:
    def count(self, table):
        before, after = zip(
            *[(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)], strict=True
        )
        return splits_and_merges(flows(np.array(before), np.array(after)))

    def test_nothing_moves(self):
        assert self.count([[4, 0], [0, 4]]) == (0, 0)

    def test_a_quarter_is_a_part_and_less_is_not(self):
        """The first cluster of 8 gives 2 away, which is a quarter of it, but a fifth of the cluster that takes them."""
        assert self.count([[6, 2], [0, 8]]) == (1, 0)
        assert self.count([[7, 1], [0, 8]]) == (0, 0)

    def test_two_become_one(self):
        assert self.count([[5, 0], [5, 0]]) == (0, 1)

    def test_one_becomes_three_and_that_is_one_split(self):
        assert self.count([[3, 3, 3]]) == (1, 0)

    def test_a_cluster_can_do_both(self):
        assert self.count([[4, 4], [4, 4]]) == (2, 2)

    def test_a_single_image_cannot_split(self):
        assert self.count([[1, 0], [0, 1]]) == (0, 0)


class TestRows:
    def test_churn_is_the_share_of_images_with_another_id(self):
        after = FIRST.copy()
        after[[0, 4, 8]] = [1, 2, 0]
        assert history_row(7, FIRST, after) == {"epoch": 7, "clusters": 3, "churn": 0.25, "splits": 3, "merges": 3}

    def test_nothing_before(self):
        assert history_row(1, None, FIRST) == {"epoch": 1, "clusters": 3, "churn": None, "splits": None, "merges": None}

    def test_unmatched_numbers_have_no_churn(self):
        assert history_row(2, FIRST, 2 - FIRST, matched=False)["churn"] is None

    def test_csv_and_back(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        rows = [history_row(1, None, FIRST), history_row(2, FIRST, np.where(FIRST == 2, 1, FIRST))]
        write_results({}, {"lineage.csv": lineage.to_csv(rows)})
        assert lineage.to_csv(rows) == "epoch,clusters,churn,splits,merges\n1,3,,,\n2,2,0.333333,0,1\n"
        assert read_lineage() == [rows[0], rows[1] | {"churn": 0.333333}]

    def test_a_missing_and_a_damaged_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ArtifactError, match=r"^data/evaluation/lineage\.csv: not found; run `deepcluster run`$"):
            read_lineage()
        write_results({}, {"lineage.csv": "epoch,clusters\n1,3\n"})
        with pytest.raises(ArtifactError, match=r"^data/evaluation/lineage\.csv: damaged \('churn'\)"):
            read_lineage()


def write_history(labels: list[np.ndarray], provenance: artifacts.Provenance) -> None:
    for epoch, labels_N in enumerate(labels, start=1):
        origin = artifacts.Provenance(provenance.samples, provenance.ids, epoch)
        with artifacts.write_store(layout.clusters(epoch), "clusters", origin) as store:
            store.array("labels", labels_N, ("sample",))
            store.array("sizes", np.bincount(labels_N), ("cluster",))


class TestArtifacts:
    @pytest.fixture
    def provenance(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> artifacts.Provenance:
        monkeypatch.chdir(tmp_path)
        return artifacts.Provenance(12, "some ids", epoch=3)

    def test_of_three_epochs(self, provenance):
        joined = np.where(FIRST == 2, 0, 1 - FIRST % 2).astype(np.int32)
        write_history([FIRST, joined, FIRST], provenance)
        text = write_lineage(provenance, last=3)
        store = artifacts.open_store(layout.EVALUATION / "lineage.zarr", "lineage", made_by="evaluate", ids="some ids")
        found = store.read("trajectories")
        assert (found.dtype, found.shape) == (np.dtype(np.int32), (3, 12))
        assert found.tolist() == ids(FIRST, joined, FIRST, k=3)
        assert store.attributes["matched"] is True
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [(row["clusters"], row["churn"]) for row in rows] == [("3", ""), ("2", "0.333333"), ("3", "0.333333")]

    def test_too_many_clusters_for_the_memory_are_said_and_not_matched(self, provenance, monkeypatch, capsys):
        monkeypatch.setattr("deepcluster.memory.available_memory", lambda: 100.0)
        write_history([FIRST, 2 - FIRST], provenance)
        text = write_lineage(provenance, last=2)
        assert capsys.readouterr().out == (
            "evaluate: cluster numbers are not matched between the epochs: tables of 3 clusters need about 0.00 GB of "
            "memory and 0.00 GB are available\n"
        )
        store = artifacts.open_store(layout.EVALUATION / "lineage.zarr", "lineage", made_by="evaluate")
        assert store.attributes["matched"] is False
        assert store.read("trajectories").tolist() == [FIRST.tolist(), (2 - FIRST).tolist()]
        assert [row["churn"] for row in lineage.from_csv(text)] == [None, None]

    def test_an_epoch_of_another_data_set_is_refused(self, provenance):
        write_history([FIRST], artifacts.Provenance(12, "other ids"))
        with pytest.raises(ArtifactError, match=r"clusters\.zarr: belongs to another data set or sample order"):
            write_lineage(provenance, last=1)


def test_evaluate_publishes_the_lineage_of_the_run(finished, monkeypatch):
    monkeypatch.chdir(finished.root)
    store = artifacts.open_store(layout.EVALUATION / "lineage.zarr", "lineage", made_by="evaluate", epoch=2)
    labels = [artifacts.open_store(layout.clusters(e), "clusters", made_by="").read("labels") for e in (1, 2)]
    first, second = store.read("trajectories")
    np.testing.assert_array_equal(first, labels[0])
    assert len(set(zip(second.tolist(), labels[1].tolist(), strict=True))) == len(set(labels[1].tolist()))
    row = read_lineage()[1]
    assert row["churn"] == pytest.approx(float(np.mean(first != second)), abs=1e-6)
