"""Why a store is not read, wherever it lies."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepcluster.artifacts.provenance import expect, expect_version
from deepcluster.errors import ArtifactError

# All that is written here. Zarr would look for any other among whatever packages are installed, and run that.
CODECS = frozenset({"sharding_indexed", "bytes", "zstd", "crc32c"})
NUMBERS = frozenset({"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}) | {
    "float16",
    "float32",
    "float64",
}


def refuse_other(
    named: Path | str, attributes: Mapping[str, Any], schema: str, made_by: str, ids: str | None, epoch: int | None
) -> None:
    """ArtifactError for a store of another kind, layout, data set or epoch."""
    expect(named, "schema", schema, attributes.get("schema"), made_by)
    expect_version(named, schema, attributes, made_by)
    if ids is not None and attributes.get("ids") != ids:
        raise ArtifactError(f"{named}: belongs to another data set or sample order; run `dvc repro {made_by}`")
    if epoch is not None:
        expect(named, "epoch", epoch, attributes.get("epoch"), made_by)


def replaced(named: Path | str, by: str = "a run that goes on") -> ArtifactError:
    """The error of a store in whose place another one lies since it was opened."""
    return ArtifactError(f"{named}: was replaced while it was read, by {by}; try again")


def refuse_foreign(named: Path | str, metadata: bytes) -> None:
    """ArtifactError unless an array with this zarr.json is of numbers, in codecs that are written here.

    ValueError, KeyError, TypeError or RecursionError if it is no zarr.json at all.
    """
    found = json.loads(metadata)
    kind, codecs = found["data_type"], list(_codec_names(found["codecs"]))
    if not isinstance(kind, str) or kind not in NUMBERS:
        raise ArtifactError(f"{named}: refused, as it holds {kind!r}, which is no number; it was not written here")
    if foreign := [codec for codec in codecs if codec not in CODECS]:
        raise ArtifactError(f"{named}: refused, as its codec {foreign[0]!r} could run code; it was not written here")


def _codec_names(codecs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Of all codecs, those inside a shard and of its index among them."""
    for codec in codecs:
        yield str(codec["name"])
        inner = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _codec_names(inner.get(key, ()))
