"""Clusters followed through the epochs: where each image was, and which clusters split, merged, came and went.

Cluster numbers permute from one clustering to the next, so each epoch's are matched with those before (Hungarian method
on the table of shared images, `clustering.matching`): an id stands for a chain of clusters of which each shares images
with the next. The id of a cluster that ends is given again to one that begins.
Shapes: N images, E epochs, K clusters, F flows.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.clustering.matching import match_labels, memory_needed
from deepcluster.evaluation.tables import read_table
from deepcluster.memory import too_large

Row = dict[str, float | int | None]
FIELDS = ("epoch", "clusters", "churn", "splits", "merges")
SHARE = 0.25  # of a cluster's images, from which on a part of it counts in a split or merge


class Flows(NamedTuple):
    """How many images went from one cluster to another between two epochs: int64 [F] each, none with zero images."""

    sources_F: NDArray[np.int64]
    targets_F: NDArray[np.int64]
    counts_F: NDArray[np.int64]


def flows(before_N: NDArray[np.integer[Any]], after_N: NDArray[np.integer[Any]]) -> Flows:
    """The pairs of labels that images have before and after, ordered by source and then target."""
    if before_N.shape != after_N.shape or before_N.ndim != 1:
        raise ValueError(f"labels of the same images expected; got {before_N.shape} and {after_N.shape}")
    base = int(after_N.max(initial=0)) + 1
    pairs_F, counts_F = np.unique(before_N.astype(np.int64) * base + after_N, return_counts=True)
    sources_F, targets_F = np.divmod(pairs_F, base)
    return Flows(sources_F, targets_F, counts_F.astype(np.int64))


def splits_and_merges(found: Flows) -> tuple[int, int]:
    """How many clusters split and how many merged between two epochs.

    A cluster splits when two or more clusters each receive at least a quarter (`SHARE`) of its images, and one merges
    when two or more each give it at least a quarter of its own. So both can happen to the same cluster.
    """
    return _parted(found.sources_F, found.counts_F), _parted(found.targets_F, found.counts_F)


def _parted(clusters_F: NDArray[np.int64], counts_F: NDArray[np.int64]) -> int:
    sizes_K = np.bincount(clusters_F, counts_F)
    large_F = counts_F >= SHARE * sizes_K[clusters_F]
    return int(np.count_nonzero(np.bincount(clusters_F[large_F]) >= 2))


def matched(epochs: Iterable[NDArray[np.int32]], *, k: int) -> Iterator[NDArray[np.int32]]:
    """The labels int32 [N] of each epoch with ids in the place of cluster numbers; the first epoch's stay.

    k: the largest number of clusters of any epoch; ids are below it.
    """
    before_N: NDArray[np.int32] | None = None
    for labels_N in epochs:
        ids_N = labels_N if before_N is None else match_labels(labels_N, before_N, k)[labels_N]
        yield ids_N
        before_N = ids_N


def history_row(
    epoch: int, before_N: NDArray[np.int32] | None, ids_N: NDArray[np.int32], *, matched: bool = True
) -> Row:
    """FIELDS of an epoch: its non-empty clusters, and against the epoch before, if there is one: churn, splits, merges.

    churn: the share of images in [0, 1] whose id is another one; None where numbers were not matched.
    """
    row: Row = {"epoch": epoch, "clusters": len(np.unique(ids_N)), "churn": None, "splits": None, "merges": None}
    if before_N is not None:
        splits, merges = splits_and_merges(flows(before_N, ids_N))
        row |= {"churn": float(np.mean(before_N != ids_N)) if matched else None, "splits": splits, "merges": merges}
    return row


def write_lineage(provenance: artifacts.Provenance, *, last: int) -> str:
    """Publish lineage.zarr (trajectories int32 [E, N]: row i is epoch i + 1); the text of lineage.csv.

    One epoch is in memory.

    Where tables of so many clusters do not fit into memory, numbers are not matched, which is said and recorded.
    """
    stores = [_clusters(epoch, provenance.ids) for epoch in range(1, last + 1)]
    k = max(store.shape("sizes")[0] for store in stores)
    labels = (np.asarray(store.read("labels"), np.int32) for store in stores)
    problem = too_large(memory_needed(k))
    if problem:
        print(f"evaluate: cluster numbers are not matched between the epochs: tables of {k:,} clusters {problem}")
    rows: list[Row] = []
    ids = labels if problem else matched(labels, k=k)
    extra = {"matched": not problem, "share": SHARE}
    with artifacts.write_store(layout.EVALUATION / "lineage.zarr", "lineage", provenance, **extra) as store:
        store.rows("trajectories", _noted(ids, rows, matched=not problem), total=last, dimensions=("epoch", "sample"))
    return to_csv(rows)


def _noted(ids: Iterable[NDArray[np.int32]], rows: list[Row], *, matched: bool) -> Iterator[NDArray[np.int32]]:
    """Each epoch's ids as a block [1, N], after its row was added to `rows`."""
    before_N: NDArray[np.int32] | None = None
    for epoch, ids_N in enumerate(ids, start=1):
        rows.append(history_row(epoch, before_N, ids_N, matched=matched))
        yield ids_N[None]
        before_N = ids_N


def to_csv(rows: list[Row]) -> str:
    """The rows as CSV, six significant digits; an empty field where a value is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shown(row[name]) for name in FIELDS} for row in rows)
    return text.getvalue()


def read_lineage() -> list[Row]:
    """lineage.csv as evaluate wrote it; ArtifactError if it is missing or damaged."""
    return read_table("lineage.csv", from_csv)


def from_csv(text: str) -> list[Row]:
    """What `to_csv` wrote, to six digits."""
    rows = csv.DictReader(io.StringIO(text))
    return [{name: _value(name, row[name]) for name in FIELDS} for row in rows]


def _shown(value: float | int | None) -> str | int | None:
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(name: str, field: str) -> float | int | None:
    return None if field == "" else float(field) if name == "churn" else int(field)


def _clusters(epoch: int, ids: str) -> artifacts.Store:
    return artifacts.open_store(layout.clusters(epoch), "clusters", made_by=f"cluster@{epoch}", ids=ids, epoch=epoch)
