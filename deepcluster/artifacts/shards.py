"""The rows of an array on disk: uncompressed ones straight from and to their shard files, all others through zarr.

Zarr's codec pipeline copies every byte several times. An uncompressed shard needs none of that: its chunks in the order
of their rows, each followed by its crc32c; then the offset and length of each, followed by the crc32c of these
(zarr 3, sharding_indexed with its index at the end). What is written here equals what zarr writes, byte for byte.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from math import prod
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

WRITE_BYTES = 8 << 20  # after this many the disk is told to start
READ_BYTES = 8 << 20  # checked by a thread while the next are read
BUFFERS_PER_CALL = 1024  # Linux's limit
MISSING = 2**64 - 1
METADATA = "zarr.json"

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

CHECKED = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


class Rows(Protocol):
    """Rows of an array for reading, wherever they lie."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def chunk_rows(self) -> int: ...

    def read(self, start: int, stop: int) -> Array: ...


@dataclass(frozen=True)
class ZarrRows:
    """Rows of an array of any codecs, by zarr."""

    array: Any

    @property
    def name(self) -> str:
        return str(self.array.basename)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def chunk_rows(self) -> int:
        return int(self.array.chunks[0])

    @property
    def step(self) -> int:
        """How many rows to write at once: a shard, since zarr would read back a part of one."""
        return int(self.array.shards[0])

    @property
    def shards(self) -> list[slice]:
        """The rows of each shard file, in order."""
        return _cut(self.shape[0], self.step)

    def write(self, start: int, pieces: Sequence[Array]) -> None:
        rows = joined(pieces)
        self.array[start : start + len(rows)] = rows

    def read(self, start: int, stop: int) -> Array:
        return np.asarray(self.array[start:stop])


@dataclass(frozen=True)
class PlainRows:
    """Rows of an uncompressed array, cut into chunks and shards along the first axis only."""

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_chunks: int

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def step(self) -> int:
        """How many rows to write at once."""
        return self.chunk_rows * max(1, WRITE_BYTES // self._chunk_bytes)

    def write(self, start: int, pieces: Sequence[Array]) -> None:
        """Write rows from `start` on. Only whole chunks, but for the last of the array, which is padded with zeros."""
        chunks = enumerate((parts for _, parts in regroup(pieces, self.chunk_rows)), start // self.chunk_rows)
        for shard, group in groupby(chunks, key=lambda chunk: chunk[0] // self.shard_chunks):
            path = self._file(shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _opened(path, os.O_WRONLY | os.O_CREAT) as file:
                first = end = -1
                for number, parts in group:
                    content = self._content(parts)
                    offset = number % self.shard_chunks * self._chunk_bytes
                    end = _transfer(os.pwritev, file, [*content, np.frombuffer(_crc32c(content), np.uint8)], offset)
                    first = offset if first < 0 else first
                if end == self._index_offset(shard):
                    end = _transfer(os.pwritev, file, [np.frombuffer(self._index(shard), np.uint8)], end)
                _start_writing_back(file, first, end - first)

    def read(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop`, every checksum verified; ValueError or OSError if a byte is not as written."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with ThreadPoolExecutor(1) as pool, closing(self._runs(rows, start, stop)) as runs:
            checks = [pool.submit(self._check, path, chunks) for path, chunks in runs]
        for check in checks:
            check.result()
        return rows

    @property
    def shards(self) -> list[slice]:
        """The rows of each shard file, in order."""
        return _cut(self.shape[0], self.chunk_rows * self.shard_chunks)

    def intact(self, progress: Callable[[int, int], None] | None = None) -> list[int]:
        """Of each shard how many chunks to keep: all of one that is as it was written, with its index and no more.

        Of another the chunks up to the first whose checksum differs, less one: whoever writes the last chunk of a shard
        writes its index. `progress` is told (rows checked, rows in total).
        """
        found = []
        for shard, rows in enumerate(self.shards):
            good, whole = self._intact(shard)
            found.append(good if whole else max(0, good - 1))
            if progress is not None:
                progress(rows.stop, self.shape[0])
        return found

    def _intact(self, shard: int) -> tuple[int, bool]:
        """Chunks up to the first whose checksum differs, and whether all of the file is as it was written."""
        if not self._file(shard).is_file():
            return 0, False
        good = 0
        with _opened(self._file(shard), os.O_RDONLY) as file:
            for offset in range(0, self._index_offset(shard), self._chunk_bytes):
                chunk = np.frombuffer(os.pread(file, self._chunk_bytes, offset), np.uint8)
                if len(chunk) < self._chunk_bytes or _crc32c([chunk[:-4]]) != chunk[-4:].tobytes():
                    return good, False
                good += 1
            expected = self._index(shard)
            return good, os.pread(file, len(expected) + 1, self._index_offset(shard)) == expected

    def chunks_of(self, shard: int) -> int:
        """How many chunks the shard has."""
        return self._index_offset(shard) // self._chunk_bytes

    def cut(self, shard: int, chunks: int) -> Path | None:
        """Cut a shard's file after so many chunks; the file, or None, and no file, if there are none."""
        if not chunks:
            self._file(shard).unlink(missing_ok=True)
            return None
        if chunks < self.chunks_of(shard):
            os.truncate(self._file(shard), chunks * self._chunk_bytes)
        return self._file(shard)

    def flush(self, rows: slice) -> None:
        """Send the whole shards with these rows to the disk; ValueError if one is missing or of another length."""
        for shard, own in enumerate(self.shards):
            if rows.start <= own.start < rows.stop:
                with _opened(self._file(shard), os.O_RDONLY) as file:
                    if os.fstat(file).st_size != self._index_offset(shard) + len(self._index(shard)):
                        raise ValueError(f"{self._file(shard)}: cut short or too long")
                    os.fsync(file)

    def _runs(self, rows: Array, start: int, stop: int) -> Generator[tuple[Path, list[list[Bytes]]], None, None]:
        """Chunks, as the parts that they consist of, read into `rows` and not yet checked, some megabytes at a time."""
        numbers = range(start // self.chunk_rows, -(-stop // self.chunk_rows))
        for shard, group in groupby(numbers, key=lambda number: number // self.shard_chunks):
            path = self._file(shard)
            with _opened(path, os.O_RDONLY) as file:
                if os.fstat(file).st_size != self._index_offset(shard) + len(self._index(shard)):
                    raise ValueError(f"{path.relative_to(self.folder)}: cut short or too long")
                while run := list(islice(group, max(1, READ_BYTES // self._chunk_bytes))):
                    chunks = [self._places(rows, start, number) for number in run]
                    offset = run[0] % self.shard_chunks * self._chunk_bytes
                    _transfer(os.preadv, file, [part for parts in chunks for part in parts], offset)
                    yield path, chunks
                self._check_index(file, shard)  # last, as it lies at the end: reading ahead goes on undisturbed

    def _places(self, rows: Array, start: int, number: int) -> list[Bytes]:
        """Where the bytes of a chunk go: rows before `rows`, rows among them, rows or padding after them, checksum."""
        begin = number * self.chunk_rows - start
        end = begin + self.chunk_rows
        inside = rows[max(0, begin) : end]
        before, after = max(0, -begin), max(0, end - len(rows))
        sizes = before * self._row_bytes, after * self._row_bytes, 4
        skipped, rest, checksum = (np.empty(size, np.uint8) for size in sizes)
        return [skipped, _bytes(inside), rest, checksum]

    def _check(self, path: Path, chunks: list[list[Bytes]]) -> None:
        for *content, checksum in chunks:
            if _crc32c(content) != checksum.tobytes():
                raise ValueError(f"{path.relative_to(self.folder)}: checksum differs")

    def _content(self, parts: list[Array]) -> list[Bytes]:
        """The bytes of a chunk, padded."""
        for part in parts:
            if part.shape[1:] != self.shape[1:]:
                raise ValueError(f"{self.folder.name}: rows must be of shape {self.shape[1:]}, got {part.shape[1:]}")
        if len(parts) > 16:
            parts = [np.concatenate(parts)]
        padding = np.zeros((self.chunk_rows - sum(map(len, parts))) * self._row_bytes, np.uint8)
        return [*(_bytes(np.ascontiguousarray(part, self.dtype)) for part in parts), padding]

    def _check_index(self, file: int, shard: int) -> None:
        expected, offset = self._index(shard), self._index_offset(shard)
        if os.pread(file, len(expected), offset) != expected:
            raise ValueError(f"{self._file(shard).relative_to(self.folder)}: shard index differs")

    def _index(self, shard: int) -> bytes:
        """(offset, length) of each chunk and the checksum of it all; chunks past the array's end are missing."""
        present = self.chunks_of(shard)
        index = np.full((self.shard_chunks, 2), MISSING, "<u8")
        index[:present, 0] = np.arange(present) * self._chunk_bytes
        index[:present, 1] = self._chunk_bytes
        return index.tobytes() + _crc32c([_bytes(index)])

    def _index_offset(self, shard: int) -> int:
        chunks = -(-self.shape[0] // self.chunk_rows) - shard * self.shard_chunks
        return min(self.shard_chunks, chunks) * self._chunk_bytes

    def _file(self, shard: int) -> Path:
        return self.folder.joinpath("c", str(shard), *["0"] * (len(self.shape) - 1))

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def _chunk_bytes(self) -> int:
        """With the checksum."""
        return self.chunk_rows * self._row_bytes + 4


def plain_rows(folder: Path) -> PlainRows | None:
    """The rows of the array in `folder`, unless its metadata differs in anything from what `PlainRows` knows."""
    found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    try:
        shape, name = tuple(found["shape"]), found["data_type"]
        shard = found["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = found["codecs"][0]["configuration"]["chunk_shape"]
    except (KeyError, IndexError, TypeError):
        return None
    sharding = {"chunk_shape": chunk, "codecs": CHECKED, "index_codecs": CHECKED, "index_location": "end"}
    known = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": name,
        "fill_value": 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "storage_transformers": [],
    }
    free = ("shape", "attributes", "dimension_names")
    if {key: value for key, value in found.items() if key not in free} != known or not prod(shape):
        return None
    if name not in ("float16", "float32", "float64") or not tuple(shard[1:]) == tuple(chunk[1:]) == shape[1:]:
        return None
    return PlainRows(folder, shape, np.dtype(name).newbyteorder("<"), chunk[0], shard[0] // chunk[0])


def regroup(blocks: Iterable[Array], row_count: int) -> Iterator[tuple[int, list[Array]]]:
    """(start row, pieces of blocks) with exactly `row_count` rows in a group's pieces, fewer in the last group."""
    start, held, pending = 0, 0, []
    for block in blocks:
        while len(block):
            take, block = block[: row_count - held], block[row_count - held :]
            pending.append(take)
            held += len(take)
            if held == row_count:
                yield start, pending
                start, held, pending = start + held, 0, []
    if pending:
        yield start, pending


def _cut(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def joined(pieces: Sequence[Array]) -> Array:
    """One array of the rows of all."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _bytes(contiguous: Array) -> Bytes:
    return contiguous.reshape(-1).view(np.uint8)


def _crc32c(parts: Iterable[Bytes]) -> bytes:
    """Checksum of the parts in a row, 4 bytes, little-endian."""
    checksum = 0
    for part in parts:
        checksum = google_crc32c.extend(checksum, part)
    return checksum.to_bytes(4, "little")


def _transfer(call: Callable[[int, list[Any], int], int], file: int, parts: Iterable[Bytes], offset: int) -> int:
    """os.preadv or os.pwritev until all parts are done; the offset behind them."""
    pending = deque(part for part in parts if len(part))
    while pending:
        count = call(file, list(islice(pending, BUFFERS_PER_CALL)), offset)
        if count == 0:
            raise ValueError("cut short")
        offset += count
        while pending and count >= len(pending[0]):
            count -= len(pending.popleft())
        if count:
            pending[0] = pending[0][count:]
    return offset


def _start_writing_back(file: int, offset: int, length: int) -> None:
    """Let the disk write while the next bytes are made. On Linux this advice does it, and dirty pages stay cached."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags, 0o666)
    try:
        yield file
    finally:
        os.close(file)
