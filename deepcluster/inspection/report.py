"""A run as one HTML page: nothing fetched, images and curves inside, the same bytes for the same run.

Shapes: N images, E epochs shown in the flow diagram, S images on the map, d components.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.inspection.clusters import MOST_CLUSTERS, describe_clusters, gallery
from deepcluster.inspection.confusion import confusion, matrix
from deepcluster.inspection.flow import FOLLOWED, diagram
from deepcluster.inspection.page import encodable, page, section, table, text
from deepcluster.inspection.plots import curves, drawable, explained_curve
from deepcluster.inspection.scatter import scatter
from deepcluster.inspection.tables import EPOCH_COLUMNS, Cells, Row, baseline_cells, epoch_cells, value_text
from deepcluster.inspection.thumbnails import Images

CLUSTERED = (
    "The result and the clusters below come from one final k-means on the features that the last epoch's backbone "
    "gives for all images of this data set, each row divided by its length, without PCA or whitening. The baselines "
    "had the same k and number of restarts: the pixels themselves (with model.sobel also as its filters leave them), "
    "and the features of the same backbone before any training."
)
PSEUDO_LABELS = (
    "The rows below are another clustering: the pseudo-labels that each epoch trained on. Those of epoch e were made "
    "before its training, from the reduced features of the backbone as epoch e - 1 left it, in k clusters: those of "
    "section cluster in the parameters (cluster.method pic finds its own), beyond refine.after those of section "
    "refine. Compare epochs of the same k with each other, not with the result above."
)
TARGETS_USED = (
    "True labels were compared with the clusters only to compute nmi, ari, accuracy and purity; no training stage "
    "reads them. The same images were trained on and clustered: nothing here is measured on held-out images, but for "
    "the tables that say so."
)
TARGETS_ABSENT = "This data set has no true labels, so nothing here says whether the clusters mean anything."
LINEAGE = (
    "The pseudo-labels' clusters, followed: each epoch's numbers are matched with those before, so that most images "
    "keep theirs. churn is the share of images whose cluster is another one all the same. A cluster splits when two or "
    "more clusters each take at least a quarter of its images, and merges when two or more each give it a quarter of "
    "theirs."
)
CONFUSED = (
    "Images of each class by final cluster. Each class stands with the cluster matched with it one to one (bold), "
    "which is what accuracy counts as right; the shade is the share of the class."
)
LINEAGE_COLUMNS = ("epoch", "clusters", "churn", "splits", "merges")
PLACED = {
    "pca": "their first two principal components; what lies close together here may be far apart in other components",
    "tsne": "t-SNE of their first principal components, which keeps neighbours together; distances between groups, and "
    "their sizes, mean nothing",
    "umap": "UMAP of their first principal components, which keeps neighbours together; distances between groups mean "
    "little",
}
NO_TIMINGS = (
    "Left out, so that the same run gives the same page; report.timings: true puts them here. "
    "data/timings.csv has them in any case."
)


@dataclass(frozen=True)
class Lineage:
    """Rows of lineage.csv, and of the epochs to draw (one or more) the matched ids int32 [N]."""

    rows: Sequence[Row]
    epochs: Sequence[int]
    trajectories_EN: Sequence[npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Map:
    """Which images lie where: rows int64 [S] of the data set, places float32 [S, 2], "pca", "tsne" or "umap"."""

    sample_S: npt.NDArray[np.int64]
    plane_S2: npt.NDArray[np.float32]
    method: str


def render_report(
    *,
    title: str,
    summary: Mapping[str, float | int | str | None],
    epochs: Sequence[Row],
    baselines: Mapping[str, Mapping[str, float]],
    images: Images,
    sample_ids: Sequence[str],
    labels_N: npt.NDArray[np.integer[Any]],
    distances_N: npt.NDArray[np.floating[Any]],
    class_names: Sequence[str] | None,
    targets_N: npt.NDArray[np.integer[Any]] | None,
    params_text: str,
    warnings: Sequence[str],
    ratios_N: npt.NDArray[np.floating[Any]] | None = None,
    lineage: Lineage | None = None,
    places: Map | None = None,
    explained_d: npt.NDArray[np.floating[Any]] | None = None,
    timings: Cells | None = None,
    per_cluster: int = 10,
    max_clusters: int = MOST_CLUSTERS,
    clustered: str = CLUSTERED,
    seed: int = 0,
    further: Sequence[tuple[str, Cells]] = (),
) -> str:
    """The whole page as text; write it as UTF-8. Sections of what is None are left out.

    summary: final values by name; those that a baseline has too stand beside it, the others in a list.
    labels_N, distances_N: the final clustering, and each sample's distance to its centroid; ratios_N: to which it is
    what share of the distance to the next centroid. explained_d: shares of the variance. seed: of the random members.
    clustered: what summary, baselines and labels_N are clusterings of, in sentences, if not what CLUSTERED says.
    further: more tables below the result, each with a sentence on what it shows (`inspection.held_out.tables`).
    """
    lengths = {len(sample_ids), len(labels_N), int(images.shape[0])} | (
        {len(targets_N)} if targets_N is not None else set()
    )
    if len(lengths) > 1:
        raise ValueError(f"images, sample ids, labels and targets differ in length: {sorted(lengths)}")
    clusters = describe_clusters(
        labels_N, distances_N, targets_N, class_names, per_cluster, ratios_N=ratios_N, seed=seed
    )
    count = f"<p>{len(labels_N):,} images in {len(clusters):,} non-empty clusters.</p>"
    meaning = f"<p>{text(clustered)} {text(TARGETS_ABSENT if targets_N is None else TARGETS_USED)}</p>"
    shown: dict[str, Any] = {"labels_N": labels_N, "targets_N": targets_N, "class_names": class_names}
    sections = {
        "result": ("Result", section("result", *_summary(summary, baselines), _further(further), meaning)),
        "epochs": ("Epochs", _epochs(epochs)),
        "lineage": ("Lineage", _lineage(lineage)),
        "map": ("Map", _map(places, images=images, sample_ids=sample_ids, **shown)),
        "classes": ("Classes", _confusion(**shown)),
        "clusters": ("Clusters", gallery(clusters, images, sample_ids, most=max_clusters)),
        "variance": ("Variance", _explained(explained_d)),
        "timings": ("Timings", section("timings", "Timings", _timings(timings))),
        "parameters": ("Parameters", _parameters(params_text)),
    }
    body = [_header(title), count, _warnings(warnings), _contents(sections), *(part for _, part in sections.values())]
    return page(title, "\n".join(part for part in body if part))


def _header(title: str) -> str:
    return f'<header><h1>{text(title)}</h1><button type="button" id="theme" hidden>Light or dark</button></header>'


def _contents(sections: Mapping[str, tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, (heading, part) in sections.items() if part)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
    return f'<div class="warnings" role="note"><strong>Warnings</strong><ul>{items}</ul></div>'


def _summary(
    summary: Mapping[str, float | int | str | None], baselines: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Heading, the run's numbers in one table with the baselines, and what no baseline has as a list."""
    shared = {name for values in baselines.values() for name in values}
    ours = {key: value for key, value in summary.items() if key in shared and isinstance(value, int | float)}
    parts = [f"Result{' beside the baselines' if baselines else ''}"]
    if baselines:
        parts.append(table(baseline_cells({"DeepCluster": ours, **baselines}), first_is_ours=True, label="Result"))
    rest = [(key, value) for key, value in summary.items() if key not in ours]
    if rest:
        items = "".join(f"<dt>{text(key)}</dt><dd>{text(_shown(key, value))}</dd>" for key, value in rest)
        parts.append(f"<dl>{items}</dl>")
    return parts


def _further(tables: Sequence[tuple[str, Cells]]) -> str:
    return "\n".join(
        f"<h3>{text(sentence)}</h3>\n{table(cells, first_is_ours=True, label=sentence)}" for sentence, cells in tables
    )


def _shown(key: str, value: float | int | str | None) -> str:
    return value if isinstance(value, str) else value_text(key, value)


def _epochs(epochs: Sequence[Row]) -> str:
    if not epochs:
        return section("epochs", "Epochs", "<p>No epoch has been evaluated.</p>")
    cells = epoch_cells(epochs, (*EPOCH_COLUMNS, "k"))
    return section("epochs", "Epochs", f"<p>{PSEUDO_LABELS}</p>", table(cells, label="Epochs"), _plots(epochs))


def _plots(rows: Sequence[Row]) -> str:
    drawn = (
        f'<div role="img" aria-label="{name} by epoch">{curves(rows, panels=[name])}</div>' for name in drawable(rows)
    )
    return f'<div class="curves">{"".join(drawn)}</div>'


def _lineage(lineage: Lineage | None) -> str:
    if lineage is None or len(lineage.rows) < 2:
        return ""
    drawn = diagram(lineage.epochs, lineage.trajectories_EN)
    notes = [f"The {FOLLOWED} largest clusters have a bar of their own; point at one to follow it."]
    if len(lineage.epochs) < len(lineage.rows):
        notes.append(f"Of {len(lineage.rows)} epochs {len(lineage.epochs)} are drawn, evenly spaced.")
    cells = epoch_cells(lineage.rows, LINEAGE_COLUMNS)
    return section(
        "lineage",
        "Lineage",
        f"<p>{LINEAGE}</p>",
        _plots(lineage.rows),
        f"<p>{' '.join(notes)}</p>",
        f'<div class="wide flow" tabindex="0" role="region" aria-label="Flow of images">{drawn}</div>',
        f"<details><summary>numbers of each epoch</summary>{table(cells, label='Lineage')}</details>",
    )


def _map(places: Map | None, **shown: Any) -> str:
    if places is None:
        return ""
    note = (
        f"<p>{len(places.sample_S):,} images, evenly spaced over the data set, by the features that the final clusters "
        f"were made of: {PLACED[places.method]}.</p>"
    )
    drawn = scatter(plane_S2=places.plane_S2, sample_S=places.sample_S, method=places.method, **shown)
    return section("map", "Map of the features", note, drawn)


def _confusion(
    labels_N: npt.NDArray[np.integer[Any]],
    targets_N: npt.NDArray[np.integer[Any]] | None,
    class_names: Sequence[str] | None,
) -> str:
    if targets_N is None:
        return ""
    return section(
        "classes", "Classes and clusters", f"<p>{CONFUSED}</p>", matrix(confusion(targets_N, labels_N), class_names)
    )


def _explained(explained_d: npt.NDArray[np.floating[Any]] | None) -> str:
    if explained_d is None:
        return ""
    total = float(np.sum(explained_d, dtype=np.float64))
    note = f"The last epoch's PCA: {len(explained_d):,} components keep {total:.1%} of the features' variance."
    drawn = explained_curve([float(value) for value in explained_d])
    label = 'role="img" aria-label="variance explained by the first components"'
    figure = f'<div class="curves"><div {label}>{drawn}</div></div>'
    return section("variance", "Explained variance", f"<p>{note}</p>", figure)


def _timings(timings: Cells | None) -> str:
    return f"<p>{NO_TIMINGS}</p>" if timings is None else table(timings, label="Timings")


def _parameters(params_text: str) -> str:
    return section("parameters", "Parameters", f"<pre>{escape(encodable(params_text))}</pre>")
