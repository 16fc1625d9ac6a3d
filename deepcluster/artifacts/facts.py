"""How a store lies on the disk: shapes, types, chunks, codecs and bytes of its arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.artifacts.provenance import reading
from deepcluster.artifacts.store import Store


@dataclass(frozen=True)
class ArrayFacts:
    """One array. `codecs`: of a chunk, in order; `raw_bytes`: of its values; `stored_bytes`: of its files."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    codecs: tuple[str, ...]
    raw_bytes: int
    stored_bytes: int


def array_facts(store: Store) -> list[ArrayFacts]:
    """Of every array in the store, by name; reads metadata alone. ArtifactError if that is damaged."""
    names = sorted({file.partition("/")[0] for file in store.attributes["files"]})
    for name in names:
        store.check(name)
    with reading(store.path):
        return [_facts(name, store.group[name], store.path / name) for name in names]


def disk_usage(path: Path) -> tuple[int, int]:
    """(files, bytes) of a file, or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(files), sum(file.stat().st_size for file in files)


def _facts(name: str, array: Any, folder: Path) -> ArrayFacts:
    shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
    return ArrayFacts(
        name=name,
        shape=shape,
        dtype=str(dtype),
        dimensions=tuple(array.metadata.dimension_names or ()),
        chunks=tuple(map(int, array.chunks)),
        shards=tuple(map(int, array.shards)) if array.shards else None,
        codecs=_codecs(array.metadata.to_dict()),
        raw_bytes=prod(shape) * dtype.itemsize,
        stored_bytes=disk_usage(folder)[1],
    )


def _codecs(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the codecs of a chunk: of a sharded array those inside the shard."""
    codecs = metadata["codecs"]
    if codecs[0]["name"] == "sharding_indexed":
        codecs = codecs[0]["configuration"]["codecs"]
    return tuple(str(codec["name"]) for codec in codecs)
