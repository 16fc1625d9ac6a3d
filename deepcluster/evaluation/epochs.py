"""epochs.csv: one row an epoch, from its label array and training summary."""

import csv
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, layout, metrics
from deepcluster.evaluation.tables import read_metrics, read_table

Row = dict[str, float | int | None]
FIELDS = (
    "epoch", "nmi", "ari", "accuracy", "nmi_previous", "loss", "pseudo_label_accuracy",
    "smallest", "largest", "empty", "effective_k", "feature_rank", "k",
)  # fmt: skip


def epoch_row(epoch: int, ids: str, targets_N: NDArray[np.int64] | None) -> Row:
    """One epoch's numbers; None where there is nothing to compare with (no targets, no epoch before)."""
    clusters = _clusters(epoch, ids)
    labels_N, sizes_K = clusters.read("labels"), clusters.read("sizes")
    previous_N = _clusters(epoch - 1, ids).read("labels") if epoch > 1 else None
    summary = _summary(epoch)
    statistics = metrics.cluster_statistics(sizes_K)
    return {
        "epoch": epoch,
        "nmi": None if targets_N is None else metrics.nmi(labels_N, targets_N),
        "ari": None if targets_N is None else metrics.ari(labels_N, targets_N),
        "accuracy": None if targets_N is None else metrics.hungarian_accuracy(labels_N, targets_N),
        "nmi_previous": None if previous_N is None else metrics.nmi(labels_N, previous_N),
        "loss": summary["loss"],
        "pseudo_label_accuracy": summary["accuracy"],
        "smallest": int(statistics["smallest"]),
        "largest": int(statistics["largest"]),
        "empty": int(statistics["empty"]),
        "effective_k": statistics["effective_k"],
        "feature_rank": clusters.attributes["health"]["feature_rank"],
        "k": len(sizes_K),
    }


def last_scores(rows: list[Row]) -> Row:
    """Scores of the labels that trained the last epoch."""
    return {name: rows[-1][name] for name in ("epoch", "nmi", "ari", "accuracy", "k")}


def to_csv(rows: list[Row]) -> str:
    """The rows as CSV; nan where a value is None: of an empty field DVC's charts make a zero."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "nan" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """What `to_csv` wrote."""
    whole = ("epoch", "smallest", "largest", "empty", "k")

    def value(name: str, field: str) -> float | int | None:
        return None if field == "nan" else int(field) if name in whole else float(field)

    return [{name: value(name, field) for name, field in row.items()} for row in csv.DictReader(io.StringIO(text))]


def read_results() -> tuple[list[Row], dict[str, Any]]:
    """epochs.csv and metrics.json, as evaluate wrote them; ArtifactError if one is missing or damaged."""
    return read_table("epochs.csv", from_csv), read_metrics()


def _clusters(epoch: int, ids: str) -> artifacts.Store:
    path = layout.clusters(epoch)
    return artifacts.open_store(path, "clusters", made_by=f"cluster@{epoch}", ids=ids, epoch=epoch)


def _summary(epoch: int) -> dict[str, float]:
    path = layout.train_summary(epoch)
    summary = artifacts.read_json(path, made_by=f"train@{epoch}")
    with artifacts.reading(path):
        return {name: float(summary[name]) for name in ("loss", "accuracy")}
