"""The largest clusters through the epochs as one SVG: a column an epoch, bands for the images that go on or elsewhere.

Shapes: N images, E epochs shown, T the clusters followed by name.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.inspection.page import COLOURS, REST, counted

MOST_EPOCHS = 20
FOLLOWED = 18
HEIGHT, COLUMN, BAR, MARGIN = 460.0, 96.0, 12.0, 26.0
GAP = 3.0  # between the bars of a column
LEAST_SHARE = 0.002  # of all images: thinner bands would only be dust
LABELLED = 9.0  # pixels high a bar must be for a number beside it


def largest(trajectories_EN: Sequence[NDArray[np.integer[Any]]], most: int = FOLLOWED) -> list[int]:
    """The ids of the clusters that hold most images over all epochs, in ascending order."""
    ids, counts = np.unique(np.concatenate([np.asarray(ids_N) for ids_N in trajectories_EN]), return_counts=True)
    return sorted(int(ids[place]) for place in np.argsort(-counts, kind="stable")[:most])


def tables(
    trajectories_EN: Sequence[NDArray[np.integer[Any]]], followed: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes int64 [E, T + 1] and flows int64 [E - 1, T + 1, T + 1] (from, to); the last place stands for all others."""
    width = len(followed) + 1
    places_EN = [_places(np.asarray(ids_N), followed) for ids_N in trajectories_EN]
    sizes = [np.bincount(places_N, minlength=width) for places_N in places_EN]
    pairs = pairwise(places_EN)
    moved = [np.bincount(one * width + other, minlength=width * width).reshape(width, width) for one, other in pairs]
    return np.stack(sizes), np.stack(moved) if moved else np.zeros((0, width, width), np.int64)


def _places(ids_N: NDArray[np.integer[Any]], followed: Sequence[int]) -> NDArray[np.int64]:
    known = np.asarray(followed, np.int64)
    place_N = np.searchsorted(known, ids_N)
    found_N = known[np.minimum(place_N, len(known) - 1)] == ids_N
    return np.where(found_N, place_N, len(known))


def diagram(epochs: Sequence[int], trajectories_EN: Sequence[NDArray[np.integer[Any]]]) -> str:
    """The SVG element for the epochs, whose ids are the rows of trajectories_EN; two or more of them."""
    followed = largest(trajectories_EN)
    sizes, moved = tables(trajectories_EN, followed)
    total = int(sizes[0].sum())
    scale = (HEIGHT - GAP * sizes.shape[1]) / total
    tops = np.concatenate([np.zeros((len(sizes), 1)), np.cumsum(sizes * scale + GAP, axis=1)], axis=1) + MARGIN
    names = [f"cluster {number}" for number in followed] + ["other clusters"]
    parts = [
        _column(epochs[e], e, sizes[e], tops[e], scale, followed, last=e == len(epochs) - 1) for e in range(len(epochs))
    ]
    bands = [_bands(e, moved[e], tops[e], tops[e + 1], scale, names, epochs, total) for e in range(len(moved))]
    width = COLUMN * (len(epochs) - 1) + BAR + 2 * MARGIN
    return (
        f'<svg role="img" aria-label="Images going from cluster to cluster over {len(epochs)} epochs; the numbers of '
        f'splits and merges stand in the table below" width="{width:.0f}" height="{HEIGHT + 2 * MARGIN:.0f}" '
        f'viewBox="0 0 {width:.0f} {HEIGHT + 2 * MARGIN:.0f}">{"".join(bands)}{"".join(parts)}</svg>'
    )


def _column(
    epoch: int,
    place: int,
    sizes: NDArray[np.int64],
    tops: NDArray[np.float64],
    scale: float,
    followed: Sequence[int],
    *,
    last: bool,
) -> str:
    x = MARGIN + place * COLUMN
    parts = [f'<text x="{x + BAR / 2:.0f}" y="16" text-anchor="middle">epoch {epoch}</text>']
    for index, size in enumerate(sizes):
        if not size:
            continue
        name = f"cluster {followed[index]}" if index < len(followed) else "other clusters"
        title = f"<title>epoch {epoch}, {name}: {counted(int(size), 'image')}</title>"
        bar = f'x="{x:.0f}" y="{tops[index]:.1f}" width="{BAR:.0f}" height="{max(1.0, size * scale):.1f}"'
        parts.append(f'<rect data-id="{index}" {bar} fill="{_colour(index, len(followed))}">{title}</rect>')
        if size * scale >= LABELLED:
            label = followed[index] if index < len(followed) else "…"
            where = f'x="{x - 3:.0f}" text-anchor="end"' if last else f'x="{x + BAR + 3:.0f}"'
            parts.append(
                f'<text {where} y="{tops[index] + size * scale / 2 + 4:.1f}" pointer-events="none">{label}</text>'
            )
    return "".join(parts)


def _bands(
    place: int,
    moved: NDArray[np.int64],
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    scale: float,
    names: Sequence[str],
    epochs: Sequence[int],
    total: int,
) -> str:
    """A band for each flow that is wide enough; each takes its place in the order of the bars at its other end."""
    x0 = MARGIN + place * COLUMN + BAR
    x1 = x0 + COLUMN - BAR
    out_of, into = np.cumsum(moved, axis=1) - moved, np.cumsum(moved, axis=0) - moved
    middle, parts = (x0 + x1) / 2, []
    for source, target in np.argwhere(moved >= max(1, LEAST_SHARE * total)):
        count = int(moved[source, target])
        y0, y1 = left[source] + out_of[source, target] * scale, right[target] + into[source, target] * scale
        high = count * scale
        curve = f"M{x0:.0f} {y0:.1f}C{middle:.0f} {y0:.1f} {middle:.0f} {y1:.1f} {x1:.0f} {y1:.1f}v{high:.1f}"
        back = f"C{middle:.0f} {y1 + high:.1f} {middle:.0f} {y0 + high:.1f} {x0:.0f} {y0 + high:.1f}z"
        title = f"{counted(count, 'image')} from {names[source]} (epoch {epochs[place]}) to {names[target]}"
        title += f" (epoch {epochs[place + 1]})"
        parts.append(
            f'<path class="band" data-id="{source}" fill="{_colour(int(source), len(names) - 1)}" d="{curve}{back}">'
            f"<title>{title}</title></path>"
        )
    return "".join(parts)


def _colour(index: int, followed: int) -> str:
    """Neighbours differ; every bar has its number beside it as well."""
    return COLOURS[index % len(COLOURS)] if index < followed else REST
