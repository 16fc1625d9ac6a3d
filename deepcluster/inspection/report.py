"""A run as one HTML page: no scripts, nothing fetched, images and curves inside, the same bytes for the same run."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepcluster.inspection.gallery import contact_png, most_central
from deepcluster.inspection.plots import curves, drawable
from deepcluster.inspection.tables import Cells, Row, baseline_cells, epoch_cells, value_text

GALLERY_BYTES = 9_000_000  # of PNG; base64 makes 12 MB of it
THUMBNAIL_SIDES = (96, 64, 48, 32, 24, 16)

CLUSTERED = (
    "The result and the clusters below come from one final k-means on the features that the last epoch's backbone "
    "gives for all images of this data set, each row divided by its length, without PCA or whitening. The baselines "
    "had the same k and number of restarts: the pixels themselves (with model.sobel also as its filters leave them), "
    "and the features of the same backbone before any training."
)
PSEUDO_LABELS = (
    "The rows below are another clustering: the pseudo-labels that each epoch trained on. Those of epoch e were made "
    "before its training, from the reduced features of the backbone as epoch e - 1 left it, with the number of "
    "clusters under cluster in the parameters (cluster.method pic finds its own). Compare them with each other, not "
    "with the result above."
)
TARGETS_USED = (
    "True labels were compared with the clusters only to compute nmi, ari, accuracy and purity; no training stage "
    "reads them. The same images were trained on and clustered: nothing here is measured on held-out images, but for "
    "the tables that say so."
)
TARGETS_ABSENT = "This data set has no true labels, so nothing here says whether the clusters mean anything."

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --page: #fff; --soft: #5b6168; --line: #d5d9de; --box: #f5f6f8;
  --warn: #fff3d6; --edge: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --page: #15171a; --soft: #a3abb4; --line: #363c43;
  --box: #1f2327; --warn: #3a2e12; --edge: #d9a441; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--ink); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; } h3 { margin: 1.5rem 0 .25rem; font-size: 1rem; }
p { max-width: 46rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } tr.ours { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
dt { color: var(--soft); }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; } .curves svg { max-width: 100%; height: auto; }
.warnings { padding: .5rem 1rem; background: var(--warn); border-left: .3rem solid var(--edge); }
.warnings ul { margin: .25rem 0; padding-left: 1.2rem; }
figure { margin: 0 0 1rem; } figure img { display: block; image-rendering: pixelated; }
figcaption, summary { font-size: .85rem; color: var(--soft); }
pre { padding: 1rem; background: var(--box); overflow-x: auto; white-space: pre; overflow-wrap: normal; }
"""


class Images(Protocol):
    """Images uint8 [N, C, H, W] that can be read one at a time: a NumPy or a zarr array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Cluster:
    """One cluster of the gallery; purity and majority (a class name) are None without targets."""

    number: int
    size: int
    central: npt.NDArray[np.int64]
    purity: float | None
    majority: str | None


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
    per_cluster: int = 10,
    max_clusters: int = 200,
    clustered: str = CLUSTERED,
    further: Sequence[tuple[str, Cells]] = (),
) -> str:
    """The whole page as text; write it as UTF-8.

    summary: final values by name; those that a baseline has too stand beside it, the others in a list.
    labels_N, distances_N: the final clustering, and each sample's distance to its centroid.
    clustered: what summary, baselines and labels_N are clusterings of, in sentences, if not what CLUSTERED says.
    further: more tables below the result, each with a sentence on what it shows (`inspection.held_out.tables`).
    """
    lengths = {len(sample_ids), len(labels_N), int(images.shape[0])} | (
        {len(targets_N)} if targets_N is not None else set()
    )
    if len(lengths) > 1:
        raise ValueError(f"images, sample ids, labels and targets differ in length: {sorted(lengths)}")
    clusters = describe_clusters(labels_N, distances_N, targets_N, class_names, per_cluster)
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{len(labels_N):,} images in {len(clusters):,} non-empty clusters.</p>",
        _warnings(warnings),
        _summary(summary, baselines),
        f"<p>{_text(clustered)} {_text(TARGETS_ABSENT if targets_N is None else TARGETS_USED)}</p>",
        _further(further),
        _epochs(epochs),
        _gallery(clusters, max_clusters, images, sample_ids),
        f"<h2>Parameters</h2>\n<pre>{escape(_encodable(params_text))}</pre>",
    ]
    return _page(_text(title), "\n".join(part for part in body if part))


def describe_clusters(
    labels_N: npt.NDArray[np.integer[Any]],
    distances_N: npt.NDArray[np.floating[Any]],
    targets_N: npt.NDArray[np.integer[Any]] | None,
    class_names: Sequence[str] | None,
    per_cluster: int,
) -> list[Cluster]:
    """Every non-empty cluster, largest first (ties by number); purity is the share of its most frequent class."""
    central = most_central(labels_N, distances_N, per_cluster=per_cluster)
    numbers, inverse, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    clusters = []
    for number, size, indices in zip(map(int, numbers), map(int, sizes), members, strict=True):
        purity, majority = _majority(None if targets_N is None else targets_N[indices], class_names)
        clusters.append(Cluster(number, size, central[number], purity, majority))
    return sorted(clusters, key=lambda cluster: (-cluster.size, cluster.number))


def _majority(
    targets: npt.NDArray[np.integer[Any]] | None, class_names: Sequence[str] | None
) -> tuple[float | None, str | None]:
    if targets is None:
        return None, None
    classes, counts = np.unique(targets, return_counts=True)
    winner = int(classes[counts.argmax()])
    return float(counts.max() / counts.sum()), class_names[winner] if class_names else str(winner)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{_text(warning)}</li>" for warning in warnings)
    return f'<div class="warnings" role="note"><strong>Warnings</strong><ul>{items}</ul></div>'


def _summary(summary: Mapping[str, float | int | str | None], baselines: Mapping[str, Mapping[str, float]]) -> str:
    """The run's numbers in one table with the baselines, and what no baseline has as a list."""
    shared = {name for values in baselines.values() for name in values}
    ours = {key: value for key, value in summary.items() if key in shared and isinstance(value, int | float)}
    parts = [f"<h2>Result{' beside the baselines' if baselines else ''}</h2>"]
    if baselines:
        parts.append(_table(baseline_cells({"DeepCluster": ours, **baselines}), first_is_ours=True))
    rest = [(key, value) for key, value in summary.items() if key not in ours]
    if rest:
        items = "".join(f"<dt>{_text(key)}</dt><dd>{_text(_shown(key, value))}</dd>" for key, value in rest)
        parts.append(f"<dl>{items}</dl>")
    return "\n".join(parts)


def _further(tables: Sequence[tuple[str, Cells]]) -> str:
    return "\n".join(f"<h3>{_text(sentence)}</h3>\n{_table(cells, first_is_ours=True)}" for sentence, cells in tables)


def _shown(key: str, value: float | int | str | None) -> str:
    return value if isinstance(value, str) else value_text(key, value)


def _epochs(epochs: Sequence[Row]) -> str:
    if not epochs:
        return "<h2>Epochs</h2>\n<p>No epoch has been evaluated.</p>"
    plots = "\n".join(
        f'<div role="img" aria-label="{name} by epoch">{curves(epochs, panels=[name])}</div>'
        for name in drawable(epochs)
    )
    return f'<h2>Epochs</h2>\n<p>{PSEUDO_LABELS}</p>\n{_table(epoch_cells(epochs))}\n<div class="curves">{plots}</div>'


def _table(cells: Cells, *, first_is_ours: bool = False) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in cells.columns)
    lines = []
    for index, row in enumerate(cells.rows):
        kind = ' class="ours"' if first_is_ours and index == 0 else ""
        first = f'<th scope="row">{_text(row[0])}</th>'
        lines.append(f"<tr{kind}>{first}{''.join(f'<td>{_text(value)}</td>' for value in row[1:])}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _gallery(clusters: Sequence[Cluster], max_clusters: int, images: Images, sample_ids: Sequence[str]) -> str:
    shown = clusters[:max_clusters]
    strips = _strips(shown, images)
    notes = ["Clusters from large to small; in each, the images nearest to the centroid, nearest first."]
    if len(shown) < len(clusters):
        notes.append(f"The {len(clusters) - len(shown):,} smallest clusters are left out.")
    if len(strips) < len(shown):
        notes.append(f"To keep this page small, only the first {len(strips):,} have pictures.")
    figures = [
        _figure(cluster, strips[index] if index < len(strips) else None, sample_ids)
        for index, cluster in enumerate(shown)
    ]
    return f"<h2>Clusters</h2>\n<p>{' '.join(notes)}</p>\n" + "\n".join(figures)


def _figure(cluster: Cluster, strip: bytes | None, sample_ids: Sequence[str]) -> str:
    names = ", ".join(_text(sample_ids[int(index)]) for index in cluster.central)
    facts = f"{cluster.size:,} image{'' if cluster.size == 1 else 's'}"
    if cluster.purity is not None:
        facts += f", {cluster.purity:.0%} {_text(str(cluster.majority))}"
    picture = ""
    if strip is not None:
        data = base64.b64encode(strip).decode("ascii")
        alt = f"The {len(cluster.central)} most central images of cluster {cluster.number}: {names}"
        picture = f'<div class="wide"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'
    caption = f"<figcaption><details><summary>file names</summary>{names}</details></figcaption>"
    return f"<h3>Cluster {cluster.number}: {facts}</h3>\n<figure>{picture}{caption}</figure>"


def _strips(clusters: Sequence[Cluster], images: Images) -> list[bytes]:
    """A strip for each cluster at the largest thumbnail size that keeps the page small.

    If even the smallest is too much, strips for the first clusters only.
    """
    strips: list[bytes] = []
    for side in THUMBNAIL_SIDES:
        strips = list(_within_budget(clusters, images, side))
        if len(strips) == len(clusters):
            break
    return strips


def _within_budget(clusters: Sequence[Cluster], images: Images, side: int) -> Iterator[bytes]:
    used = 0
    for cluster in clusters:
        strip = contact_png(np.stack([np.asarray(images[int(index)]) for index in cluster.central]), max_side=side)
        used += len(strip)
        if used > GALLERY_BYTES:
            return
        yield strip


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _text(value: object) -> str:
    """Any value as HTML text or attribute; control characters, such as a line break in a file name, become visible."""
    printable = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))
    return escape(printable)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
