"""Files of weights that the user names or asks for: safetensors, and what torch.save wrote. Loading runs no code."""

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.shards import Array
from deepcluster.errors import ArtifactError
from deepcluster.faults import of_the_machine

if TYPE_CHECKING:
    import torch

NAMED_BY = "model.weights in params.yaml"
ZIP, PICKLE = b"PK", b"\x80"  # how files of torch.save begin: since torch 1.6, and before


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: of safetensors, tensors by name; of torch.save, anything made of tensors and plain values."""

    content: Any
    metadata: Mapping[str, Any]


def read_weight_file(path: Path) -> WeightFile:
    """The content of a safetensors file, or of one that torch.save wrote, on the CPU.

    ArtifactError if it is missing, neither of the two, damaged, or could run code when loaded.
    """
    start = _start(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith((ZIP, PICKLE)):
        return WeightFile(_read_torch(path), {})
    raise ArtifactError(
        f"{path}: not a file of weights; expected .safetensors, a file that torch.save wrote, or a checkpoint folder "
        f"({NAMED_BY})"
    )


def weights_sha256(path: Path) -> str | None:
    """sha256 (hex) of a file of weights, or of a checkpoint folder's description, which has those of its files.

    None if there is no such file.
    """
    file = path / "checkpoint.json" if path.is_dir() else path
    if not file.is_file():
        return None
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_weight_file(target: Path, tensors: dict[str, Array], metadata: Mapping[str, Any]) -> None:
    """Publish a safetensors file; metadata's values go into the header as they are if text, else as JSON."""
    from safetensors.numpy import save

    header = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    with publishing(target) as partial:
        partial.write_bytes(_in_fixed_order(save(tensors, metadata=header)))


def _in_fixed_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: safetensors writes them in another order each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _start(path: Path) -> bytes:
    """The first bytes of the file."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found ({NAMED_BY})") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror} ({NAMED_BY})") from None
    if not start:
        raise ArtifactError(f"{path}: empty ({NAMED_BY})")
    return start


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable itself
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        if of_the_machine(error):
            raise
        raise ArtifactError(f"{path}: damaged ({_one_line(error)})") from None
    return WeightFile(tensors, {name: _parsed(text) for name, text in header.items()})


def _read_torch(path: Path) -> "dict[str, torch.Tensor]":
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what it cannot read, it says
            return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except pickle.UnpicklingError as error:
        raise ArtifactError(_refusal(path, str(error))) from None
    except Exception as error:  # torch raises whatever its readers stumble over: KeyError, EOFError, RuntimeError, ...
        if of_the_machine(error):
            raise
        raise ArtifactError(f"{path}: damaged or cut short ({_one_line(error)})") from None


def _refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL (\S+)", message)
    holds = f"it names {named[1]}" if named else "it is a pickle of another kind than torch.save's"
    return (
        f"{path}: refused, since loading it could run code: {holds}. Only if you trust its origin, convert it with "
        f"`torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)` and name the new file"
    )


def _one_line(error: Exception) -> str:
    """The first sentence of an error, or its kind if it says nothing by itself."""
    text = " ".join(str(error).split()).partition(". ")[0]
    return text if " " in text else type(error).__name__


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
