"""What evaluate writes for readers: metrics.json, with a digest of itself and those of the tables beside it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from deepcluster import artifacts, layout

T = TypeVar("T")
METRICS, SHA256 = layout.EVALUATION / "metrics.json", "sha256"


def write_results(metrics: Mapping[str, Any], tables: Mapping[str, str]) -> None:
    """Publish the tables (CSV texts by file name), then metrics.json with their sha256."""
    for name, text in tables.items():
        artifacts.write_text(layout.EVALUATION / name, text)
    digests = {name: artifacts.text_sha256(text) for name, text in tables.items()}
    artifacts.write_json(METRICS, {**metrics, SHA256: digests})


def read_metrics() -> dict[str, Any]:
    """metrics.json less the tables' digests; ArtifactError if it is missing or damaged."""
    metrics = artifacts.read_json(METRICS, made_by="evaluate")
    metrics.pop(SHA256, None)
    return metrics


def read_table(name: str, parse: Callable[[str], T]) -> T:
    """What `parse` makes of a table's text; ArtifactError if that or metrics.json is missing or damaged."""
    path = layout.EVALUATION / name
    if not path.exists():  # said first: the nearest cause
        artifacts.read_result(path, made_by="evaluate")
    known = artifacts.read_json(METRICS, made_by="evaluate").get(SHA256, {})
    text = artifacts.read_result(path, made_by="evaluate", sha256=known.get(name, ""))
    with artifacts.reading(path):
        return parse(text)
