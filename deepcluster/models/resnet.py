"""torchvision's ResNets without their classifier, with a stem that suits small images."""

from collections.abc import Callable
from typing import Literal, assert_never

from torch import nn

from deepcluster.errors import UserError

ResNetArch = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]

MIN_SIZE = 8
SMALL_SIZE = 64


def build_resnet(arch: ResNetArch, *, channels: int, image_size: int) -> tuple[nn.Module, int]:
    """[N, C, S, S] -> [N, D], the pooled output (He et al. 2016), and D: 512, or 2048 from resnet50 on.

    Up to 64 pixels the stem is 3x3 with stride 1 and no pooling; above, torchvision's 7x7 with stride 2. The names in
    the state dict are torchvision's, less `fc`.
    """
    if image_size < MIN_SIZE:
        raise UserError(f"{arch} takes images of {MIN_SIZE} pixels and more; got {image_size}: resize the images")
    body: nn.Module = _torchvisions(arch)(weights=None)
    classifier = body.fc
    assert isinstance(classifier, nn.Linear)
    body.fc = nn.Identity()
    if image_size <= SMALL_SIZE:
        body.conv1 = _stem(channels, kernel=3, stride=1)
        body.maxpool = nn.Identity()
    elif channels != 3:
        body.conv1 = _stem(channels, kernel=7, stride=2)
    return body, classifier.in_features


def _torchvisions(arch: ResNetArch) -> Callable[..., nn.Module]:
    from torchvision import models  # seconds to import; other backbones must not pay for it

    found: Callable[..., nn.Module]
    match arch:
        case "resnet18":
            found = models.resnet18
        case "resnet34":
            found = models.resnet34
        case "resnet50":
            found = models.resnet50
        case "resnet101":
            found = models.resnet101
        case "resnet152":
            found = models.resnet152
        case _:
            assert_never(arch)
    return found


def _stem(channels: int, *, kernel: int, stride: int) -> nn.Conv2d:
    """A first convolution, initialised as torchvision initialises the one that it replaces."""
    stem = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem
