"""The map: images as dots on a plane, told apart by colour and shape; the page's script shows what is pointed at.

Shapes: S images on the map, N images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.inspection.page import COLOURS, REST, data_block, data_uri, name_text, shortened
from deepcluster.inspection.thumbnails import Images, sheet

MAP_BYTES = 2_500_000  # of WebP
WIDTH, HEIGHT, MARGIN = 1000, 680, 20
SHAPES = ("M{x} {y}h0", "M{x} {y}h0", "M{x} {y}m-4 -4l8 8m0 -8l-8 8")  # dot, square (by the line's end), cross
DISTINCT = len(COLOURS) * len(SHAPES)


def pixels(plane_S2: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Places int64 [S, 2] on the drawing: one scale for both axes, centred, the second axis upwards."""
    low, high = plane_S2.min(axis=0), plane_S2.max(axis=0)
    extent = np.where(high > low, high - low, 1).astype(np.float64)
    room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    scale = (room / extent).min()
    moved_S2 = (plane_S2 - (low + high) / 2) * scale
    places_S2 = np.array([WIDTH, HEIGHT]) / 2 + moved_S2 * np.array([1, -1])
    return np.asarray(np.rint(places_S2), np.int64)


def scatter(
    *,
    plane_S2: NDArray[np.floating[Any]],
    sample_S: NDArray[np.int64],
    method: str,
    labels_N: NDArray[np.integer[Any]],
    targets_N: NDArray[np.integer[Any]] | None,
    class_names: Sequence[str] | None,
    images: Images,
    sample_ids: Sequence[str],
) -> str:
    """Drawing, legend, controls and data of the map, as HTML."""
    places_S2 = pixels(plane_S2)
    clusters_S = labels_N[sample_S].astype(np.int64)
    drawings = [_dots("cluster", places_S2, clusters_S, "c")]
    legends = [_legend("cluster", clusters_S, "c", None)]
    choice = ""
    if targets_N is not None:
        drawings.append(_dots("class", places_S2, targets_N[sample_S].astype(np.int64), "t"))
        legends.append(_legend("class", targets_N[sample_S].astype(np.int64), "t", class_names))
        choice = (
            '<label>Colours by <select id="colouring"><option value="cluster">cluster</option>'
            '<option value="class">true class</option></select></label>'
        )
    search = '<label>Pick out cluster <input id="pick" type="number" min="0"></label>'
    controls = f'<div class="controls" hidden>{choice}{search}</div>'
    label = f"{len(sample_S):,} images as dots, placed by {method}; arrow keys go from image to image"
    drawing = (
        f'<div class="map"><svg viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="img" aria-label="{label}">'
        f'{"".join(drawings)}<circle class="ring" r="9" style="display:none"/></svg>'
        '<div id="tip" role="status" hidden><div></div><span></span></div></div>'
    )
    data = _data(places_S2, clusters_S, sample_S, targets_N, class_names, images, sample_ids)
    return f"{controls}\n{drawing}\n{''.join(legends)}\n{data_block('map-data', data)}"


def _groups(values_S: NDArray[np.int64]) -> list[int]:
    """The values from frequent to rare."""
    values, counts = np.unique(values_S, return_counts=True)
    return [int(values[place]) for place in np.argsort(-counts, kind="stable")]


def _dots(by: str, places_S2: NDArray[np.int64], values_S: NDArray[np.int64], prefix: str) -> str:
    """A path for each value, so that a thousand dots of it cost one element; the rare ones lie above the frequent."""
    paths = []
    for rank, value in enumerate(_groups(values_S)):
        colour, shape = _look(rank)
        dots = "".join(SHAPES[shape].format(x=x, y=y) for x, y in places_S2[values_S == value])
        paths.append(f'<path class="s{shape}" data-id="{prefix}{value}" stroke="{colour}" d="{dots}"/>')
    hidden = ' style="display:none"' if by != "cluster" else ""
    return f'<g class="dots" data-by="{by}"{hidden}>{"".join(paths)}</g>'


def _legend(by: str, values_S: NDArray[np.int64], prefix: str, names: Sequence[str] | None) -> str:
    groups = _groups(values_S)
    buttons = []
    for rank, value in enumerate(groups[:DISTINCT]):
        colour, shape = _look(rank)
        mark = f'<svg viewBox="0 0 16 16" aria-hidden="true" class="dots"><path class="s{shape}" stroke="{colour}" '
        mark += f'd="{SHAPES[shape].format(x=8, y=8)}"/></svg>'
        name = name_text(names[value]) if names else str(value)
        buttons.append(f'<button type="button" data-id="{prefix}{value}" aria-pressed="false">{mark} {name}</button>')
    rest = f"<span>the other {len(groups) - DISTINCT:,} are grey</span>" if len(groups) > DISTINCT else ""
    title = "Clusters" if by == "cluster" else "Classes"
    return (
        f'<div class="legend controls" data-by="{by}" role="group" aria-label="{title} to pick out" hidden>'
        f"<span>{title}:</span>{''.join(buttons)}{rest}</div>"
    )


def _look(rank: int) -> tuple[str, int]:
    """Colour and shape: each pair once, then grey dots."""
    return (COLOURS[rank % len(COLOURS)], rank // len(COLOURS)) if rank < DISTINCT else (REST, 0)


def _data(
    places_S2: NDArray[np.int64],
    clusters_S: NDArray[np.int64],
    sample_S: NDArray[np.int64],
    targets_N: NDArray[np.integer[Any]] | None,
    class_names: Sequence[str] | None,
    images: Images,
    sample_ids: Sequence[str],
) -> dict[str, Any]:
    thumbnails = sheet(images, sample_S, most_bytes=MAP_BYTES)
    found: dict[str, Any] = {
        "xy": places_S2.ravel().tolist(),
        "cluster": clusters_S.tolist(),
        "names": [shortened(sample_ids[int(number)]) for number in sample_S],
        "sprite": {
            "side": thumbnails.side,
            "shown": thumbnails.shown,
            "columns": thumbnails.columns,
            "src": data_uri(thumbnails.content),
        },
    }
    if targets_N is not None:
        most = int(targets_N.max()) + 1
        found["target"] = targets_N[sample_S].tolist()
        found["classes"] = [shortened(name) for name in class_names] if class_names else list(map(str, range(most)))
    return found
