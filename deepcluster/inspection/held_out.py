"""metrics.json's measures beyond the final clustering's own scores, as tables: held-out images, probes, over-clusters.

Each table has a row for the trained features and one for each baseline, and is empty where nothing was measured.
"""

from collections.abc import Callable, Mapping

from deepcluster.headline import Metrics, headline, measured
from deepcluster.inspection.tables import BASELINES, Cells, value_text

KINDS = {"final": "trained features", "pixels": "raw pixels", "untrained": BASELINES["untrained"]}


def held_out_cells(metrics: Metrics) -> Cells:
    """Scores of the held-out images: clusters, where there is a test split; k-NN, probe and retrieval."""

    def of(kind: str) -> dict[str, float]:
        clustered = ("test_nmi", "test_ari", "test_accuracy", "test_many_to_one")
        found = headline(metrics, kind)
        wanted = [name for name in found if name in clustered or name.startswith("knn_") or name in ("probe", "map")]
        return {name.removeprefix("test_"): found[name] for name in wanted}

    return _cells(of)


def probe_cells(metrics: Metrics) -> Cells:
    """Accuracy of the linear probe of each block; empty unless blocks were probed."""
    found = {kind: measured(metrics, "probe", kind) or {} for kind in KINDS}
    return _cells(lambda kind: found[kind] if len(found["final"]) > 1 else {})


def overclustering_cells(metrics: Metrics) -> Cells:
    """Scores of the over-clustering: accuracy one cluster a class, many_to_one any number of clusters a class."""
    return _cells(lambda kind: measured(metrics, "overclustering", kind) or {})


def held_out_sentence(metrics: Metrics) -> str:
    """Which images the table of held-out images is of."""
    about = metrics["held_out"]
    return f"Held out: {about['images']:,} images, {about['what']}"


def overclustering_sentence(metrics: Metrics) -> str:
    """What the table of the over-clustering is of."""
    return f"Over-clustering: the same features in {metrics['overclustering']['k']:,} clusters"


def tables(metrics: Metrics) -> list[tuple[str, Cells]]:
    """Every table that has rows, with a sentence on what it shows."""
    found = []
    if (cells := held_out_cells(metrics)).rows:
        found.append((held_out_sentence(metrics), cells))
    if (cells := probe_cells(metrics)).rows:
        found.append(("Linear probe of each block, accuracy on the held-out images", cells))
    if (cells := overclustering_cells(metrics)).rows:
        found.append((overclustering_sentence(metrics), cells))
    return found


def _cells(of: Callable[[str], Mapping[str, float]]) -> Cells:
    rows = {title: of(kind) for kind, title in KINDS.items()}
    rows = {title: values for title, values in rows.items() if values}
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    texts = [[title, *(value_text(name, values.get(name)) for name in names)] for title, values in rows.items()]
    return Cells(["features", *names], texts)
