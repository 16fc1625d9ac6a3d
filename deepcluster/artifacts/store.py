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

from deepcluster.artifacts.provenance import (
    Provenance,
    damaged,
    digest_of,
    missing,
    plain,
    reading,
)
from deepcluster.artifacts.publish import publishing, publishing_from
from deepcluster.artifacts.refusals import refuse_foreign, refuse_other, replaced
from deepcluster.artifacts.remote import ahead
from deepcluster.artifacts.shards import METADATA, Array, PlainRows, Rows, ZarrRows, plain_rows, regroup

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
        target = self.begin(name, values.shape, values.dtype, dimensions)
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
        target = self.begin(name, (total, *first.shape[1:]), first.dtype, dimensions)
        write_rows(target, chain([first], blocks), slice(0, total))

    def strings(self, name: str, values: Sequence[str], dimensions: Sequence[str]) -> None:
        """Write text as UTF-8 bytes, uint8 [len(values), longest + 1], zero-padded: every zarr reader knows uint8."""
        encoded = [value.encode(errors="surrogateescape") for value in values]
        width = max(map(len, encoded), default=0) + 1
        padded = np.frombuffer(b"".join(value.ljust(width, b"\0") for value in encoded), dtype=np.uint8)
        self.array(name, padded.reshape(len(values), width), (*dimensions, "utf8_byte"))

    def begin(self, name: str, shape: Sequence[int], dtype: Any, dimensions: Sequence[str]) -> PlainRows | ZarrRows:
        """An empty sharded array with whole rows in each chunk, for `write_rows`. What lies there of it stays."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        dtype = np.dtype(dtype)
        shards, chunks = _layout(shape, dtype)
        # Floats hardly compress; images and labels do.
        compressors = [Crc32cCodec()] if dtype.kind == "f" else [ZstdCodec(level=1), Crc32cCodec()]
        (self._folder / name / METADATA).unlink(missing_ok=True)
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


def write_rows(target: PlainRows | ZarrRows, blocks: Iterable[Array], rows: slice) -> None:
    """Write these rows of an array (see `StoreWriter.begin`), as `StoreWriter.rows` does; they begin with a chunk.

    Several processes may write rows of one array at once, if no two write to a shard. ValueError for blocks of more or
    fewer rows.
    """
    written, total = rows.start, rows.stop - rows.start
    with ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for row, pieces in regroup(blocks, target.step):
            written = rows.start + row + sum(map(len, pieces))
            if writing is not None:
                writing.result()
            if written > rows.stop:
                break
            writing = pool.submit(target.write, rows.start + row, pieces)
        if writing is not None:
            writing.result()
    if written != rows.stop:
        got = written - rows.start if written < rows.stop else "more"
        raise ValueError(f"{target.name}: expected {total} rows in all, got {got}")


@contextmanager
def write_store(target: Path, schema: str, provenance: Provenance, **extra: Any) -> Iterator[StoreWriter]:
    """Publish a zarr store of kind `schema` at `target`; `extra` goes into its attributes as it is (JSON)."""
    with publishing(target) as partial, _writing(partial, provenance.attributes(schema) | plain(extra)) as writer:
        yield writer


@contextmanager
def continue_store(folder: Path, target: Path, schema: str, provenance: Provenance) -> Iterator[StoreWriter]:
    """The same, but until then the store lies in `folder`, where it stays after an error: see `keep_intact`."""
    with publishing_from(folder, target), _writing(folder, provenance.attributes(schema)) as writer:
        yield writer


@contextmanager
def _writing(folder: Path, attributes: dict[str, Any]) -> Iterator[StoreWriter]:
    """A store to write to; when the block ends, it is complete."""
    import zarr

    (folder / METADATA).unlink(missing_ok=True)
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    yield StoreWriter(group, folder)
    attributes["files"] = {name: _fingerprint(folder / name) for name in _files(folder)}
    group.attrs.update({"files": attributes["files"], "digest": digest_of(attributes)})


@dataclass(frozen=True)
class Store:
    """An opened store: attributes, and arrays that are read and checked when asked for."""

    path: Path
    attributes: Mapping[str, Any]
    group: "zarr.Group"
    stamp: object  # tells it from another one that later lies in its place

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
        """`rows` of an array, every chunk's checksum verified; ArtifactError if one is missing or damaged.

        Also if another store has taken the place of this one since it was opened, so that parts of two never mix.
        """
        found = self._rows(name)
        start, stop = bounds(rows, found.shape[0])
        with reading(self.path / name):
            try:
                rows_read = found.read(start, stop)
            finally:  # an error of a store that another has replaced meanwhile is no damage
                self._refuse_replaced()
        return rows_read

    def blocks(
        self, name: str, row_count: int = 8192, *, first: int = 0, last: int | None = None, workers: int = 0
    ) -> Iterator[Array]:
        """The array's rows in blocks of about `row_count`: whole chunks, so that none is read twice.

        first: the row to begin with, rounded down to a whole chunk. last: the row to end before; None: all. workers:
        threads that read the blocks to come while the caller uses one; a store behind a URL has some in any case.
        """
        found = self._rows(name)
        stop = found.shape[0] if last is None else last
        step = max(1, row_count // found.chunk_rows) * found.chunk_rows
        starts = range(first - first % found.chunk_rows, stop if first < stop else 0, step)

        def block(start: int) -> Array:
            return self.read(name, slice(start, min(start + step, stop)))

        return ahead(block, starts, workers=workers) if workers else map(block, starts)

    def chunk_rows(self, name: str) -> int:
        """How many rows a chunk of the array has."""
        return self._rows(name).chunk_rows

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

    def _refuse_replaced(self) -> None:
        if _stamp(self.path) != self.stamp:
            raise replaced(self.path)

    def _rows(self, name: str) -> Rows:
        self.check(name)
        _refuse_foreign(self.path / name)
        with reading(self.path / name):
            return plain_rows(self.path / name) or ZarrRows(self.group[name])

    def check(self, name: str) -> None:
        """ArtifactError unless the array's files are there, its metadata as written and its shards as long."""
        if not self.has(name):
            raise damaged(self.path, f"it has no array {name}")
        for file, expected in self.attributes["files"].items():
            if file.startswith(f"{name}/") and _fingerprint(self.path / file) != expected:
                self._refuse_replaced()
                raise damaged(self.path / file, "missing, cut short or altered")


def open_store(path: Path, schema: str, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> Store:
    """The store at `path`; see `opening.open_store`, which looks behind a URL too."""
    import zarr

    if not path.exists():
        raise missing(path, made_by)
    stamp = _stamp(path)
    with reading(path):
        # not consolidated: what each array's own zarr.json says is what is checked
        group = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
        attributes = dict(group.attrs)
    if attributes.get("digest") != digest_of(attributes):
        raise damaged(path, "attributes altered")
    refuse_other(path, attributes, schema, made_by, ids, epoch)
    return Store(path, attributes, group, stamp)


def check_files(path: Path) -> None:
    """ArtifactError unless the store at `path` has its attributes and the files that they tell of, by size."""
    with reading(path):
        attributes = json.loads((path / METADATA).read_text(encoding="utf-8"))["attributes"]
        files = dict(attributes["files"])
    if attributes.get("digest") != digest_of(attributes):
        raise damaged(path, "attributes altered")
    for name, expected in files.items():
        if _fingerprint(path / name) != expected:
            raise damaged(path / name, "missing, cut short or altered")


def bounds(rows: slice, count: int) -> tuple[int, int]:
    """Where a slice of so many rows begins and ends; ValueError if it takes steps."""
    start, stop, step = rows.indices(count)
    if step != 1:
        raise ValueError(f"rows must be taken in steps of 1; got {rows}")
    return start, max(start, stop)


def _refuse_foreign(folder: Path) -> None:
    with reading(folder):
        refuse_foreign(folder, (folder / METADATA).read_bytes())


def shard_count(shape: Sequence[int], dtype: Any) -> int:
    """How many files the rows of such an array are written to (see `StoreWriter.begin`)."""
    shard, _ = _layout(shape, np.dtype(dtype))
    return -(-shape[0] // shard[0])


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
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.name == METADATA else path.stat().st_size


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Tells a store from another one that later lies in its place; None where there is none."""
    try:
        found = (path / "zarr.json").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
