"""Bundles on disk: safetensors files and a JSON description with their checksums; nothing loaded can run code."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.artifacts.provenance import digest_of, plain
from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.shards import Array
from deepcluster.errors import ArtifactError, UserError
from deepcluster.faults import of_the_machine

FORMAT, VERSION = "deepcluster bundle", 1
ABOUT, README = "bundle.json", "README.txt"
TENSORS = ("backbone", "reduction", "clusters")
OWN_FILES = {ABOUT, README, *(f"{name}.safetensors" for name in TENSORS)}


@dataclass(frozen=True)
class BundleFiles:
    """A bundle as arrays, by the file of `TENSORS` that they lie in (no arrays, no file), and its description."""

    tensors: Mapping[str, Mapping[str, Array]]
    about: Mapping[str, Any]


def refuse_bundle_target(target: Path, *, force: bool) -> None:
    """UserError unless a bundle may be written there: to nothing, to an empty folder, with `force` over a bundle.

    A folder that holds anything else is never replaced, whatever is asked for.
    """
    if not os.path.isdir(target.parent):
        raise UserError(f"--out: {target.parent}: no such folder")
    if os.path.exists(target) and not target.is_dir():
        raise UserError(f"--out: {target} is a file; name a folder")
    if Path.cwd().is_relative_to(target.resolve()):
        raise UserError(f"--out: {target} is the current folder, or holds it; name a new folder")
    found = sorted(os.listdir(target)) if os.path.isdir(target) else []
    if strange := [name for name in found if name not in OWN_FILES]:
        raise UserError(f"--out: {target} holds what is no part of a bundle, such as {strange[0]!r}; name a new folder")
    if found and ABOUT not in found:
        raise UserError(f"--out: {target} is not empty and no bundle; name a new folder")
    if found and not force:
        raise UserError(f"--out: {target} exists; --force replaces it")


def write_bundle_files(target: Path, files: BundleFiles, readme: str) -> None:
    """Publish the folder in one step; its place is taken as it is, so ask `refuse_bundle_target` first."""
    from safetensors.numpy import save

    contents = {
        # safetensors writes the memory of an array as it lies, a reversed or transposed one wrongly
        f"{name}.safetensors": save({key: np.asarray(array, order="C") for key, array in arrays.items()})
        for name, arrays in files.tensors.items()
        if arrays
    }
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION} | plain(dict(files.about))
    about["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    about["digest"] = digest_of(about)
    with publishing(target) as partial:
        partial.mkdir()
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        (partial / README).write_text(readme, encoding="utf-8", newline="\n")
        (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_bundle_files(path: Path) -> BundleFiles:
    """The bundle at `path`, all checksums verified; ArtifactError if it is none, damaged or of another version.

    Links inside it are not followed out of it; the folder itself may be a link.
    """
    if not os.path.isdir(path):
        raise ArtifactError(f"{path}: no such bundle; `deepcluster bundle` writes one, in a project's folder")
    for name in sorted(OWN_FILES):
        _refuse_elsewhere(path, name)
    if not (path / ABOUT).is_file():
        raise ArtifactError(f"{path}: not a bundle (it has no {ABOUT}); `deepcluster bundle` writes one")
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ArtifactError(f"{path}: not a bundle of deepcluster: its format is {about['format']!r}")
        _refuse_version(path, about)
        if about["digest"] != digest_of(about):
            raise damaged_bundle(path / ABOUT, "altered")
        digests = about["sha256"]
        tensors = {
            name: _tensors(path / file, digests[file]) if (file := f"{name}.safetensors") in digests else {}
            for name in TENSORS
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if of_the_machine(error):
            raise
        raise damaged_bundle(path, str(error) or type(error).__name__) from error
    return BundleFiles(tensors, about)


def damaged_bundle(path: Path, reason: str) -> ArtifactError:
    """The error of a bundle that does not read back as it was written."""
    return ArtifactError(f"{path}: damaged ({' '.join(reason.split())}); copy it again, or write it again")


def _refuse_elsewhere(path: Path, name: str) -> None:
    """ArtifactError for a link that leads out of the bundle, and for what is no file, such as a device."""
    place = path / name
    if not place.resolve().is_relative_to(path.resolve()):
        raise ArtifactError(
            f"{place}: a link that leads out of the bundle, not followed; copy the bundle with `cp -rL` if you trust it"
        )
    if place.exists() and not place.is_file():
        raise damaged_bundle(place, "not a file")


def _refuse_version(path: Path, about: Mapping[str, Any]) -> None:
    if about["version"] != VERSION:
        raise ArtifactError(
            f"{path}: version: expected {VERSION}, got {about['version']!r}; write it again with `deepcluster bundle` "
            "of this version, in the project that it comes from"
        )


def _tensors(path: Path, digest: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise damaged_bundle(path, "checksum differs")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise damaged_bundle(path, str(error)) from error
