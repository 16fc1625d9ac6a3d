"""The numbers that sum up a run, out of metrics.json's content."""

from collections.abc import Mapping
from typing import Any

Metrics = Mapping[str, Any]
TRUST = ("view_agreement", "silhouette", "half_stability")
LEFT_OUT = ("test_ari", "test_many_to_one")  # of the scores, so that these fit beside each other


def headline(metrics: Metrics, kind: str = "final") -> dict[str, float]:
    """The numbers that sum up a run, by name, of the trained features or of a baseline; those that there are.

    nmi, ari, accuracy, many_to_one: of the final clustering, on the training images. test_...: the same on the test
    split. knn_20, knn_200, probe, map: of the held-out images. over_many_to_one: of the over-clustering.
    """
    scores = metrics["final"] if kind == "final" else metrics["baselines"].get(kind, {})
    found = {name: scores.get(name) for name in ("nmi", "ari", "accuracy")}
    found["many_to_one"] = measured(metrics, "many_to_one", kind)
    found |= {f"test_{name}": value for name, value in (measured(metrics, "test", kind) or {}).items()}
    found |= {name.replace("k", "knn_", 1): value for name, value in (measured(metrics, "knn", kind) or {}).items()}
    found["probe"] = (measured(metrics, "probe", kind) or {}).get("features")
    found["map"] = (measured(metrics, "retrieval", kind) or {}).get("map")
    found["over_many_to_one"] = (measured(metrics, "overclustering", kind) or {}).get("many_to_one")
    return {name: float(value) for name, value in found.items() if value is not None}


def measured(metrics: Metrics, section: str, kind: str) -> Any:
    """What a section has of one kind of features, or None."""
    content = metrics.get(section, {})
    return content.get("final") if kind == "final" else content.get("baselines", {}).get(kind)


def scores(metrics: Metrics) -> dict[str, float | int]:
    """scores.json, which `dvc metrics` and `dvc exp` show in a row: epoch, k, `headline`'s, and those without labels.

    The latter: effective_k of the final clustering, view_agreement, silhouette, half_stability; those that there are.
    """
    labelled = {name: value for name, value in headline(metrics).items() if name not in LEFT_OUT}
    trust = {name: value for name in TRUST if (value := metrics["trust"].get(name)) is not None}
    about = {"epoch": metrics["epoch"], "k": metrics["k"]}
    return about | labelled | {"effective_k": metrics["clusters"]["effective_k"]} | trust
