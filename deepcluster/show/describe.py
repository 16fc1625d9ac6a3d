"""One artifact in plain values, as `deepcluster show --json` prints it.

Shapes: N images, K clusters, C channels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, assert_never

import numpy as np

from deepcluster import artifacts, layout
from deepcluster.console import printable
from deepcluster.errors import UserError
from deepcluster.origins import Origin, chosen_epoch, dvc_md5
from deepcluster.progress import counted
from deepcluster.show.statistics import (
    image_statistics,
    layer_statistics,
    natural_order,
    row_statistics,
    size_statistics,
    summary,
)

What = Literal["dataset", "features", "pca", "clusters", "checkpoint"]
Description = dict[str, Any]
T = TypeVar("T")
QUIET_BYTES = 256 << 20  # read within a second or so: no progress bar
PROVENANCE = ("schema", "version", "epoch", "samples", "ids", "seed", "params", "packages")
KEPT_SHARES = (0.5, 0.9, 0.99)
FIRST_IDS = 5


def describe(what: What, epoch: int | None, source: Origin) -> Description:
    """Keys: artifact, epoch, revision, path, files, bytes, md5, arrays, provenance, lock, statistics.

    epoch None: the last one that there is. UserError for one that is not there, and as the artifacts say.
    """
    match what:
        case "dataset":
            if epoch is not None:
                raise UserError("--epoch: the data set belongs to no epoch; leave it out")
            return _dataset(source)
        case "features":
            return _features(_epoch(what, layout.features, epoch, source), source)
        case "pca":
            return _pca(_epoch(what, layout.pca, epoch, source), source)
        case "clusters":
            return _clusters(_epoch(what, layout.clusters, epoch, source), source)
        case "checkpoint":
            return _checkpoint(chosen_epoch(source, layout.checkpoint, epoch, option="--epoch", least=0), source)
        case _:
            assert_never(what)


def _epoch(what: str, locate: Any, epoch: int | None, source: Origin) -> int:
    if epoch is not None and epoch < 1:
        raise UserError(
            f"--epoch: must be >= 1 (epoch 0 is the untrained backbone, which has no {what}; `show checkpoint` takes "
            f"it); got {epoch}"
        )
    return chosen_epoch(source, locate, epoch, option="--epoch")


def _dataset(source: Origin) -> Description:
    images = source.store(layout.IMAGES, "images", made_by="prepare")
    ids, attributes = images.strings("sample_ids"), images.attributes
    blocks = _watched(images, "images", images.samples)
    statistics: Description = {
        "images": asdict(image_statistics(blocks)),
        "recorded": {"mean": attributes["mean"], "std": attributes["std"]},
        "skipped": [printable(line) for line in attributes["skipped"]],
        "first_ids": [printable(name) for name in ids[:FIRST_IDS]],
        "classes": None,
    }
    if source.has(layout.TARGETS):
        truth = source.store(layout.TARGETS, "targets", made_by="prepare", ids=images.ids)
        if truth.attributes["labelled"]:
            names, counts = np.unique(truth.read("targets"), return_counts=True)
            named = truth.attributes["class_names"]
            statistics["classes"] = {
                printable(str(named[name])) if named and name >= 0 else str(name): int(count)
                for name, count in zip(names.tolist(), counts.tolist(), strict=True)
            }
    return _described("dataset", None, source, layout.IMAGES, images) | {"statistics": statistics}


def _features(epoch: int, source: Origin) -> Description:
    path = layout.features(epoch)
    store = source.store(path, "features", made_by=f"extract@{epoch}", epoch=epoch)
    return _described("features", epoch, source, path, store) | {"statistics": _rows(store, "features")}


def _pca(epoch: int, source: Origin) -> Description:
    path = layout.pca(epoch)
    store = source.store(path, "pca", made_by=f"pca@{epoch}", epoch=epoch)
    statistics = _rows(store, "reduced") | {"explained_variance": None}
    if store.has("explained_variance_ratio"):
        ratio_d = store.read("explained_variance_ratio").astype(np.float64)
        kept_d = np.cumsum(ratio_d)
        statistics["explained_variance"] = {
            "kept": float(kept_d[-1]),
            "components_for": {
                f"{share:.0%}": int(np.argmax(kept_d >= share)) + 1 if kept_d[-1] >= share else None
                for share in KEPT_SHARES
            },
            "ratio": ratio_d.tolist(),
        }
    return _described("pca", epoch, source, path, store) | {"statistics": statistics}


def _clusters(epoch: int, source: Origin) -> Description:
    path = layout.clusters(epoch)
    store = source.store(path, "clusters", made_by=f"cluster@{epoch}", epoch=epoch)
    sizes_K, labels_N, distances_N = (store.read(name) for name in ("sizes", "labels", "distances"))
    sums_K = np.bincount(labels_N, weights=distances_N, minlength=len(sizes_K))
    statistics = {
        "k": len(sizes_K),
        "size": size_statistics(sizes_K),
        "squared_distance": summary(distances_N),
        "objective": store.read("objective").tolist(),
        "trained_on": store.attributes["trained_on"],
        "health": store.attributes["health"],
        "sizes": sizes_K.tolist(),
        "mean_squared_distances": [
            float(total / size) if size else None for total, size in zip(sums_K, sizes_K, strict=True)
        ],
    }
    return _described("clusters", epoch, source, path, store) | {"statistics": statistics}


def _checkpoint(epoch: int, source: Origin) -> Description:
    path, found = layout.checkpoint(epoch), source.checkpoint(epoch)
    before = source.checkpoint(epoch - 1).weights if epoch and source.has(layout.checkpoint(epoch - 1)) else None
    layers = layer_statistics(found.weights, before)
    tensors = {"model": found.weights, "optimizer": found.optimizer, "heads": found.heads}
    if found.average:
        tensors["average"] = found.average
    bank = artifacts.read_bank(source.root / path)
    if bank is not None:
        tensors["bank"] = {"bank": bank}
    arrays = [
        {"name": f"{file}: {name}", "shape": list(value.shape), "dtype": str(value.dtype), "raw_bytes": value.nbytes}
        for file, values in tensors.items()
        for name, value in sorted(values.items(), key=lambda item: natural_order(item[0]))
    ]
    statistics = {
        "parameters": sum(layer.parameters for layer in layers),
        "norm": sum(layer.norm**2 for layer in layers) ** 0.5,
        "non_finite": sum(layer.non_finite for layer in layers),
        "compared_with": None if before is None else epoch - 1,
        "layers": [asdict(layer) for layer in layers],
        "tensors": {file: len(values) for file, values in tensors.items()},
    }
    about = _where("checkpoint", epoch, source, path)
    return about | {"arrays": arrays, "provenance": _provenance(found.description), "statistics": statistics}


def _rows(store: artifacts.Store, name: str) -> Description:
    found = row_statistics(_watched(store, name, store.samples), store.shape(name))
    return asdict(found)


def _watched(store: artifacts.Store, name: str, total: int) -> Iterable[Any]:
    """Blocks of the array; with a progress bar, if there is much to read."""
    facts = next(facts for facts in artifacts.array_facts(store) if facts.name == name)
    rows = max(1, (64 << 20) * total // max(1, facts.raw_bytes))
    blocks = store.blocks(name, min(rows, 8192))
    return counted(blocks, f"reading {name}", total, "rows") if facts.raw_bytes > QUIET_BYTES else _each(blocks)


def _each(blocks: Iterator[T]) -> Iterator[T]:
    yield from blocks


def _described(what: What, epoch: int | None, source: Origin, path: Path, store: artifacts.Store) -> Description:
    facts = [asdict(array) for array in artifacts.array_facts(store)]
    return _where(what, epoch, source, path) | {"arrays": facts, "provenance": _provenance(store.attributes)}


def _where(what: What, epoch: int | None, source: Origin, path: Path) -> Description:
    files, size = artifacts.disk_usage(source.root / path)
    md5 = dvc_md5(source.root / path)
    return {
        "artifact": what,
        "epoch": epoch,
        "revision": source.revision,
        "path": str(path),
        "files": files,
        "bytes": size,
        "md5": md5,
        "lock": _lock(source, path, md5),
    }


def _lock(source: Origin, path: Path, md5: str) -> Description | None:
    """The stage that made it and the hashes of what it was made from; None if dvc.lock does not know this one."""
    found = source.locked(path)
    if found is None or found.md5 != md5:
        return None
    return {"stage": found.stage, "parents": dict(found.parents)}


def _provenance(attributes: Any) -> Description:
    return {name: attributes[name] for name in PROVENANCE if name in attributes}
