"""`deepcluster sweep-k`: the reduced features of one epoch clustered with several k; the backbone is not touched."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from deepcluster import artifacts, layout
from deepcluster.clustering.kmeans import Clustering, kmeans
from deepcluster.errors import UserError
from deepcluster.evaluation.choosing_k import Choice, choices
from deepcluster.inspection.plots import sweep_curves
from deepcluster.inspection.tables import SWEEP_COLUMNS, epoch_cells, print_table
from deepcluster.memory import refuse_too_large
from deepcluster.params import at_epoch, load_params
from deepcluster.seeding import derive_seed
from stages.common import faiss_gpu, refuse_epoch


def parse_ks(text: str) -> list[int]:
    """[10, 20] of "20,10": ascending, each once. UserError unless all are whole numbers >= 2."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise UserError(f"--k: must be whole numbers >= 2 with commas between, as in 10,20,50; got {text!r}")
    return sorted({int(part) for part in parts})


def sweep_epoch(epoch: int, ks: Sequence[int], *, seeds: int, silhouette_rows: int, as_json: bool) -> None:
    """Print and write the table; what is done so far is on disk after each k. Run 0 is what `cluster@E` would do."""
    from deepcluster.clustering.kmeans import memory_needed

    refuse_epoch(epoch)
    params = at_epoch(load_params(), epoch)
    settings = params.cluster
    if settings.method != "kmeans":
        raise UserError(f"cluster.method: sweep-k compares runs of kmeans alone; epoch {epoch} has {settings.method!r}")
    reduced = artifacts.open_store(layout.pca(epoch), "pca", made_by=f"pca@{epoch}", epoch=epoch)
    count, components = reduced.shape("reduced")
    if ks[-1] > count:
        raise UserError(f"--k: must be <= N = {count} images; got {ks[-1]}")
    what = f"sweep-k: {count:,} x {components:,} values"
    refuse_too_large(memory_needed(settings.backend, count, components), what, "take fewer pca.components")
    rows_Nd, targets_N = reduced.read("reduced"), None
    if layout.TARGETS.exists():
        truth = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare", ids=reduced.ids)
        targets_N = truth.read("targets") if truth.attributes["labelled"] else None
    seed = derive_seed(params.seed, "kmeans", epoch)

    def cluster(k: int, run: int) -> Clustering:
        return kmeans(
            rows_Nd,
            k=k,
            backend=settings.backend,
            iterations=settings.iterations,
            restarts=settings.restarts,
            seed=seed + run,
            init=settings.init,
            spherical=settings.spherical,
            points_per_centroid=settings.points_per_centroid,
            gpu=faiss_gpu(),
        )

    found: list[Choice] = []
    header = {"epoch": epoch, "runs": seeds, "silhouette_rows": silhouette_rows, "params": settings.model_dump()}
    for choice in choices(
        rows_Nd, ks, cluster=cluster, runs=seeds, silhouette_rows=silhouette_rows, seed=seed, targets_N=targets_N
    ):
        found.append(choice)
        _write(epoch, header, found)
        if sys.stderr.isatty():
            print(f"k = {choice.k}: done ({len(found)} of {len(ks)})", file=sys.stderr)
    if as_json:
        print(json.dumps(_content(header, found), indent=2))
        return
    print_table(epoch_cells([asdict(choice) for choice in found], SWEEP_COLUMNS))
    for line in _recommendations(found):
        print(line)
    print(f"\nTable and plot: {layout.sweep(epoch)}/sweep-k.csv, .json, .svg")


def _recommendations(found: Sequence[Choice]) -> list[str]:
    """Which k the label-free measures favour."""
    by_silhouette = [(choice.silhouette, choice.k) for choice in found if choice.silhouette is not None]
    by_stability = [(choice.stability, choice.k) for choice in found if choice.stability is not None]
    return [
        f"{name}: k = {max(values)[1]}"
        for name, values in (("highest silhouette", by_silhouette), ("most stable", by_stability))
        if len(values) > 1
    ]


def _content(header: dict[str, Any], found: Sequence[Choice]) -> dict[str, Any]:
    return header | {"rows": [asdict(choice) for choice in found]}


def _write(epoch: int, header: dict[str, Any], found: Sequence[Choice]) -> None:
    folder, rows = layout.sweep(epoch), [asdict(choice) for choice in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, SWEEP_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    artifacts.write_text(folder / "sweep-k.csv", text.getvalue())
    artifacts.write_text(folder / "sweep-k.json", json.dumps(_content(header, found), indent=2) + "\n")
    artifacts.write_text(folder / "sweep-k.svg", sweep_curves(rows) + "\n")
