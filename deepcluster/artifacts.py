"""Artifacts on disk: zarr stores and checkpoints, with provenance, checksums and atomic publish.

The only module that touches zarr and safetensors. A store is a folder in zarr format 3: one sharded array for each
name, crc32c over every chunk, no timestamps: same content, same bytes. Its attributes say what it is:

    schema, version   kind of artifact and its layout's version
    epoch             epoch it belongs to (absent for the data set)
    samples, ids      N, and the sha256 over the sample ids: an array of another data set or order is refused
    params, seed      what it was made with
    packages          versions of the packages that made it

Shape suffixes: N samples.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepcluster import __version__
from deepcluster.errors import ArtifactError

if TYPE_CHECKING:
    import zarr

SCHEMA_VERSION = 1
RECORDED_PACKAGES = ("numpy", "zarr", "torch", "faiss-gpu", "scikit-learn")
SHARD_BYTES = 128 << 20
CHUNK_BYTES = 1 << 20

Array = npt.NDArray[Any]


def ids_hash(sample_ids: Iterable[str]) -> str:
    """sha256 (hex) over the sample ids in order; equal only for the same samples in the same order."""
    digest = hashlib.sha256()
    for sample in sample_ids:
        encoded = sample.encode(errors="surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


# --- publishing -----------------------------------------------------------------------------------------------------


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; renamed to `target` when the block ends without an error.

    Everything is flushed to the disk before the rename, so a killed process leaves the old artifact or none.
    Leavings of killed processes are removed on the way.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leaving in target.parent.glob(f".{target.name}.*.partial"):
        if not _alive(leaving):
            remove(leaving)
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    remove(partial)
    try:
        yield partial
        _flush(partial)
        _replace(partial, target)
    except BaseException:
        remove(partial)
        raise
    _flush_directory(target.parent)


def remove(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Publish a text file."""
    with publishing(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def _alive(partial: Path) -> bool:
    """Whether the process that writes `partial` still runs."""
    owner = partial.name.split(".")[-2]
    if not owner.isdigit() or int(owner) == os.getpid():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _replace(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`; a folder in the way steps aside first, since rename cannot replace it."""
    if not target.is_dir():
        partial.replace(target)
        return
    aside = target.parent / f".{target.name}.{os.getpid()}.old.partial"
    target.rename(aside)
    partial.rename(target)
    remove(aside)


def _flush(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            _flush_directory(Path(folder) / name)
        _flush_directory(Path(folder))
    if path.is_file():
        _flush_directory(path)


def _flush_directory(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- zarr stores ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provenance:
    """What an artifact's attributes say of its origin; `ids` is the `ids_hash` of its data set."""

    samples: int
    ids: str
    epoch: int | None = None
    seed: int | None = None
    params: Mapping[str, Any] | None = None

    def attributes(self, schema: str) -> dict[str, Any]:
        packages = {"deepcluster": __version__} | {name: version(name) for name in RECORDED_PACKAGES}
        found: dict[str, Any] = {"schema": schema, "version": SCHEMA_VERSION, "samples": self.samples, "ids": self.ids}
        if self.epoch is not None:
            found["epoch"] = self.epoch
        if self.seed is not None:
            found["seed"] = self.seed
        return found | {"params": _plain(self.params or {}), "packages": packages}


class StoreWriter:
    """Writes the arrays of one store; use through `write_store`."""

    def __init__(self, group: "zarr.Group") -> None:
        self._group = group

    def array(self, name: str, values: Array, dimensions: Sequence[str]) -> None:
        """Write a whole array; `dimensions` names its axes."""
        self.create(name, values.shape, values.dtype, dimensions)[...] = values

    def rows(self, name: str, blocks: Iterable[Array], *, total: int, dimensions: Sequence[str]) -> None:
        """Write an array of `total` rows from blocks of any number of rows, one shard in memory at a time."""
        target: Any = None
        for start, rows in regroup(blocks, row_count=_rows_per_shard):
            if target is None:
                target = self.create(name, (total, *rows.shape[1:]), rows.dtype, dimensions)
            target[start : start + len(rows)] = rows
        if target is None:
            raise ValueError(f"{name}: no rows to write")

    def strings(self, name: str, values: Sequence[str], dimensions: Sequence[str]) -> None:
        """Write text as UTF-8 bytes, uint8 [len(values), longest + 1], zero-padded: a dtype that every zarr reader knows."""
        encoded = [value.encode(errors="surrogateescape") for value in values]
        width = max(map(len, encoded), default=0) + 1
        padded = np.frombuffer(b"".join(value.ljust(width, b"\0") for value in encoded), dtype=np.uint8)
        self.array(name, padded.reshape(len(values), width), (*dimensions, "utf8_byte"))

    def create(self, name: str, shape: Sequence[int], dtype: Any, dimensions: Sequence[str]) -> Any:
        """An empty sharded array with whole rows in each chunk."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        dtype = np.dtype(dtype)
        shards, chunks = _layout(shape, dtype)
        # Floats hardly compress; images and labels do.
        compressors = [Crc32cCodec()] if dtype.kind == "f" else [ZstdCodec(level=1), Crc32cCodec()]
        return self._group.create_array(
            name,
            shape=tuple(shape),
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            compressors=compressors,
            dimension_names=list(dimensions),
            config={"write_empty_chunks": True},  # so that a missing chunk is damage, not zeros
        )


@contextmanager
def write_store(target: Path, schema: str, provenance: Provenance, **extra: Any) -> Iterator[StoreWriter]:
    """Publish a zarr store of kind `schema` at `target`; `extra` goes into its attributes as it is (JSON)."""
    import zarr

    with publishing(target) as partial:
        attributes = provenance.attributes(schema) | _plain(extra)
        yield StoreWriter(zarr.create_group(partial, zarr_format=3, attributes=attributes))


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

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._array(name).shape)

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        """`rows` of an array, every chunk's checksum verified; ArtifactError if one is missing or damaged."""
        array = self._array(name)
        try:
            return np.asarray(array[rows])
        except Exception as error:  # zarr raises whatever its codecs raise
            raise damaged(self.path / name, str(error) or type(error).__name__) from error

    def blocks(self, name: str, row_count: int = 8192) -> Iterator[Array]:
        """The array's rows in blocks."""
        for start in range(0, self.shape(name)[0], row_count):
            yield self.read(name, slice(start, start + row_count))

    def strings(self, name: str) -> list[str]:
        """What `StoreWriter.strings` wrote."""
        return [row.tobytes().rstrip(b"\0").decode(errors="surrogateescape") for row in self.read(name)]

    def _array(self, name: str) -> Any:
        if name not in self.group:
            raise damaged(self.path / name, "the array is missing")
        array: Any = self.group[name]
        missing = [key for key in _shard_keys(array) if not (self.path / name / key).is_file()]
        if missing:
            raise damaged(self.path / name, f"shard {missing[0]} is missing")
        return array


def open_store(path: Path, schema: str, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> Store:
    """Open the store at `path`, refusing one that is missing, damaged, of another kind, data set or epoch.

    `made_by` names the DVC stage that writes it, for the remedy in the message.
    """
    import zarr

    if not path.exists():
        raise ArtifactError(f"{path}: not found; run `dvc repro {made_by}`")
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        attributes = dict(group.attrs)
    except Exception as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    store = Store(path, attributes, group)
    _expect(path, "schema", schema, attributes.get("schema"), made_by)
    _expect(path, "version", SCHEMA_VERSION, attributes.get("version"), made_by)
    if ids is not None and attributes.get("ids") != ids:
        raise ArtifactError(f"{path}: belongs to another data set or sample order; run `dvc repro {made_by}`")
    if epoch is not None:
        _expect(path, "epoch", epoch, attributes.get("epoch"), made_by)
    return store


def damaged(path: Path, reason: str) -> ArtifactError:
    """The error of an artifact that does not read back as it was written."""
    reason = " ".join(reason.split())
    return ArtifactError(f"{path}: damaged ({reason}); delete it and run `dvc checkout` or `dvc repro`")


def _expect(path: Path, key: str, expected: object, found: object, made_by: str) -> None:
    if found != expected:
        raise ArtifactError(f"{path}: {key}: expected {expected!r}, got {found!r}; run `dvc repro {made_by}`")


def _layout(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shard shape, chunk shape): whole rows, chunks near CHUNK_BYTES, shards near SHARD_BYTES, never beyond the array."""
    row = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
    total = max(1, shape[0])
    per_chunk = min(total, max(1, CHUNK_BYTES // row))
    chunks_per_shard = min(-(-total // per_chunk), max(1, SHARD_BYTES // (per_chunk * row)))
    rest = tuple(max(1, length) for length in shape[1:])
    return (per_chunk * chunks_per_shard, *rest), (per_chunk, *rest)


def _rows_per_shard(total_row_shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    row = max(1, int(np.prod(total_row_shape, dtype=np.int64)) * dtype.itemsize)
    per_chunk = max(1, CHUNK_BYTES // row)
    return per_chunk * max(1, SHARD_BYTES // (per_chunk * row))


def regroup(blocks: Iterable[Array], *, row_count: Any) -> Iterator[tuple[int, Array]]:
    """(start row, rows) in groups of exactly `row_count(row shape, dtype)` rows, the last one shorter."""
    start, held, pending = 0, 0, []
    size = 0
    for block in blocks:
        size = size or row_count(block.shape[1:], block.dtype)
        while len(block):
            take, block = block[: size - held], block[size - held :]
            pending.append(take)
            held += len(take)
            if held == size:
                yield start, pending[0] if len(pending) == 1 else np.concatenate(pending)
                start, held, pending = start + held, 0, []
    if pending:
        yield start, np.concatenate(pending)


def _shard_keys(array: Any) -> Iterator[str]:
    """Files that a whole array consists of, relative to its folder."""
    grid = [-(-length // shard) for length, shard in zip(array.shape, array.shards or array.chunks, strict=True)]
    for index in np.ndindex(*grid):
        yield "/".join(["c", *map(str, index)])


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back."""
    return json.loads(json.dumps(value))


# --- checkpoints ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint as arrays: backbone weights, optimizer state, and what is needed to rebuild the backbone."""

    weights: dict[str, Array]
    optimizer: dict[str, Array]
    description: dict[str, Any]


def write_checkpoint(target: Path, files: CheckpointFiles, provenance: Provenance) -> None:
    """Publish the folder model.safetensors, optimizer.safetensors, checkpoint.json (with the sha256 of both)."""
    from safetensors.numpy import save

    with publishing(target) as partial:
        partial.mkdir()
        contents = {"model.safetensors": save(files.weights), "optimizer.safetensors": save(files.optimizer)}
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        description = provenance.attributes("checkpoint") | _plain(files.description)
        description["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        (partial / "checkpoint.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(path: Path, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> CheckpointFiles:
    """The checkpoint at `path`, its checksums verified; the same refusals as `open_store`. Nothing loaded can run code."""
    if not path.exists():
        raise ArtifactError(f"{path}: not found; run `dvc repro {made_by}`")
    try:
        description = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        digests = description["sha256"]
        weights, optimizer = (
            _read_safetensors(path / name, digests[name]) for name in ("model.safetensors", "optimizer.safetensors")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    _expect(path, "schema", "checkpoint", description.get("schema"), made_by)
    _expect(path, "version", SCHEMA_VERSION, description.get("version"), made_by)
    if ids is not None and description.get("ids") != ids:
        raise ArtifactError(f"{path}: belongs to another data set or sample order; run `dvc repro {made_by}`")
    if epoch is not None:
        _expect(path, "epoch", epoch, description.get("epoch"), made_by)
    return CheckpointFiles(weights, optimizer, description)


def read_weights(path: Path) -> dict[str, Array]:
    """The tensors of a .safetensors file that the user names (`model.weights`)."""
    if not path.is_file():
        raise ArtifactError(f"{path}: not found (model.weights in params.yaml)")
    return _read_safetensors(path, None)


def _read_safetensors(path: Path, digest: str | None) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, "checksum differs")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
