"""Checkpoints as safetensors files and a JSON description: nothing loaded can run code."""

import hashlib
import json
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
    plain,
    reading,
)
from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.shards import Array
from deepcluster.errors import ArtifactError

HEADS, BANK, AVERAGE = "heads.safetensors", "bank.safetensors", "average.safetensors"


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
        (partial / "checkpoint.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(path: Path, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> CheckpointFiles:
    """The checkpoint at `path`, its checksums verified; the same refusals as `open_store`."""
    if not path.exists():
        raise ArtifactError(f"{path}: not found; run `dvc repro {made_by}`")
    with reading(path):
        description, digests = _description(path, made_by)
        weights, optimizer = (
            _read_safetensors(path / name, digests[name]) for name in ("model.safetensors", "optimizer.safetensors")
        )
        heads, average = (
            _read_safetensors(path / name, digests[name]) if name in digests else {} for name in (HEADS, AVERAGE)
        )
    if ids is not None and description.get("ids") != ids:
        raise ArtifactError(f"{path}: belongs to another data set or sample order; run `dvc repro {made_by}`")
    if epoch is not None:
        expect(path, "epoch", epoch, description.get("epoch"), made_by)
    return CheckpointFiles(weights, optimizer, description, heads, average)


def read_bank(path: Path) -> Array | None:
    """The bank of the checkpoint at `path`, its checksum verified; None if it has none."""
    with reading(path):
        _, digests = _description(path, "train")
        return _read_safetensors(path / BANK, digests[BANK])["bank"] if BANK in digests else None


def checkpoint_params(path: Path) -> dict[str, Any]:
    """The params that a checkpoint was made with, read alone; empty if it is missing, damaged or of another version."""
    try:
        return dict(_description(path, "train")[0]["params"])
    except (ArtifactError, OSError, ValueError, KeyError, TypeError):
        return {}


def _description(path: Path, made_by: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What checkpoint.json says, its digest verified, and of that the checksums by file."""
    description = dict(json.loads((path / "checkpoint.json").read_text(encoding="utf-8")))
    expect(path, "schema", "checkpoint", description.get("schema"), made_by)
    expect_version(path, "checkpoint", description, made_by)  # before the digest, which earlier versions lack
    if description.get("digest") != digest_of(description):
        raise damaged(path / "checkpoint.json", "altered")
    return description, description["sha256"]


def _saved(arrays: dict[str, Array]) -> bytes:
    """A safetensors file of the arrays; that library writes memory as it lies, so they are laid out in order first."""
    from safetensors.numpy import save

    return save({name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()})


def _read_safetensors(path: Path, digest: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, "checksum differs")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
