"""Backbone and optimizer to and from a checkpoint's arrays. Heads are new each epoch and are not kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deepcluster import artifacts
from deepcluster.errors import ArtifactError
from deepcluster.models.build import Backbone, build_backbone
from deepcluster.models.frontend import build_front_end
from deepcluster.params import Arch


@dataclass(frozen=True)
class BackboneDescription:
    """What rebuilds a backbone: architecture, front end, and the input that it was made for."""

    arch: Arch
    channels: int
    image_size: int
    sobel: bool
    grayscale: bool = False

    def build(self) -> Backbone:
        """A freshly initialised backbone; draws from torch's global generator."""
        return build_backbone(
            self.arch,
            channels=self.channels,
            image_size=self.image_size,
            sobel=self.sobel,
            grayscale=self.grayscale,
        )

    @property
    def body_channels(self) -> int:
        """Channels that leave the front end and enter the trained part."""
        return build_front_end(channels=self.channels, sobel=self.sobel, grayscale=self.grayscale)[1]


@dataclass(frozen=True)
class Checkpoint:
    """A backbone with its weights, and the state that its optimizer had (empty before training)."""

    description: BackboneDescription
    backbone: Backbone
    optimizer: dict[str, artifacts.Array]
    optimizer_name: str | None


def save_checkpoint(
    target: Path,
    description: BackboneDescription,
    backbone: Backbone,
    provenance: artifacts.Provenance,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Publish a checkpoint folder; see `artifacts.write_checkpoint`."""
    files = artifacts.CheckpointFiles(
        weights=weights_of(backbone),
        optimizer=_arrays(_optimizer_tensors(optimizer)) if optimizer else {},
        description={
            "backbone": vars(description),
            "feature_dim": backbone.feature_dim,
            "optimizer": type(optimizer).__name__ if optimizer else None,
        },
    )
    artifacts.write_checkpoint(target, files, provenance)


def load_checkpoint(path: Path, *, made_by: str, ids: str | None, epoch: int) -> Checkpoint:
    """The checkpoint at `path`; ArtifactError if it is missing, damaged or belongs elsewhere."""
    files = artifacts.read_checkpoint(path, made_by=made_by, ids=ids, epoch=epoch)
    try:
        description = BackboneDescription(**files.description["backbone"])
        backbone = description.build()
    except (KeyError, TypeError) as error:
        raise artifacts.damaged(path, f"description: {error}") from error
    load_weights(backbone, files.weights, path)
    return Checkpoint(description, backbone, files.optimizer, files.description.get("optimizer"))


def weights_of(backbone: nn.Module) -> dict[str, artifacts.Array]:
    """The state dict as arrays, what `load_weights` takes."""
    return _arrays(backbone.state_dict())


def load_weights(backbone: nn.Module, weights: dict[str, artifacts.Array], source: Path) -> None:
    """Put `weights` into the backbone; ArtifactError naming the tensors that do not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    found = {name: array.shape for name, array in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        shapes = f"expected {expected.get(name, 'nothing')}, got {found.get(name, 'nothing')}"
        raise ArtifactError(
            f"{source}: not weights of this backbone: {len(wrong)} tensors differ, first {name}: {shapes}"
        )
    backbone.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Give the optimizer the state (momentum, moments) of the epoch before, unless it is of another kind or the first.

    Settings such as the learning rate are the optimizer's own.
    """
    if checkpoint.optimizer_name != type(optimizer).__name__:
        return
    state: dict[int, dict[str, Any]] = {}
    for name, array in checkpoint.optimizer.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = torch.from_numpy(array.copy())
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Tensors by `parameter index.name`."""
    state: dict[int, dict[str, torch.Tensor | None]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value
        for index, values in state.items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, artifacts.Array]:
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in tensors.items()}
