"""Backbone, heads and optimizers to and from a checkpoint's arrays."""

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
from deepcluster.models.heads import Heads, load_heads
from deepcluster.models.projector import Projector
from deepcluster.params import Arch

WEIGHTS, OPTIMIZER = "weights.", "optimizer."  # in heads.safetensors


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
class OptimizerState:
    """Tensors by "weight's name.name" (momentum, moments), and the name of the class that they are of."""

    tensors: dict[str, artifacts.Array]
    name: str | None


@dataclass(frozen=True)
class Checkpoint:
    """A backbone with its weights, what was kept of the heads, and the states of both optimizers.

    Optimizer states are empty before training and where nothing was kept; so are `heads` (weights by name) and
    `average` (weights of the backbone, averaged over steps, by name).
    projector: of DeepCluster-v2, with its weights, which are not among `heads`; None of DeepCluster.
    digest: sha256 over all that checkpoint.json says.
    """

    path: Path
    description: BackboneDescription
    backbone: Backbone
    optimizer: OptimizerState
    heads: dict[str, artifacts.Array]
    head_optimizer: OptimizerState
    average: dict[str, artifacts.Array]
    projector: Projector | None = None
    digest: str = ""


def save_checkpoint(
    target: Path,
    description: BackboneDescription,
    backbone: Backbone,
    provenance: artifacts.Provenance,
    optimizer: torch.optim.Optimizer | None = None,
    kept: dict[str, torch.Tensor] | None = None,
    head_optimizer: OptimizerState | None = None,
    average: nn.Module | None = None,
    projector: Projector | None = None,
    bank_NP: artifacts.Array | None = None,
) -> None:
    """Publish a checkpoint folder; see `artifacts.write_checkpoint`.

    kept: the heads' weights to go on with. average: a backbone with the averaged weights. DeepCluster-v2 gives a
    projector in their place, and after training the bank.
    """
    own = optimizer_state(optimizer, backbone)
    kept = projector.state_dict() if projector else kept
    weights = {f"{WEIGHTS}{name}": array for name, array in _arrays(kept or {}).items()}
    state = {f"{OPTIMIZER}{name}": array for name, array in (head_optimizer.tensors if head_optimizer else {}).items()}
    files = artifacts.CheckpointFiles(
        weights=weights_of(backbone),
        optimizer=own.tensors,
        heads=weights | state,
        average={} if average is None else weights_of(average),
        bank=bank_NP,
        description={
            "backbone": vars(description),
            "feature_dim": backbone.feature_dim,
            "optimizer": own.name,
        }
        | ({"head_optimizer": head_optimizer.name} if head_optimizer else {})
        | ({"projector": {"hidden": projector.hidden, "outputs": projector.outputs}} if projector else {}),
    )
    artifacts.write_checkpoint(target, files, provenance)


def load_checkpoint(path: Path, *, made_by: str, ids: str | None, epoch: int, to_train: bool = False) -> Checkpoint:
    """The checkpoint at `path`; ArtifactError if it is missing, damaged or belongs elsewhere.

    Its backbone has the averaged weights, where there are any; `to_train`, those that training goes on with.
    """
    files = artifacts.read_checkpoint(path, made_by=made_by, ids=ids, epoch=epoch)
    try:
        description = BackboneDescription(**files.description["backbone"])
        backbone = description.build()
    except (KeyError, TypeError) as error:
        raise artifacts.damaged(path, f"description: {error}") from error
    load_weights(backbone, files.weights if to_train or not files.average else files.average, path)
    heads, projector = _named(files.heads, WEIGHTS), None
    if sizes := files.description.get("projector"):
        projector = Projector(backbone.feature_dim, **sizes)
        load_weights(projector, heads, path, what="this projector")
    return Checkpoint(
        path,
        description,
        backbone,
        OptimizerState(files.optimizer, files.description.get("optimizer")),
        {} if projector else heads,
        OptimizerState(_named(files.heads, OPTIMIZER), files.description.get("head_optimizer")),
        files.average,
        projector,
        str(files.description["digest"]),
    )


def weights_of(backbone: nn.Module) -> dict[str, artifacts.Array]:
    """The state dict as arrays, what `load_weights` takes."""
    return _arrays(backbone.state_dict())


def load_weights(
    module: nn.Module, weights: dict[str, artifacts.Array], source: Path, *, what: str = "this backbone"
) -> None:
    """Put `weights` into a backbone or a projector; ArtifactError naming the tensors that do not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: array.shape for name, array in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        shapes = f"expected {expected.get(name, 'nothing')}, got {found.get(name, 'nothing')}"
        raise ArtifactError(f"{source}: not weights of {what}: {len(wrong)} tensors differ, first {name}: {shapes}")
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})


def optimizer_state(optimizer: torch.optim.Optimizer | None, module: nn.Module) -> OptimizerState:
    """What the next epoch goes on with of an optimizer over weights of `module`."""
    if optimizer is None:
        return OptimizerState({}, None)
    tensors = {
        f"{name}.{key}": value
        for name, weight in _trained(optimizer, module).items()
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, torch.Tensor)
    }
    return OptimizerState(_arrays(tensors), type(optimizer).__name__)


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, saved: OptimizerState, source: Path) -> None:
    """Give the optimizer the state (momentum, moments) of the epoch before, unless it is of another kind or the first.

    Settings such as the learning rate are the optimizer's own. ArtifactError where the state is of other weights of
    `module` than this optimizer's: torch would take it, and its fused optimizers would read beyond its end.
    """
    if saved.name != type(optimizer).__name__ or not saved.tensors:
        return
    weights = _trained(optimizer, module)
    state: dict[str, dict[str, Any]] = {name: {} for name in weights}
    for name, array in saved.tensors.items():
        owner, _, key = name.rpartition(".")
        state.setdefault(owner, {})[key] = torch.from_numpy(array.copy())
    for name, values in state.items():
        shapes = {tuple(value.shape) for value in values.values() if value.ndim}
        if name not in weights or not values or shapes - {tuple(weights[name].shape)}:
            raise ArtifactError(
                f"{source}: optimizer state of other weights than are trained here, such as {name}; "
                "make it with the same settings (`dvc repro` does)"
            )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(enumerate(state[name] for name in weights)), "param_groups": groups})


def _trained(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, nn.Parameter]:
    """The optimizer's weights by their names in `module`, in the optimizer's order."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    return {names[id(weight)]: weight for group in optimizer.param_groups for weight in group["params"]}


def kept_weights(heads: Heads, *, classifier: bool) -> dict[str, torch.Tensor]:
    """What the next epoch goes on with: the projection, if there is one, and the classifier if asked for."""
    return {name: tensor for name, tensor in heads.state_dict().items() if classifier or name.startswith("projection.")}


def restore_heads(heads: Heads, checkpoint: Checkpoint, *, classifier: bool) -> None:
    """Load what `kept_weights` gave the epoch before. ArtifactError if it is not there, or was for other heads."""
    expected = kept_weights(heads, classifier=classifier)
    missing = sorted(expected.keys() - checkpoint.heads.keys())
    if missing:
        raise ArtifactError(
            f"{checkpoint.path}: holds no {missing[0]}, which train.head.reset and train.contrastive.projection go on "
            "with; make it with the same settings (`dvc repro` does)"
        )
    weights = {name: torch.from_numpy(checkpoint.heads[name].copy()) for name in expected}
    if wrong := load_heads(heads, weights):
        shapes = f"{tuple(expected[wrong[0]].shape)}, got {checkpoint.heads[wrong[0]].shape}"
        raise ArtifactError(f"{checkpoint.path}: heads of other settings: {wrong[0]}: expected {shapes}")


def _named(arrays: dict[str, artifacts.Array], prefix: str) -> dict[str, artifacts.Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, artifacts.Array]:
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in tensors.items()}
