"""`deepcluster compare`: reads both sides, compares, writes the files, and says what was found in plain values."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.clustering.matching import memory_needed as matching_memory
from deepcluster.compare.agreement import Agreement, Parts, agreement
from deepcluster.compare.cka import Pair, linear_cka
from deepcluster.compare.cka import memory_needed as cka_memory
from deepcluster.compare.sheet import centres, movers, sheet_of
from deepcluster.compare.sides import Side, opened, refuse_other_images
from deepcluster.errors import ArtifactError, UserError
from deepcluster.inspection.gallery import sheet_png
from deepcluster.memory import refuse_too_large, too_large
from deepcluster.progress import counted
from deepcluster.spreadsheets import csv_line, harmless

CKA_ROWS = 65_536  # evenly spaced, at most
BLOCK_ROWS = 4096
QUIET_PRODUCTS = 3e10  # multiplied within seconds: no progress bar
Found = dict[str, Any]


def compare(a: str, b: str, *, out: Path | None, threshold: float) -> Found:
    """What differs between sides `a` and `b`, also written to the folder `out` or data/comparisons/A-B.

    Files: comparison.json (what is returned), confusion.csv, movers.csv, and movers.png if there are images.
    """
    if not 0 < threshold <= 0.5:
        raise UserError(f"--threshold: must be > 0 and <= 0.5; got {threshold:g}")
    with ExitStack() as stack:
        side_a, side_b = (stack.enter_context(opened(text, name)) for text, name in ((a, "A"), (b, "B")))
        refuse_other_images(side_a, side_b)
        labels_a_N, labels_b_N = (side.clusters.read("labels") for side in (side_a, side_b))
        k = int(max(labels_a_N.max(), labels_b_N.max())) + 1
        refuse_too_large(matching_memory(k), f"compare: tables of {k:,} clusters", "compare epochs of fewer clusters")
        agreed = agreement(labels_a_N, labels_b_N, threshold=threshold)
        found = _summary(side_a, side_b, agreed, threshold) | _drift(side_a, side_b)
        folder = out or layout.DATA / "comparisons" / _folder_name(a, b)
        images = _images(side_a, side_b)
        try:
            found["files"] = _write(folder, side_a, side_b, agreed, images)
            found["sheet"] = _sheet(folder, side_a, side_b, agreed, images)
            artifacts.write_text(folder / "comparison.json", json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None
    return found


def _summary(a: Side, b: Side, agreed: Agreement, threshold: float) -> Found:
    moved = int(agreed.moved_N.sum())
    return {
        "a": _about(a),
        "b": _about(b),
        "images": len(agreed.moved_N),
        "ari": agreed.ari,
        "nmi": agreed.nmi,
        "moved": moved,
        "moved_share": moved / len(agreed.moved_N),
        "matches": [{"a": flow.a, "b": flow.b, "images": flow.images} for flow in agreed.flows if flow.matched],
        "flows": [{"a": flow.a, "b": flow.b, "images": flow.images} for flow in agreed.flows if not flow.matched],
        "threshold": threshold,
        "split": [_parts(parts, "into") for parts in agreed.split],
        "merged": [_parts(parts, "from") for parts in agreed.merged],
        "vanished": agreed.vanished,
        "appeared": agreed.appeared,
    }


def _about(side: Side) -> Found:
    sizes = side.clusters.read("sizes").tolist()
    return {"name": side.name, "revision": side.source.revision, "epoch": side.epoch, "sizes": sizes}


def _parts(parts: Parts, name: str) -> Found:
    shares = [{"cluster": cluster, "images": images} for cluster, images in parts.parts.items()]
    return {"cluster": parts.cluster, "images": parts.images, name: shares}


def _drift(a: Side, b: Side) -> Found:
    """Keys cka, cka_rows, cka_problem: None, 0 and why, where features are missing or too wide."""
    try:
        features = [
            side.source.store(
                layout.features(side.epoch), "features", made_by=f"extract@{side.epoch}", ids=side.clusters.ids
            )
            for side in (a, b)
        ]
    except ArtifactError as error:
        return {"cka": None, "cka_rows": 0, "cka_problem": str(error)}
    widths = [store.shape("features")[1] for store in features]
    if problem := too_large(cka_memory(*widths)):
        return {"cka": None, "cka_rows": 0, "cka_problem": f"features of {widths[0]} and {widths[1]} values {problem}"}
    total = a.clusters.samples
    step = max(1, -(-total // CKA_ROWS))
    pairs: Iterable[Pair] = _pairs(features, total, step)
    if float(total // step) * max(widths) ** 2 > QUIET_PRODUCTS:
        pairs = counted(pairs, "comparing features", -(-total // step), "rows", size=lambda pair: len(pair[0]))
    value, rows = linear_cka(pairs)
    return {"cka": value, "cka_rows": rows, "cka_problem": "features that do not vary" if value is None else None}


def _pairs(features: list[artifacts.Store], total: int, step: int) -> Iterator[Pair]:
    """The same rows of both, every `step`-th."""
    for start in range(0, total, BLOCK_ROWS):
        x_BD, y_BE = (store.read("features", slice(start, start + BLOCK_ROWS)) for store in features)
        first = -start % step
        yield x_BD[first::step], y_BE[first::step]


def _images(a: Side, b: Side) -> artifacts.Store | None:
    """The images that were clustered, of the workspace or of either side; None if none has them."""
    ids, here = a.clusters.ids, layout.IMAGES
    if here.exists():
        try:
            return artifacts.open_store(here, "images", made_by="prepare", ids=ids)
        except ArtifactError:  # of another data set, or damaged: the sides may have it
            pass
    for side in (a, b):
        try:
            return side.source.store(here, "images", made_by="prepare", ids=ids)
        except ArtifactError:
            continue
    return None


def _write(folder: Path, a: Side, b: Side, agreed: Agreement, images: artifacts.Store | None) -> list[str]:
    """confusion.csv: a row for each pair of clusters that share images. movers.csv: one for each image that moved."""
    labels_a_N, labels_b_N = a.clusters.read("labels"), b.clusters.read("labels")
    names = None if images is None else images.strings("sample_ids")
    moved = np.flatnonzero(agreed.moved_N).tolist()
    movers = [[index, _name(names, index), int(labels_a_N[index]), int(labels_b_N[index])] for index in moved]
    confusion = [[flow.a, flow.b, flow.images, "yes" if flow.matched else "no"] for flow in agreed.flows]
    tables: dict[str, list[list[Any]]] = {
        "confusion.csv": [["cluster_a", "cluster_b", "images", "matched"], *confusion],
        "movers.csv": [["index", "sample", "cluster_a", "cluster_b"], *movers],
    }
    for name, rows in tables.items():
        artifacts.write_text(folder / name, "".join(map(csv_line, rows)))
    return [str(folder / name) for name in ("comparison.json", *tables)]


def _name(names: list[str] | None, index: int) -> str:
    """The sample's id as CSV can hold it; empty without images."""
    return "" if names is None else harmless(names[index])


def _sheet(folder: Path, a: Side, b: Side, agreed: Agreement, images: artifacts.Store | None) -> Found:
    """movers.png, or why there is none; keys path, problem, rows (flow and images of each, as drawn)."""
    target = folder / "movers.png"
    problem = "no image moved" if not agreed.moved_N.any() else "the images are not there" if images is None else None
    if images is None or problem is not None:
        artifacts.remove(target)  # of a comparison before
        return {"path": None, "problem": problem, "rows": []}
    store = images

    def read(index: int) -> NDArray[np.uint8]:
        return np.asarray(store.read("images", slice(index, index + 1))[0], np.uint8)

    (labels_a_N, a_N), (labels_b_N, b_N) = (
        (side.clusters.read("labels"), side.clusters.read("distances")) for side in (a, b)
    )
    rows = movers(agreed.flows, labels_a_N, labels_b_N, b_N)
    sheet_RMCHW = sheet_of(rows, centres(labels_a_N, a_N), centres(labels_b_N, b_N), read)
    with artifacts.publishing(target) as partial:
        partial.write_bytes(sheet_png(sheet_RMCHW))
    shown = [{"a": flow.a, "b": flow.b, "images": flow.images, "shown": indices} for flow, indices in rows]
    return {"path": str(target), "problem": None, "rows": shown}


def _folder_name(a: str, b: str) -> str:
    """The two sides as a folder's name."""
    return "-".join(re.sub(r"[^\w.~^@]+", "_", side) for side in (a, b))
