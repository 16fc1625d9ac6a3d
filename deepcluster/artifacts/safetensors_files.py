"""Checkpoints as safetensors files and a JSON description: nothing loaded can run code."""

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.artifacts.provenance import (
    Provenance,
    damaged,
    digest_of,
    expect,
    expect_version,
    missing,
    plain,
    reading,
)
from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.remote import Remote, elsewhere
from deepcluster.artifacts.remote_store import damaged_remote, reading_remote
from deepcluster.artifacts.shards import Array
from deepcluster.errors import ArtifactError

REQUIRED = ("model.safetensors", "optimizer.safetensors")
HEADS, BANK, AVERAGE = "heads.safetensors", "bank.safetensors", "average.safetensors"
DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint as arrays: backbone weights, optimizer state, and what is needed to rebuild the backbone.

    heads: what later epochs go on with of the heads; average: backbone weights averaged over steps. Most runs keep
    neither, and then there are no such files.
    bank: rows that the next epoch has for features, or None; not read with the rest, but by `read_bank`.
    """

    weights: dict[str, Array]
    optimizer: dict[str, Array]
    description: dict[str, Any]
    heads: dict[str, Array] = field(default_factory=dict)
    average: dict[str, Array] = field(default_factory=dict)
    bank: Array | None = None


def write_checkpoint(target: Path, files: CheckpointFiles, provenance: Provenance) -> None:
    """Publish the folder: each kind of arrays as .safetensors, and checkpoint.json with their sha256 and its digest."""
    with publishing(target) as partial:
        partial.mkdir()
        contents = {"model.safetensors": _saved(files.weights), "optimizer.safetensors": _saved(files.optimizer)}
        contents |= {name: _saved(found) for name, found in ((HEADS, files.heads), (AVERAGE, files.average)) if found}
        if files.bank is not None:
            contents[BANK] = _saved({"bank": files.bank})
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        description = provenance.attributes("checkpoint") | plain(files.description)
        description["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        description["digest"] = digest_of(description)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(path: Path, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> CheckpointFiles:
    """The checkpoint at `path`, or else in DEEPCLUSTER_STORE, its checksums verified; refuses as `open_store` does."""
    place = _place(path)
    if not _there(place):
        if place is path:
            raise missing(path, made_by)
        raise ArtifactError(f"{path}: not found, nor is there {_named(place)}; run `dvc repro {made_by}`")
    with _reading(place):
        description, digests = _description(place, made_by)
        weights, optimizer = (_read_safetensors(place, name, digests[name]) for name in REQUIRED)
        heads, average = (
            _read_safetensors(place, name, digests[name]) if name in digests else {} for name in (HEADS, AVERAGE)
        )
    named = _named(place)
    if ids is not None and description.get("ids") != ids:
        raise ArtifactError(f"{named}: belongs to another data set or sample order; run `dvc repro {made_by}`")
    if epoch is not None:
        expect(named, "epoch", epoch, description.get("epoch"), made_by)
    return CheckpointFiles(weights, optimizer, description, heads, average)


def read_bank(path: Path) -> Array | None:
    """The bank of the checkpoint at `path`, its checksum verified; None if it has none."""
    place = _place(path)
    with _reading(place):
        _, digests = _description(place, "train")
        return _read_safetensors(place, BANK, digests[BANK])["bank"] if BANK in digests else None


def check_files(path: Path) -> None:
    """ArtifactError unless the checkpoint at `path` has its description and the files that it tells of, unaltered."""
    with reading(path):
        for name, digest in _description(path, "train")[1].items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                raise damaged(path / name, "checksum differs")


def checkpoint_params(path: Path) -> dict[str, Any]:
    """The params that a checkpoint was made with, read alone; empty if it is missing, damaged or of another version."""
    try:
        return dict(_description(path, "train")[0]["params"])
    except (ArtifactError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _place(path: Path) -> Path | Remote:
    """The folder, or the one behind a URL where there is none."""
    return path if path.exists() else elsewhere(path) or path


def _there(place: Path | Remote) -> bool:
    return place.read_or_none(DESCRIPTION) is not None if isinstance(place, Remote) else place.exists()


def _named(place: Path | Remote) -> str:
    return place.url if isinstance(place, Remote) else str(place)


def _reading(place: Path | Remote) -> AbstractContextManager[None]:
    return reading_remote(place, DESCRIPTION) if isinstance(place, Remote) else reading(place)


def _damaged(place: Path | Remote, reason: str, name: str) -> ArtifactError:
    return damaged_remote(place, name, reason) if isinstance(place, Remote) else damaged(place / name, reason)


def _content(place: Path | Remote, name: str) -> bytes:
    return place.read(name) if isinstance(place, Remote) else (place / name).read_bytes()


def _description(place: Path | Remote, made_by: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What checkpoint.json says, its digest verified, and of that the checksums by file."""
    named, description = _named(place), dict(json.loads(_content(place, DESCRIPTION)))
    expect(named, "schema", "checkpoint", description.get("schema"), made_by)
    expect_version(named, "checkpoint", description, made_by)  # before the digest, which earlier versions lack
    if description.get("digest") != digest_of(description):
        raise _damaged(place, "altered", DESCRIPTION)
    return description, description["sha256"]


def _saved(arrays: dict[str, Array]) -> bytes:
    """A safetensors file of the arrays; that library writes memory as it lies, so they are laid out in order first."""
    from safetensors.numpy import save

    return save({name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()})


def _read_safetensors(place: Path | Remote, name: str, digest: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = _content(place, name)
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(place, "checksum differs", name)
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise _damaged(place, str(error), name) from error
