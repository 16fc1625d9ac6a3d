"""Weights made elsewhere, for our backbones: torchvision's, the original DeepCluster's, or another run's.

How the original names the weights of its AlexNet and VGG16, and torchvision those of its models:

    original      features.module.N.*   classifier.N.*   top_layer.*, sobel.*   (dropped)
    torchvision   conv1.*, layer1.*, …, or features.N.*, classifier.N.*; fc.*, classifier.6.*   (dropped)
    ours          body., then torchvision's name; of AlexNet body.0.N.* and body.3.N.*

`module.`, which DataParallel puts in, may stand anywhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcluster import artifacts
from deepcluster.checkpoint import BackboneDescription
from deepcluster.errors import ArtifactError
from deepcluster.models.build import Backbone
from deepcluster.params import Arch

DROPPED = ("top_layer.", "sobel.", "fc.")
COUNTER = "num_batches_tracked"
SIZE_DEPENDENT = 2  # tensors of a backbone, at most, whose shape depends on the images' size


@dataclass(frozen=True)
class Foreign:
    """Tensors by the names that the file has for them, and what the file says of the backbone, if it does."""

    tensors: dict[str, Tensor]
    made_for: BackboneDescription | None = None
    arch: str | None = None


def read_foreign_weights(
    path: Path, description: BackboneDescription, backbone: Backbone
) -> dict[str, artifacts.Array]:
    """Weights for `load_weights`, with names and dtypes of the backbone's state dict; the head's are left out.

    `path` is a folder (one of our checkpoints), a safetensors file or a file that torch.save wrote. ArtifactError where
    that cannot be read, or is for another architecture, front end, number of channels or image size.
    """
    foreign = _read_checkpoint(path) if path.is_dir() else _read_file(path)
    _check_description(path, foreign, description)
    expected = backbone.state_dict()
    found = {_our_name(name, description.arch): tensor for name, tensor in _kept(foreign.tensors, description.arch)}
    found = {name: tensor for name, tensor in expected.items() if name.endswith(COUNTER)} | found
    sobel = any(name.startswith("sobel.") for name in foreign.tensors)
    _check_channels(path, expected, found, description, sobel=sobel)
    _check_image_size(path, expected, found, description, foreign.made_for)
    dtypes = {name: tensor.dtype for name, tensor in expected.items()}  # others are refused by name: any dtype will do
    return {name: _array(path, name, tensor, dtypes.get(name, torch.float32)) for name, tensor in found.items()}


def _read_checkpoint(folder: Path) -> Foreign:
    if not (folder / "checkpoint.json").is_file():
        raise ArtifactError(f"{folder}: not a checkpoint: there is no checkpoint.json (model.weights in params.yaml)")
    files = artifacts.read_checkpoint(folder, made_by="train")
    try:
        made_for = BackboneDescription(**files.description["backbone"])
    except (KeyError, TypeError) as error:
        raise artifacts.damaged(folder, f"description: {error}") from error
    weights = files.average or files.weights  # as everything else that uses a checkpoint takes them
    return Foreign({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, made_for)


def _read_file(path: Path) -> Foreign:
    file = artifacts.read_weight_file(path)
    content, arch = file.content, None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content, arch = content["state_dict"], content.get("arch")
    if not isinstance(content, dict) or not content or not all(map(_plain, content.values())):
        raise ArtifactError(f"{path}: holds no state dict, alone or under the key 'state_dict'")
    tensors = {_without_module(str(name)): tensor for name, tensor in content.items()}
    return Foreign(tensors, _described(file.metadata), arch if isinstance(arch, str) else None)


def _plain(value: Any) -> bool:
    """Whether it is a tensor with numbers of its own: not sparse, quantised or without storage."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _described(metadata: Any) -> BackboneDescription | None:
    """What `deepcluster export --format safetensors` wrote into the header; None of a file from elsewhere."""
    keys = ("arch", "channels", "image_size", "sobel", "grayscale")
    return BackboneDescription(*(metadata[key] for key in keys)) if all(key in metadata for key in keys) else None


def _without_module(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "module")


def _kept(tensors: dict[str, Tensor], arch: Arch) -> list[tuple[str, Tensor]]:
    """Without heads and fixed filters."""
    dropped = (*DROPPED, "classifier.6.") if arch == "vgg16" else DROPPED
    return [(name, tensor) for name, tensor in tensors.items() if not name.startswith(dropped)]


def _our_name(name: str, arch: Arch) -> str:
    if name.startswith("body."):
        return name
    part, _, rest = name.partition(".")
    if arch == "alexnet" and part in ("features", "classifier"):
        part = {"features": "0", "classifier": "3"}[part]
    return f"body.{part}.{rest}"


def _check_description(path: Path, foreign: Foreign, ours: BackboneDescription) -> None:
    """That the file, if it says what its backbone is, says ours."""
    theirs = foreign.made_for
    if theirs is not None and (_kind(theirs) != _kind(ours) or _greys(theirs) != _greys(ours)):
        raise ArtifactError(
            f"{path}: made for {_in_words(theirs)}, but this run has {_in_words(ours)}; "
            "set model.arch, model.sobel and model.grayscale alike"
        )
    if foreign.arch is not None and foreign.arch != ours.arch:
        raise ArtifactError(f"{path}: holds {foreign.arch!r}, but model.arch is {ours.arch!r}")


def _kind(description: BackboneDescription) -> tuple[str, bool, int]:
    return description.arch, description.sobel, description.body_channels


def _greys(description: BackboneDescription) -> str:
    """How Sobel filters get their grey image from colour; of images that are grey already it does not matter."""
    return "weighted" if description.sobel and description.grayscale and description.channels == 3 else "plain"


def _in_words(description: BackboneDescription) -> str:
    filters = "with" if description.sobel else "without"
    return f"{description.arch} on {description.body_channels} channel(s) {filters} Sobel filters"


def _check_channels(
    path: Path,
    expected: dict[str, Tensor],
    found: dict[str, Tensor],
    description: BackboneDescription,
    *,
    sobel: bool,
) -> None:
    """That the first convolution takes what the front end gives; `sobel`: the file holds Sobel filters."""
    first = next((name for name, tensor in expected.items() if tensor.ndim == 4), None)
    if first is None or first not in found or found[first].ndim != 4:
        return
    taken, given = found[first].shape[1], expected[first].shape[1]
    if (sobel or taken == 2) and not description.sobel:
        raise ArtifactError(f"{path}: trained on the two channels of Sobel filters: set model.sobel: true")
    if taken != 2 and description.sobel:
        raise ArtifactError(
            f"{path}: trained without Sobel filters (its first convolution takes {taken} channels): "
            "set model.sobel: false"
        )
    if taken != given:
        raise ArtifactError(
            f"{path}: its first convolution takes {taken} channels, but images enter with {given}: "
            "see data.grayscale and model.grayscale"
        )


def _check_image_size(
    path: Path,
    expected: dict[str, Tensor],
    found: dict[str, Tensor],
    description: BackboneDescription,
    made_for: BackboneDescription | None,
) -> None:
    """That nothing differs because of the images' size.

    That is taken for the reason in a file of ours that says it is for this architecture, and in any file whose names
    agree, and whose shapes do but in one or two layers.
    """
    ours, theirs = _shapes(expected), _shapes(found)
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    few = ours.keys() == theirs.keys() and len(differing) <= SIZE_DEPENDENT
    if not differing or not (made_for or few):
        return
    name = differing[0]
    size = f"images of {made_for.image_size} pixels" if made_for else "images of another size"
    suits = "" if made_for else " (torchvision's and the original's files suit more than 64, alexnet 223 and more)"
    shapes = f"expected {ours.get(name, 'nothing')}, got {theirs.get(name, 'nothing')}"
    raise ArtifactError(
        f"{path}: made for {size}, not of {description.image_size}{suits}: {name}: {shapes}; see data.image_size"
    )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _array(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> artifacts.Array:
    values = tensor.detach()
    if values.is_complex():
        raise ArtifactError(f"{path}: {name} holds complex numbers")
    if values.is_floating_point() and values.itemsize == 1:  # torch computes nothing in float8
        values = values.to(torch.float32)
    cast = values.resolve_neg().to(dtype)  # a file may hold what is negated only when it is read
    if not (values.isfinite().all() and cast.isfinite().all()):
        raise ArtifactError(f"{path}: {name} holds NaN or infinity")
    found: artifacts.Array = cast.contiguous().numpy()
    return found
