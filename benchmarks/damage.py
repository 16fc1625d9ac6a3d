"""Files of a finished run damaged in every way, and what this project's own readers then say.

`read` reads an artifact as the stages and commands do; `outcome` tells whether a damage was found, did no harm (the
values read are the same), or was missed. The current folder is the project's.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deepcluster import artifacts, layout
from deepcluster.errors import UserError

Outcome = Literal["detected", "harmless", "missed"]
Kind = Literal["bit flipped", "cut short", "emptied", "deleted"]
KINDS: tuple[Kind, ...] = ("bit flipped", "cut short", "emptied", "deleted")
SCHEMAS = {
    "images.zarr": "images",
    "targets.zarr": "targets",
    "test.zarr": "test_images",
    "test_targets.zarr": "targets",
    "features.zarr": "features",
    "pca.zarr": "pca",
    "clusters.zarr": "clusters",
    "map.zarr": "map",
    "lineage.zarr": "lineage",
}
NO_READER = {"steps.csv", "scores.json", "clusters.csv", "report.html"}
"""Read by people, DVC and other programs only: here `deepcluster check` is what finds damage."""


@dataclass(frozen=True)
class Damage:
    """A file, what was done to it, and what came of it; message: the error's."""

    file: Path
    kind: Kind
    outcome: Outcome
    message: str = ""


def artifacts_there() -> list[Path]:
    """Every artifact of the current folder's run, and a bundle if there is one."""
    stores = sorted(layout.DATA.rglob("*.zarr"))
    checkpoints = sorted(layout.EPOCHS.glob("*/checkpoint"))
    texts = sorted([*layout.HISTORY.glob("*/*"), *layout.EVALUATION.glob("*"), layout.REPORT])
    bundle = [path.parent for folder in (Path(), layout.DATA) for path in sorted(folder.glob("*/bundle.json"))]
    return [*stores, *checkpoints, *(path for path in texts if path.is_file() and path.name != ".gitignore"), *bundle]


def files_of(artifact: Path) -> list[Path]:
    return [artifact] if artifact.is_file() else sorted(path for path in artifact.rglob("*") if path.is_file())


def read(artifact: Path) -> Any:
    """All values of the artifact, through the reader that stages and commands use. LookupError if there is none."""
    from deepcluster.evaluation import epochs, lineage, tables
    from deepcluster.using.bundle import read_bundle

    if artifact.suffix == ".zarr":
        schema = "final_clusters" if artifact == layout.EVALUATION / "clusters.zarr" else SCHEMAS[artifact.name]
        store = artifacts.open_store(artifact, schema, made_by="x")
        names = sorted({name.partition("/")[0] for name in store.attributes["files"]})
        return dict(store.attributes), {name: store.read(name) for name in names}
    if artifact.is_dir() and artifact.name != "checkpoint":
        found = read_bundle(artifact)
        return found.about, vars(found.clusters), dict(found.backbone.state_dict())
    match artifact.name:
        case "checkpoint":
            files = artifacts.read_checkpoint(artifact, made_by="x")
            return files.description, files.weights, files.optimizer, files.heads, artifacts.read_bank(artifact)
        case "train.json":
            return artifacts.read_json(artifact, made_by="x")
        case "metrics.json":
            return tables.read_metrics(), tables.read_table("epochs.csv", epochs.from_csv)
        case "epochs.csv":
            return tables.read_table("epochs.csv", epochs.from_csv)
        case "lineage.csv":
            return lineage.read_lineage()
        case name:
            raise LookupError(name)


def fingerprint(value: Any) -> str:
    """sha256 over values of any nesting: equal for equal types, shapes and bits."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for name in part:
                digest.update(f"key {name}\n".encode())
                add(part[name])
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)} in a row\n".encode())
            for each in part:
                add(each)
        elif part is None or isinstance(part, str | int | float | bool):
            digest.update(f"{json.dumps(part)}\n".encode())
        else:
            array = np.asarray(part)
            digest.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())

    add(value)
    return digest.hexdigest()


@contextmanager
def damaged(file: Path, kind: Kind, rng: np.random.Generator) -> Iterator[None]:
    """The file damaged in the block: same times, and after a flip same size, so that nothing but bytes tells."""
    content, found = file.read_bytes(), file.stat()
    os.chmod(file, 0o644)
    if kind == "deleted" or (kind == "bit flipped" and not content):
        file.unlink()
    else:
        file.write_bytes(_changed(content, kind, rng))
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    try:
        yield
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def _changed(content: bytes, kind: Kind, rng: np.random.Generator) -> bytes:
    if kind == "bit flipped":
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    return b"" if kind == "emptied" else content[: int(rng.integers(len(content))) if content else 0]


def outcome(artifact: Path, file: Path, kind: Kind, before: str, rng: np.random.Generator) -> Damage:
    """What a damage to `file` of `artifact` comes to, whose values had the fingerprint `before`."""
    with damaged(file, kind, rng):
        try:
            same = fingerprint(read(artifact)) == before
        except UserError as error:
            return Damage(file, kind, "detected", str(error))
    return Damage(file, kind, "harmless" if same else "missed")


def checked(artifact: Path, file: Path, kind: Kind, rng: np.random.Generator) -> Damage:
    """The same for what no reader of ours reads: by `deepcluster check`, which compares with the saved hash."""
    from deepcluster.integrity import Item, is_whole
    from deepcluster.origins import dvc_md5

    saved = dvc_md5(artifact)
    with damaged(file, kind, rng):
        whole = artifact.exists() and is_whole(Item(artifact, saved, in_cache=False))
    return Damage(file, kind, "missed" if whole else "detected", "by deepcluster check")


def sampled(count: int, *, seed: int, kinds: tuple[Kind, ...] = ("bit flipped",)) -> Iterator[Damage]:
    """`count` damages, spread evenly over artifacts and then over their files, each of a kind drawn from `kinds`."""
    rng, places = np.random.default_rng(seed), artifacts_there()
    before = {place: fingerprint(read(place)) for place in places if place.name not in NO_READER}
    for number in range(count):
        place = places[number % len(places)]
        files = files_of(place)
        file = files[(number // len(places)) % len(files)]
        kind = kinds[number % len(kinds)]
        if place in before:
            yield outcome(place, file, kind, before[place], rng)
        else:
            yield checked(place, file, kind, rng)


def counts(found: list[Damage]) -> dict[str, int]:
    tally = Counter(damage.outcome for damage in found)
    return {"tried": len(found), **{name: tally[name] for name in ("detected", "harmless", "missed")}}
