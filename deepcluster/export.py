"""`deepcluster export`: the backbone of one epoch as a file for other programs. Light to import: no torch."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from deepcluster import layout
from deepcluster.errors import UserError

if TYPE_CHECKING:
    from deepcluster.checkpoint import BackboneDescription, Checkpoint

Format = Literal["torchvision", "onnx", "safetensors"]


def export(epoch: int, format: Format, target: Path, *, force: bool = False) -> list[str]:
    """Publish the backbone of an epoch at `target`; what to print: what was written, and how to use it.

    UserError for an epoch that was not run, a target that exists (unless `force`) or has no folder, a format that the
    architecture does not have or that needs packages which are missing.
    """
    _check_epoch(epoch)
    _check_target(target, force=force)
    if format == "onnx":
        _check_onnx()
    from deepcluster import artifacts
    from deepcluster.checkpoint import load_checkpoint

    images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    made_by = layout.made_by_checkpoint(epoch)
    checkpoint = load_checkpoint(layout.checkpoint(epoch), made_by=made_by, ids=images.ids, epoch=epoch)
    mean, std = images.attributes["mean"], images.attributes["std"]
    facts = vars(checkpoint.description) | {"mean": mean, "std": std, "epoch": epoch}
    try:
        match format:
            case "torchvision":
                usage = _write_torchvision(target, checkpoint, mean, std)
            case "onnx":
                usage = _write_onnx(target, checkpoint, facts)
            case "safetensors":
                usage = _write_safetensors(target, checkpoint, facts)
            case _:
                assert_never(format)
    except OSError as error:
        raise UserError(f"--out: {target} cannot be written: {error.strerror}") from None
    features = f"{checkpoint.backbone.feature_dim} features"
    return [f"{target}: {checkpoint.description.arch} of epoch {epoch}, {features}", *usage]


def _check_epoch(epoch: int) -> None:
    from deepcluster.origins import chosen_epoch, origin

    with origin(None) as workspace:
        chosen_epoch(workspace, layout.checkpoint, epoch, option="--epoch", least=0)


def _check_target(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise UserError(f"--out: {target} is a folder; name a file")
    if not target.parent.is_dir():
        raise UserError(f"--out: {target.parent}: no such folder")
    if target.exists() and not force:
        raise UserError(f"--out: {target} exists; --force overwrites it")


def _check_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"--format onnx: needs {' and '.join(missing)}: pip install 'deepcluster[onnx]'")


def _write_torchvision(
    target: Path, checkpoint: "Checkpoint", mean: Sequence[float], std: Sequence[float]
) -> list[str]:
    """A state dict in torchvision's names, saved by torch.save."""
    import torch

    from deepcluster import artifacts

    loading = _loading(target, checkpoint.description)
    state = checkpoint.backbone.body.state_dict()
    with artifacts.publishing(target) as partial, partial.open("wb") as file:  # a name would end up in the file
        torch.save(dict(state), file)
    return [
        *loading,
        f"# images in [0, 1] are normalised by mean {_shown(mean)} and std {_shown(std)}",
        *_front_end(checkpoint.description),
    ]


def _loading(target: Path, description: "BackboneDescription") -> list[str]:
    """Python that loads the file into torchvision's model; UserError for an architecture that it does not have."""
    from deepcluster.models.resnet import SMALL_SIZE  # vgg16's too

    channels, small = description.body_channels, description.image_size <= SMALL_SIZE
    changes: list[str] = []
    match description.arch:
        case "vgg16":
            name, classifier = "vgg16_bn", "classifier.6"
            if channels != 3:
                changes.append(f"model.features[0] = torch.nn.Conv2d({channels}, 64, 3, padding=1)")
            if small:
                inputs = 512 * (description.image_size // 16) ** 2
                changes += [f"model.{layer} = torch.nn.Identity()" for layer in ("features[6]", "avgpool")]
                changes.append(f"model.classifier[0] = torch.nn.Linear({inputs}, 4096)")
        case "resnet18" | "resnet34" | "resnet50" | "resnet101" | "resnet152":
            name, classifier = description.arch, "fc"
            if small:
                changes.append(f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)")
                changes.append("model.maxpool = torch.nn.Identity()")
            elif channels != 3:
                changes.append(f"model.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, padding=3, bias=False)")
        case "convnet" | "feedforward" | "alexnet":
            other = " of this kind (torchvision's is without batch norm)" if description.arch == "alexnet" else ""
            raise UserError(
                f"--format torchvision: torchvision has no {description.arch}{other}; use safetensors or onnx"
            )
        case _:
            assert_never(description.arch)
    load = f"model.load_state_dict(torch.load({str(target)!r}), strict=False)  # all but {classifier}"
    return ["import torch, torchvision", f"model = torchvision.models.{name}()", *changes, load]


def _front_end(description: "BackboneDescription") -> list[str]:
    if not description.sobel and not (description.grayscale and description.channels == 3):
        return []
    chosen = f"channels={description.channels}, sobel={description.sobel}, grayscale={description.grayscale}"
    return [f"# then filtered by deepcluster.models.frontend.build_front_end({chosen})[0]"]


def _write_safetensors(target: Path, checkpoint: "Checkpoint", facts: dict[str, Any]) -> list[str]:
    """The checkpoint's weights under its own names; what rebuilds the backbone stands in the header, as JSON."""
    from deepcluster import artifacts
    from deepcluster.checkpoint import weights_of

    artifacts.write_weight_file(target, weights_of(checkpoint.backbone), facts | {"format": "pt"})
    return ["arch, channels, image size, filters, mean and std are in the header; model.weights takes the file"]


def _write_onnx(target: Path, checkpoint: "Checkpoint", facts: dict[str, Any]) -> list[str]:
    """Normalisation, front end and backbone in evaluation mode: "images" [N, C, S, S] -> "features" [N, D], any N."""
    import json

    import torch

    from deepcluster import artifacts
    from deepcluster.models.normalised import NormalisedBackbone

    description = checkpoint.description
    model = NormalisedBackbone(checkpoint.backbone, facts["mean"], facts["std"]).eval()
    side = description.image_size
    program = torch.onnx.export(
        model,
        (torch.zeros(2, description.channels, side, side),),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"images": {0: torch.export.Dim("N")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    with artifacts.publishing(target) as partial:
        program.save(partial, external_data=False)
    return [f"images: float32 [N, {description.channels}, {side}, {side}] in [0, 1]; features: float32 [N, D]"]


def _shown(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"
