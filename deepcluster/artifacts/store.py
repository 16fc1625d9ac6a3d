"""Zarr stores: format 3, one sharded array a name, whole rows in each chunk, crc32c over every chunk.

No timestamps: same content, same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.artifacts.provenance import Provenance, damaged, expect, expect_version, plain
from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.remote import Remote, ahead, elsewhere
from deepcluster.artifacts.remote_store import DESCRIPTION, RECEIPT, RemoteRows, damaged_remote, remote_group
from deepcluster.artifacts.shards import Array, PlainRows, ZarrRows, plain_rows, regroup
from deepcluster.errors import ArtifactError, UserError

if TYPE_CHECKING:
    import zarr

SHARD_BYTES = 128 << 20
CHUNK_BYTES = 1 << 20


class StoreWriter:
    """Writes the arrays of one store; use through `write_store`."""

    def __init__(self, group: "zarr.Group", folder: Path) -> None:
        self._group = group
        self._folder = folder

    def array(self, name: str, values: Array, dimensions: Sequence[str]) -> None:
        """Write a whole array; `dimensions` names its axes."""
        target = self._create(name, values.shape, values.dtype, dimensions)
        for start in range(0, len(values), target.step):
            target.write(start, [values[start : start + target.step]])

    def rows(self, name: str, blocks: Iterable[Array], *, total: int, dimensions: Sequence[str]) -> None:
        """Write an array of `total` rows from blocks of any number of rows, which must not change once handed over.

        Some blocks (a shard of them, if zarr has to write it) are written by a thread while the next are computed.
        """
        blocks = iter(blocks)
        first = next(blocks, None)
        if first is None:
            raise ValueError(f"{name}: no rows to write")
        target = self._create(name, (total, *first.shape[1:]), first.dtype, dimensions)
        written = 0
        with ThreadPoolExecutor(1) as pool:
            writing: Future[None] | None = None
            for start, pieces in regroup(chain([first], blocks), target.step):
                written = start + sum(map(len, pieces))
                if writing is not None:
                    writing.result()
                if written > total:
                    break
                writing = pool.submit(target.write, start, pieces)
            if writing is not None:
                writing.result()
        if written != total:
            raise ValueError(f"{name}: expected {total} rows in all, got {written if written < total else 'more'}")

    def strings(self, name: str, values: Sequence[str], dimensions: Sequence[str]) -> None:
        """Write text as UTF-8 bytes, uint8 [len(values), longest + 1], zero-padded: every zarr reader knows uint8."""
        encoded = [value.encode(errors="surrogateescape") for value in values]
        width = max(map(len, encoded), default=0) + 1
        padded = np.frombuffer(b"".join(value.ljust(width, b"\0") for value in encoded), dtype=np.uint8)
        self.array(name, padded.reshape(len(values), width), (*dimensions, "utf8_byte"))

    def _create(self, name: str, shape: Sequence[int], dtype: Any, dimensions: Sequence[str]) -> PlainRows | ZarrRows:
        """An empty sharded array with whole rows in each chunk."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        dtype = np.dtype(dtype)
        shards, chunks = _layout(shape, dtype)
        # Floats hardly compress; images and labels do.
        compressors = [Crc32cCodec()] if dtype.kind == "f" else [ZstdCodec(level=1), Crc32cCodec()]
        array = self._group.create_array(
            name,
            shape=tuple(shape),
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            compressors=compressors,
            dimension_names=list(dimensions),
            config={"write_empty_chunks": True},  # so that a missing chunk is damage, not zeros
        )
        return plain_rows(self._folder / name) or ZarrRows(array)


@contextmanager
def write_store(target: Path, schema: str, provenance: Provenance, **extra: Any) -> Iterator[StoreWriter]:
    """Publish a zarr store of kind `schema` at `target`; `extra` goes into its attributes as it is (JSON)."""
    import zarr

    with publishing(target) as partial:
        attributes = provenance.attributes(schema) | plain(extra)
        group = zarr.create_group(partial, zarr_format=3, attributes=attributes)
        yield StoreWriter(group, partial)
        attributes["files"] = {name: _fingerprint(partial / name) for name in _files(partial)}
        group.attrs.update({"files": attributes["files"], "digest": _digest(attributes)})


@dataclass(frozen=True)
class Store:
    """An opened store: attributes, and arrays that are read and checked when asked for."""

    path: Path
    attributes: Mapping[str, Any]
    group: "zarr.Group"

    @property
    def ids(self) -> str:
        return str(self.attributes["ids"])

    @property
    def samples(self) -> int:
        return int(self.attributes["samples"])

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""
        return f"{name}/zarr.json" in self.attributes["files"]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._rows(name).shape

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        """`rows` of an array, every chunk's checksum verified; ArtifactError if one is missing or damaged."""
        found = self._rows(name)
        start, stop, step = rows.indices(found.shape[0])
        if step != 1:
            raise ValueError(f"rows must be taken in steps of 1; got {rows}")
        try:
            return found.read(start, max(start, stop))
        except UserError:
            raise
        except Exception as error:  # zarr raises whatever its codecs raise
            raise damaged(self.path / name, str(error) or type(error).__name__) from error

    def blocks(self, name: str, row_count: int = 8192, *, first: int = 0, workers: int = 0) -> Iterator[Array]:
        """The array's rows in blocks of about `row_count`: whole chunks, so that none is read twice.

        first: the row to begin with, rounded down to a whole chunk. workers: threads that read the blocks to come
        while the caller uses one; a store behind a URL has some in any case.
        """
        found = self._rows(name)
        step = max(1, row_count // found.chunk_rows) * found.chunk_rows
        first = self.block_start(name, first)
        if isinstance(found, RemoteRows):
            return found.blocks(first, step)
        starts = range(first, found.shape[0], step)

        def block(start: int) -> Array:
            return self.read(name, slice(start, start + step))

        return ahead(block, starts, workers=workers) if workers else map(block, starts)

    def block_start(self, name: str, row: int) -> int:
        """The first row of the chunk that a row lies in."""
        return row - row % self._rows(name).chunk_rows

    def strings(self, name: str) -> list[str]:
        """What `StoreWriter.strings` wrote."""
        return [row.tobytes().rstrip(b"\0").decode(errors="surrogateescape") for row in self.read(name)]

    def version(self, array: str) -> object:
        """Equal only as long as nobody writes the store anew: sizes could agree by chance, hence the times as well."""
        files = [name for name in self.attributes["files"] if name.startswith(f"{array}/")]
        times = [(self.path / name).stat().st_mtime_ns for name in sorted(files)]
        return self.attributes["digest"], times

    def _rows(self, name: str) -> PlainRows | ZarrRows | RemoteRows:
        if not self.has(name):
            raise damaged(self.path, f"it has no array {name}")
        for file, expected in self.attributes["files"].items():
            if file.startswith(f"{name}/") and _fingerprint(self.path / file) != expected:
                raise damaged(self.path / file, "missing, cut short or altered")
        return plain_rows(self.path / name) or ZarrRows(self.group[name])


@dataclass(frozen=True)
class RemoteStore(Store):
    """A store behind a URL; `path` is where it would lie in the project. `descriptions`: zarr.json of each array."""

    remote: Remote
    descriptions: Mapping[str, bytes]

    def version(self, array: str) -> object:
        return self.attributes["digest"], self.remote.url, self.remote.read_or_none(f"{DESCRIPTION}{RECEIPT}")

    def _rows(self, name: str) -> RemoteRows:
        if name not in self.descriptions:
            raise damaged_remote(self.remote, name, "it has no such array")
        return RemoteRows(self.remote, name, self.descriptions[name], self.attributes["files"], self.group[name])


def open_store(path: Path, schema: str, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> Store:
    """Open the store at `path`, refusing one that is missing, damaged, of another kind, data set or epoch.

    One that is not there is looked for in DEEPCLUSTER_STORE, where that is set. `made_by` names the DVC stage that
    writes it, for the remedy in the message.
    """
    import zarr

    if not path.exists():
        return _open_remote(path, schema, made_by, ids, epoch)
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        attributes = dict(group.attrs)
    except Exception as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    if attributes.get("digest") != _digest(attributes):
        raise damaged(path, "attributes altered")
    _refuse_other(str(path), attributes, schema, made_by, ids, epoch)
    return Store(path, attributes, group)


def check_files(path: Path) -> None:
    """ArtifactError unless the store at `path` has its attributes and the files that they tell of, by size."""
    try:
        attributes = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))["attributes"]
        files = dict(attributes["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    if attributes.get("digest") != _digest(attributes):
        raise damaged(path, "attributes altered")
    for name, expected in files.items():
        if _fingerprint(path / name) != expected:
            raise damaged(path / name, "missing, cut short or altered")


def _open_remote(path: Path, schema: str, made_by: str, ids: str | None, epoch: int | None) -> Store:
    remote = elsewhere(path)
    found = None if remote is None else remote_group(remote)
    if remote is None or found is None:
        where = "" if remote is None else f", nor is there {remote.url}"
        raise ArtifactError(f"{path}: not found{where}; run `dvc repro {made_by}`")
    group, descriptions = found
    attributes = dict(group.attrs)
    if attributes.get("digest") != _digest(attributes):
        raise damaged_remote(remote, DESCRIPTION, "attributes altered")
    _refuse_other(remote.url, attributes, schema, made_by, ids, epoch)
    return RemoteStore(path, attributes, group, remote, descriptions)


def _refuse_other(
    named: str, attributes: Mapping[str, Any], schema: str, made_by: str, ids: str | None, epoch: int | None
) -> None:
    """ArtifactError for a store of another kind, layout, data set or epoch."""
    expect(named, "schema", schema, attributes.get("schema"), made_by)
    expect_version(named, schema, attributes, made_by)
    if ids is not None and attributes.get("ids") != ids:
        raise ArtifactError(f"{named}: belongs to another data set or sample order; run `dvc repro {made_by}`")
    if epoch is not None:
        expect(named, "epoch", epoch, attributes.get("epoch"), made_by)


def _layout(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shard shape, chunk shape): whole rows, chunks near CHUNK_BYTES, shards near SHARD_BYTES."""
    row = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
    total = max(1, shape[0])
    per_chunk = min(total, max(1, CHUNK_BYTES // row))
    chunks_per_shard = min(-(-total // per_chunk), max(1, SHARD_BYTES // (per_chunk * row)))
    rest = tuple(max(1, length) for length in shape[1:])
    return (per_chunk * chunks_per_shard, *rest), (per_chunk, *rest)


def _files(folder: Path) -> list[str]:
    """The files of the arrays in a store's folder, relative to it, in a fixed order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/**/*") if path.is_file())


def _fingerprint(path: Path) -> int | str | None:
    """The sha256 of an array's metadata; the size of a shard, whose content has checksums of its own; None if missing.

    Zarr takes an empty shard file for zeros, so the size must be checked.
    """
    if not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.name == "zarr.json" else path.stat().st_size


def _digest(attributes: Mapping[str, Any]) -> str:
    """sha256 over the attributes, without the digest itself."""
    rest = {name: value for name, value in attributes.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
