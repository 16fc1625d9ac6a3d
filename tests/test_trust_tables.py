"""The arithmetic of docs/trust.md's tables, by hand."""

import json

import pytest

from benchmarks import trust_tables
from deepcluster.trust import MEASURES

LABELS = {"perfect": [0, 0, 1, 1], "crossed": [0, 1, 0, 1]}


def epoch(number, accuracy, **values):
    return dict.fromkeys((*MEASURES, "balance", "pseudo_label_accuracy")) | {
        "epoch": number,
        "accuracy": accuracy,
        **values,
    }


@pytest.fixture
def measured(tmp_path):
    runs = {
        "a-1": [epoch(2, 0.5, drift=0.3), epoch(4, 0.7, drift=0.2), epoch(6, 0.9, drift=0.1, margin=0.4)],
        "a-2": [epoch(2, 0.5, drift=0.1), epoch(4, 0.7, drift=0.3), epoch(6, 0.6, drift=0.2, margin=0.2)],
        "b-1": [epoch(2, 0.4, drift=0.1), epoch(4, 0.5, drift=0.2), epoch(6, 0.8, drift=0.3, margin=0.5)],
    }
    for name, rows in runs.items():
        labels = [LABELS["perfect"], LABELS["perfect"], LABELS["crossed" if name == "b-1" else "perfect"]]
        (tmp_path / name).mkdir()
        (tmp_path / name / "measured.json").write_text(json.dumps({"rows": rows, "labels": labels}))
    return tmp_path


def test_consensus_and_neighbours_are_those_of_the_labels(measured):
    rows_of, _ = trust_tables.read(measured)
    assert [row["neighbours"] for row in rows_of["b", 1]] == pytest.approx([1, 0.25, -0.5])
    assert [row["consensus"] for row in rows_of["b", 1]] == pytest.approx([0.25, 0.25, -0.5])
    assert [row["consensus"] for row in rows_of["a", 2]] == [1, 1, 1]


def test_over_epochs(measured):
    rows_of, _ = trust_tables.read(measured)
    lines = {line[0]: line[1:] for line in trust_tables.over_epochs(rows_of, [("a", 1), ("b", 1)])}
    assert lines["drift"] == ("0.00", "-1.00", "1 of 2")  # 1 in a, whose drift falls as accuracy rises; -1 in b
    assert lines["margin"] == ("-", "-", "0 of 0")


def test_over_runs(measured):
    rows_of, labels_of = trust_tables.read(measured)
    assert trust_tables.over_settings(rows_of, labels_of, 1)["drift"] is None  # two settings
    last = trust_tables.last_epochs(rows_of, labels_of, list(rows_of))
    assert [row["consensus"] for row in last] == pytest.approx([0.25, 0.25, -0.5])
    counts = trust_tables.over_seeds(rows_of, labels_of)
    assert counts["drift"] == (1, 1)  # of a: 0.1 and 0.9 beside 0.2 and 0.6
    assert counts["margin"] == (1, 1)
    assert counts["silhouette"] == (0, 0)


def test_what_the_score_picks(measured):
    rows_of, _ = trust_tables.read(measured)
    for row, score in zip(rows_of["a", 2], (0.1, 0.9, 0.2), strict=True):
        row["score"] = score
    for row, score in zip(rows_of["b", 1], (0.1, 0.1, 0.2), strict=True):
        row["score"] = score
    assert trust_tables.choices(rows_of, [("a", 2), ("b", 1)]) == [
        ("a, seed 2", "4", "0.7000", "0.6000", "0.6000", "0.7000"),
        ("b, seed 1", "6", "0.8000", "0.8000", "0.5667", "0.8000"),
        ("mean", "", "0.7500", "0.7000", "0.5833", "0.7500"),
    ]


def test_the_report_keeps_apart_what_the_score_was_chosen_on(measured):
    text = trust_tables.report(measured)
    chosen, tested = text.split("Runs that it was tested on:")
    assert "a, seed 1" in chosen
    assert "b, seed 1" in chosen
    assert "seed 2" not in chosen
    assert "a, seed 2" in tested
    assert "settings, seed 1" in tested
