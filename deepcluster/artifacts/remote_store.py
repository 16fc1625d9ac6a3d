"""Zarr stores behind a URL: shards are read whole, two at a time, and decoded from memory.

Only the order of the bytes' arrival differs from a store on the disk: the same checks, the same blocks, the same rows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcluster.artifacts.remote import Remote, ahead
from deepcluster.artifacts.shards import Array, joined, regroup
from deepcluster.errors import ArtifactError, UserError

if TYPE_CHECKING:
    import zarr

DESCRIPTION, RECEIPT = "zarr.json", ".sha256"  # the latter beside what `uploading` has sent


@dataclass(frozen=True)
class RemoteRows:
    """Rows of an array behind a URL. `files`: by name in the store, what its attributes say of each file."""

    remote: Remote
    name: str
    description: bytes
    files: Mapping[str, Any]
    array: Any = field(repr=False)

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

    def blocks(self, first: int, step: int) -> Iterator[Array]:
        """All rows from `first` on, `step` at a time; each shard is fetched once, the next while one is used."""
        start = first // self.shard_rows
        shards = ahead(self.shard, range(start, -(-self.shape[0] // self.shard_rows)))
        skipped = first - start * self.shard_rows
        for _, pieces in regroup((rows[skipped if not number else 0 :] for number, rows in enumerate(shards)), step):
            yield joined(pieces)

    def shard(self, number: int) -> Array:
        """Fetched, its size and its chunks' checksums verified, decoded."""
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
        try:
            array = _opened({DESCRIPTION: self.description, place.partition("/")[2]: content}, kind="array")
            start = number * self.shard_rows
            return np.asarray(array[start : start + self.shard_rows])
        except UserError:
            raise
        except Exception as error:  # zarr raises whatever its codecs raise
            raise damaged_remote(self.remote, place, str(error) or type(error).__name__) from error


def remote_group(remote: Remote) -> "tuple[zarr.Group, Mapping[str, bytes]] | None":
    """The group with its arrays' descriptions, and these by the arrays' names; None if there is no store."""
    root = remote.read_or_none(DESCRIPTION)
    if root is None:
        return None
    try:
        files: Mapping[str, Any] = json.loads(root)["attributes"]["files"]
        names = [name for name in files if name.endswith(f"/{DESCRIPTION}")]
        contents = dict(zip(names, ahead(lambda name: _verified(remote, name, files[name]), names), strict=True))
        group = _opened({DESCRIPTION: root, **contents}, kind="group")
    except UserError:
        raise
    except Exception as error:
        raise damaged_remote(remote, DESCRIPTION, str(error) or type(error).__name__) from error
    return group, {name.removesuffix(f"/{DESCRIPTION}"): content for name, content in contents.items()}


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
        return zarr.open_group(store, mode="r", zarr_format=3)
    return zarr.open_array(store, mode="r", zarr_format=3)
