"""Builds backbones and heads by name. Shapes: N images, C channels, H height, W width, D features, K clusters."""

import shutil
from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from deepcluster.errors import UserError
from deepcluster.models.alexnet import FEATURE_DIM as ALEXNET_DIM
from deepcluster.models.alexnet import build_alexnet
from deepcluster.models.convnet import WIDTHS as CONVNET_WIDTHS
from deepcluster.models.convnet import build_convnet
from deepcluster.models.feedforward import FEATURE_DIM as FEEDFORWARD_DIM
from deepcluster.models.feedforward import build_feedforward
from deepcluster.models.frontend import build_front_end
from deepcluster.models.resnet import build_resnet
from deepcluster.models.vgg import FEATURE_DIM as VGG16_DIM
from deepcluster.models.vgg import build_vgg16
from deepcluster.params import Arch

Precision = Literal["fp32", "bf16"]


class Backbone(nn.Module):
    """Fixed front end, then a network: normalised images [N, C, H, W] -> features [N, feature_dim].

    Features are those that extraction stores: before the last ReLU where the classifier ends in one, else the pooled
    output. A head sees `head_activation(features)`: that ReLU, or the features themselves.
    """

    def __init__(self, front_end: nn.Module, body: nn.Module, *, feature_dim: int, head_activation: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.body = body
        self.feature_dim = feature_dim
        self.head_activation = head_activation

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_ND: Tensor = self.body(self.front_end(images_NCHW))
        return features_ND


def build_backbone(arch: Arch, *, channels: int, image_size: int, sobel: bool, grayscale: bool) -> Backbone:
    """A freshly initialised backbone; draws from torch's global generator, which the caller seeds.

    UserError where the image size or the channels do not suit the architecture.
    """
    front_end, channels = build_front_end(channels=channels, sobel=sobel, grayscale=grayscale)
    body: nn.Module
    match arch:
        case "convnet":
            body, dim = build_convnet(channels=channels, image_size=image_size), CONVNET_WIDTHS[-1]
        case "feedforward":
            body, dim = build_feedforward(channels=channels, image_size=image_size), FEEDFORWARD_DIM
        case "alexnet":
            body, dim = build_alexnet(channels=channels, image_size=image_size), ALEXNET_DIM
        case "vgg16":
            body, dim = build_vgg16(channels=channels, image_size=image_size), VGG16_DIM
        case "resnet18" | "resnet34" | "resnet50" | "resnet101" | "resnet152":
            body, dim = build_resnet(arch, channels=channels, image_size=image_size)
        case _:
            assert_never(arch)
    return Backbone(front_end, body, feature_dim=dim, head_activation=_head_activation(arch))


def _head_activation(arch: Arch) -> nn.Module:
    """The ReLU after the hidden layer that the features are taken from; none after pooled features.

    Not in place: the features must survive for whatever else reads them.
    """
    return nn.ReLU(inplace=False) if arch in ("feedforward", "alexnet", "vgg16") else nn.Identity()


def build_head(feature_dim: int, k: int) -> nn.Linear:
    """A fresh linear classifier over k clusters: weights N(0, 0.01), bias 0; draws from torch's global generator."""
    head = nn.Linear(feature_dim, k)
    nn.init.normal_(head.weight, 0.0, 0.01)
    nn.init.zeros_(head.bias)
    return head


def compiled(backbone: Backbone, wanted: bool) -> Callable[[Tensor], Tensor]:
    """The backbone, or what `torch.compile` makes of it, over the same weights: worth a slow first batch in long runs.

    Its rounding differs, so artifacts made with it differ in their last bits from those made without.
    UserError when `wanted` and no C++ compiler is found: torch needs one on a CPU.
    """
    if not wanted:
        return backbone
    device = next(backbone.parameters()).device
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        raise UserError("compile: torch needs a C++ compiler, and none is found; install one or set compile to false")
    function: Callable[[Tensor], Tensor] = torch.compile(backbone)
    return function


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a backbone runs: bfloat16 where it is safe for "bf16", nothing for "fp32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
