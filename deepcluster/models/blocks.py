"""Where a backbone's blocks end, and the backbone cut off there: what linear probes of each block look at.

Shapes: N images, C channels, H height, W width of a block's map, D features.
"""

import math
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.models.build import Backbone
from deepcluster.params import Arch

MOST_VALUES = 9600  # Caron et al. 2018, after Zhang et al. 2016: maps are averaged down to about so many values
_VGG_ENDS = (2, 4, 7, 10, 13)  # convolutions in its first block, first two blocks, ...


def blocks(arch: Arch, body: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs end the backbone's blocks, in order, by the name they are reported under.

    Each convolution with its ReLU in convnet and alexnet, what lies between two poolings in vgg16, the stem and the
    four layers in ResNets, each hidden layer with its ReLU in the perceptron. The features themselves are not among
    them.
    """
    match arch:
        case "convnet":
            return _numbered("conv", _relus(body))
        case "alexnet":
            return _numbered("conv", _relus(body.get_submodule("0")))
        case "vgg16":
            relus = _relus(body.get_submodule("features"))
            return _numbered("block", [relus[end - 1] for end in _VGG_ENDS])
        case "resnet18" | "resnet34" | "resnet50" | "resnet101" | "resnet152":
            layers = {f"layer{number}": body.get_submodule(f"layer{number}") for number in range(1, 5)}
            return {"stem": body.get_submodule("relu")} | layers
        case "feedforward":
            return _numbered("hidden", _relus(body))
        case _:
            assert_never(arch)


def _relus(layers: nn.Module) -> list[nn.Module]:
    return [layer for layer in layers.children() if isinstance(layer, nn.ReLU)]


def _numbered(name: str, modules: list[nn.Module]) -> dict[str, nn.Module]:
    return {f"{name}{number}": module for number, module in enumerate(modules, start=1)}


class CutOff(Backbone):
    """A backbone whose features are the output of one of its blocks, maps averaged to at most MOST_VALUES values.

    The whole backbone runs all the same. It shares its weights with the backbone that it is made of.
    """

    def __init__(self, backbone: Backbone, end: nn.Module, *, feature_dim: int) -> None:
        super().__init__(backbone.front_end, backbone.body, feature_dim=feature_dim, head_activation=nn.Identity())
        self._end = [end]  # in a list: it must not be registered as another part

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, feature_dim]."""
        return _output(self.body, self._end[0], self.front_end(images_NCHW))


def cut_off(backbone: Backbone, end: nn.Module, *, channels: int, image_size: int) -> CutOff:
    """The backbone up to one of its `blocks`, for images of this shape."""
    device = next(backbone.parameters()).device
    backbone.eval()
    with torch.inference_mode():
        inputs = backbone.front_end(torch.zeros(1, channels, image_size, image_size, device=device))
        width = _output(backbone.body, end, inputs).shape[1]
    return CutOff(backbone, end, feature_dim=width)


def _output(body: nn.Module, end: nn.Module, inputs: Tensor) -> Tensor:
    """What the module `end` gives while the body runs, pooled: [N, D]."""
    seen: list[Tensor] = []
    handle = end.register_forward_hook(lambda _module, _inputs, output: seen.append(pooled(output)))
    try:
        body(inputs)
    finally:
        handle.remove()
    return seen[-1]


def pooled(maps: Tensor) -> Tensor:
    """[N, C, H, W] averaged to the largest square of at most MOST_VALUES values, flattened; [N, D] as it is."""
    if maps.ndim == 2:
        return maps.clone()  # what runs after it may work in place
    side = max(1, math.isqrt(MOST_VALUES // maps.shape[1]))
    if max(maps.shape[2:]) > side:
        maps = F.adaptive_avg_pool2d(maps, (min(side, maps.shape[2]), min(side, maps.shape[3])))
    return maps.flatten(1).clone()
