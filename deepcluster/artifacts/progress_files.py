"""A stage's progress: arrays and what they belong to in one safetensors file, with a checksum over both.

Nothing loaded can run code.
"""

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.shards import Array
from deepcluster.errors import ArtifactError


def write_progress(target: Path, arrays: Mapping[str, Array], key: Mapping[str, str]) -> None:
    """Publish the file; a killed process leaves the old one or none. OSError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors writes the memory of an array as it lies, a transposed one wrongly
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    about = {"key": json.dumps(dict(key)), "digest": _digest(ordered, key)}
    with publishing(target) as partial:
        try:
            save_file(ordered, partial, metadata=about)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(errno.EIO, str(error), str(target)) from error


def read_progress(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """(arrays, key) as `write_progress` got them; ArtifactError if there is no such file, or not as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about: dict[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable itself
        key = json.loads(about["key"])
        if about["digest"] != _digest(arrays, key):
            raise ArtifactError(f"{path}: damaged (checksum differs)")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    return arrays, key


def _digest(arrays: Mapping[str, Array], key: Mapping[str, Any]) -> str:
    """sha256 over the key, and the arrays' names, types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
