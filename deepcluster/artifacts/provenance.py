"""What every artifact says of its origin, and what is refused because of it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepcluster import __version__, layout
from deepcluster.errors import ArtifactError, UserError
from deepcluster.faults import of_the_machine

# checkpoint 2: optimizer state by weights' names; Sobel's grey image is the mean of R, G and B. 3: its own digest.
VERSIONS = {"checkpoint": 3}
MENDED = "delete it and run `dvc checkout` or `dvc repro`; if it comes back damaged, `deepcluster check --repair` first"
RECORDED_PACKAGES = ("numpy", "zarr", "torch", "faiss-gpu", "scipy", "scikit-learn", "pytorch-metric-learning")


def ids_hash(sample_ids: Iterable[str]) -> str:
    """sha256 (hex) over the sample ids in order; equal only for the same samples in the same order."""
    digest = hashlib.sha256()
    for sample in sample_ids:
        encoded = sample.encode(errors="surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


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
        found: dict[str, Any] = {
            "schema": schema,
            "version": version_of(schema),
            "samples": self.samples,
            "ids": self.ids,
        }
        if self.epoch is not None:
            found["epoch"] = self.epoch
        if self.seed is not None:
            found["seed"] = self.seed
        return found | {"params": plain(self.params or {}), "packages": packages}


def version_of(schema: str) -> int:
    """The version of an artifact's layout that this code reads and writes."""
    return VERSIONS.get(schema, 1)


def damaged(path: Path, reason: str) -> ArtifactError:
    """The error of an artifact that does not read back as it was written."""
    reason = " ".join(reason.split())
    return ArtifactError(f"{path}: damaged ({reason}); {MENDED}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever fails in the block means that `path` is damaged, unless the machine refused memory, files or access."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zarr raises whatever its codecs raise
        if of_the_machine(error):
            raise
        raise damaged(path, str(error) or type(error).__name__) from error


def missing(path: Path | str, made_by: str) -> ArtifactError:
    """The error of an artifact that is not there. Before the first run the remedy is that, not a single stage."""
    remedy = f"dvc repro {made_by}" if layout.IMAGES.exists() else "deepcluster run"
    return ArtifactError(f"{path}: not found; run `{remedy}`")


def digest_of(attributes: Mapping[str, Any]) -> str:
    """sha256 (hex) over what JSON keeps of the attributes, without the digest itself."""
    rest = {name: value for name, value in attributes.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def expect(path: Path | str, key: str, expected: object, found: object, made_by: str) -> None:
    """ArtifactError unless `found` is what was expected under `key`."""
    if found != expected:
        raise ArtifactError(f"{path}: {key}: expected {expected!r}, got {found!r}; run `dvc repro {made_by}`")


def expect_version(path: Path | str, schema: str, attributes: Mapping[str, Any], made_by: str) -> None:
    """ArtifactError unless the artifact's layout is the one that this code reads; there is none to migrate."""
    known, found = version_of(schema), attributes.get("version")
    if found != known:
        writer = dict(attributes.get("packages") or {}).get("deepcluster", "unknown")
        raise ArtifactError(
            f"{path}: version: expected {known}, got {found!r} (written by deepcluster {writer}); make it anew with "
            f"`dvc repro -f {made_by}`, or read it with the code that wrote it"
        )


def plain(value: Any) -> Any:
    """`value` as JSON would give it back."""
    return json.loads(json.dumps(value))
