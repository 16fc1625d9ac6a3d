"""The contact sheet of the images that moved: a row for each of the largest flows between clusters.

Shapes: N images, R rows, M images in a row, C channels, H and W pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deepcluster.compare.agreement import Flow
from deepcluster.inspection.gallery import GAP_GREY, most_central

ROWS, MOVERS = 12, 8
Reader = Callable[[int], NDArray[np.uint8]]


def movers(
    flows: Sequence[Flow], labels_a_N: NDArray[np.integer], labels_b_N: NDArray[np.integer], b_N: NDArray[np.floating]
) -> list[tuple[Flow, list[int]]]:
    """The largest flows between clusters that do not continue each other, at most ROWS, and of each at most MOVERS

    images, nearest to their new centroid first; b_N: distances to it.
    """
    largest = [flow for flow in flows if not flow.matched][:ROWS]
    found = []
    for flow in largest:
        members = np.flatnonzero((labels_a_N == flow.a) & (labels_b_N == flow.b))
        order = np.argsort(b_N[members], kind="stable")
        found.append((flow, members[order][:MOVERS].tolist()))
    return found


def sheet_of(
    rows: Sequence[tuple[Flow, list[int]]],
    centre_a: dict[int, int],
    centre_b: dict[int, int],
    read: Reader,
) -> NDArray[np.uint8]:
    """uint8 [R, M, C, H, W]: the most central image of the old cluster, those that moved, that of the new cluster.

    Places that stay empty, one before the last image among them, are grey. `read(i)`: image i, uint8 [C, H, W].
    """
    widest = max(len(images) for _, images in rows)
    sheet = []
    for flow, images in rows:
        first, last = read(centre_a[flow.a]), read(centre_b[flow.b])
        blank = np.full_like(first, GAP_GREY)
        shown = [read(index) for index in images]
        sheet.append(np.stack([first, *shown, *[blank] * (widest - len(shown) + 1), last]))
    return np.stack(sheet)


def centres(labels_N: NDArray[np.integer], distances_N: NDArray[np.floating]) -> dict[int, int]:
    """The most central image of each cluster."""
    return {cluster: int(found[0]) for cluster, found in most_central(labels_N, distances_N, per_cluster=1).items()}
