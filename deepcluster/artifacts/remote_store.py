"""Zarr stores behind a URL: shards are read whole, two at a time, and decoded from memory.

Only the order of the bytes' arrival differs from a store on the disk: the same checks, the same blocks, the same rows.
That another store has taken the place of this one is seen by what an upload takes away first: see `Stamp`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.artifacts.provenance import digest_of
from deepcluster.artifacts.refusals import refuse_foreign, refuse_other, replaced
from deepcluster.artifacts.remote import RECEIPT, Remote, ahead, elsewhere
from deepcluster.artifacts.shards import METADATA, Array, joined, regroup
from deepcluster.artifacts.store import Store, bounds
from deepcluster.errors import ArtifactError, UserError
from deepcluster.faults import of_the_machine

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True)
class Stamp:
    """What tells a store behind a URL from another one that later lies in its place."""

    receipt: bytes | None
    description: bytes | None

    @classmethod
    def of(cls, remote: Remote) -> "Stamp":
        """In the order in which an upload takes them away."""
        return cls(remote.read_or_none(f"{METADATA}{RECEIPT}"), remote.read_or_none(METADATA))


@dataclass(frozen=True)
class RemoteRows:
    """Rows of an array behind a URL. `files`: by name in the store, what its attributes say of each file."""

    remote: Remote
    name: str
    description: bytes
    files: Mapping[str, Any]
    array: Any = field(repr=False)
    stamp: Stamp = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def chunk_rows(self) -> int:
        return int(self.array.chunks[0])

    @property
    def shard_rows(self) -> int:
        return int(self.array.shards[0])

    def read(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop`: the shards that they lie in."""
        rows = np.empty((stop - start, *self.shape[1:]), self.array.dtype)
        shards = range(start // self.shard_rows, -(-stop // self.shard_rows)) if stop > start else range(0)
        for shard, content in zip(shards, ahead(self.shard, shards), strict=True):
            first = shard * self.shard_rows
            wanted = content[max(0, start - first) : stop - first]
            begin = max(0, first - start)
            rows[begin : begin + len(wanted)] = wanted
        return rows

    def blocks(self, first: int, last: int, step: int) -> Iterator[Array]:
        """Rows `first` to `last`, `step` at a time; each shard is fetched once, the next while one is used."""
        start = first // self.shard_rows
        numbers = range(start, -(-last // self.shard_rows))
        wanted = (
            rows[max(0, first - number * self.shard_rows) : last - number * self.shard_rows]
            for number, rows in zip(numbers, ahead(self.shard, numbers), strict=True)
        )
        for _, pieces in regroup(wanted, step):
            yield joined(pieces)

    def shard(self, number: int) -> Array:
        """Fetched, its size and its chunks' checksums verified, decoded; ArtifactError if the store was replaced."""
        try:
            rows = self._shard(number)
        except ArtifactError:
            self._refuse_replaced()
            raise
        self._refuse_replaced()
        return rows

    def _refuse_replaced(self) -> None:
        if Stamp.of(self.remote) != self.stamp:
            raise replaced(self.remote.url, by="an upload")

    def _shard(self, number: int) -> Array:
        place = "/".join([self.name, "c", str(number), *["0"] * (len(self.shape) - 1)])
        expected = self.files.get(place)
        if not isinstance(expected, int):
            raise damaged_remote(self.remote, place, "not among its files")
        try:
            content = self.remote.read(place, size=expected)
        except FileNotFoundError:
            raise damaged_remote(self.remote, place, "missing") from None
        if len(content) != expected:
            raise damaged_remote(self.remote, place, f"{len(content):,} bytes of {expected:,}")
        with reading_remote(self.remote, place):
            array = _opened({METADATA: self.description, place.partition("/")[2]: content}, kind="array")
            start = number * self.shard_rows
            return np.asarray(array[start : start + self.shard_rows])


@dataclass(frozen=True)
class RemoteStore(Store):
    """A store behind a URL; `path` is where it would lie in the project. `descriptions`: zarr.json of each array."""

    remote: Remote
    descriptions: Mapping[str, bytes]
    stamp: Stamp

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        """As of a store on the disk."""
        found = self._rows(name)
        return found.read(*bounds(rows, found.shape[0]))

    def blocks(
        self, name: str, row_count: int = 8192, *, first: int = 0, last: int | None = None, workers: int = 0
    ) -> Iterator[Array]:
        """As of a store on the disk; `workers` makes no difference."""
        found = self._rows(name)
        stop = found.shape[0] if last is None else last
        step = max(1, row_count // found.chunk_rows) * found.chunk_rows
        return found.blocks(first - first % found.chunk_rows, stop, step) if first < stop else iter(())

    def version(self, array: str) -> object:
        return self.attributes["digest"], self.remote.url, self.stamp

    def check(self, name: str) -> None:
        """ArtifactError unless there is such an array; its metadata were compared when they were fetched."""
        if name not in self.descriptions:
            raise damaged_remote(self.remote, name, "it has no such array")

    def _rows(self, name: str) -> RemoteRows:
        self.check(name)
        description = self.descriptions[name]
        with reading_remote(self.remote, name):
            refuse_foreign(f"{self.remote.url}/{name}", description)
            array = self.group[name]
        return RemoteRows(self.remote, name, description, self.attributes["files"], array, self.stamp)


def receipt(path: Path) -> str | None:
    """Which content DEEPCLUSTER_STORE has of an artifact, a digest; None if that is not known.

    path: of a store, or of the description of a checkpoint.
    """
    remote, description = elsewhere(path.parent), f"{path.name}/{METADATA}" if path.suffix == ".zarr" else path.name
    found = None if remote is None else remote.read_or_none(f"{description}{RECEIPT}")
    return None if found is None else hashlib.sha256(found).hexdigest()


def open_remote(
    remote: Remote, path: Path, schema: str, *, made_by: str, ids: str | None, epoch: int | None
) -> RemoteStore | None:
    """The store behind a URL, refused as one on the disk is; None if there is none."""
    if remote.read_or_none(METADATA) is None:
        return None
    stamp = Stamp.of(remote)
    if stamp.description is None:  # an upload began just now
        return None
    attributes, group, descriptions = _parts(remote, stamp.description)
    if attributes.get("digest") != digest_of(attributes):
        raise damaged_remote(remote, METADATA, "attributes altered")
    refuse_other(remote.url, attributes, schema, made_by, ids, epoch)
    return RemoteStore(path, attributes, group, stamp, remote, descriptions)


def _parts(remote: Remote, root: bytes) -> "tuple[dict[str, Any], zarr.Group, Mapping[str, bytes]]":
    """The attributes, the group, and the arrays' descriptions by their names."""
    with reading_remote(remote, METADATA):
        files: Mapping[str, Any] = json.loads(root)["attributes"]["files"]
        names = [name for name in files if name.endswith(f"/{METADATA}")]
        contents = dict(zip(names, ahead(lambda name: _verified(remote, name, files[name]), names), strict=True))
        group = _opened({METADATA: root, **contents}, kind="group")
        descriptions = {name.removesuffix(f"/{METADATA}"): content for name, content in contents.items()}
        return dict(group.attrs), group, descriptions


@contextmanager
def reading_remote(remote: Remote, name: str) -> Iterator[None]:
    """As `provenance.reading`, of a file behind a URL."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zarr raises whatever its codecs raise
        if of_the_machine(error):
            raise
        raise damaged_remote(remote, name, str(error) or type(error).__name__) from error


def damaged_remote(remote: Remote, name: str, reason: str) -> ArtifactError:
    """The error of a remote artifact that does not read back as it was written."""
    reason = " ".join(reason.split())
    return ArtifactError(f"{remote.url}/{name}: damaged ({reason}); `deepcluster upload --force` it again where it is")


def _verified(remote: Remote, name: str, expected: object) -> bytes:
    try:
        content = remote.read(name)
    except FileNotFoundError:
        raise damaged_remote(remote, name, "missing") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise damaged_remote(remote, name, "altered")
    return content


def _opened(contents: Mapping[str, bytes], *, kind: str) -> Any:
    """A zarr group or array whose files are these."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    made = default_buffer_prototype().buffer.from_bytes
    store = MemoryStore({name: made(content) for name, content in contents.items()}, read_only=True)
    if kind == "group":
        # not consolidated: what each array's own zarr.json says is what is checked
        return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
    return zarr.open_array(store, mode="r", zarr_format=3)
