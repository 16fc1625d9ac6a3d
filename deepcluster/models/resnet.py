"""torchvision's ResNet18 without its classifier, with a stem that suits small images."""

from torch import nn

from deepcluster.errors import UserError

MIN_SIZE = 8
SMALL_SIZE = 64
FEATURE_DIM = 512


def build_resnet18(*, channels: int, image_size: int) -> nn.Module:
    """[N, C, S, S] -> [N, 512], the pooled output (He et al. 2016).

    Up to 64 pixels the stem is 3x3 with stride 1 and no pooling; above, torchvision's 7x7 with stride 2. The names in
    the state dict are torchvision's, less `fc`.
    """
    from torchvision.models import resnet18  # seconds to import; other backbones must not pay for it

    if image_size < MIN_SIZE:
        raise UserError(f"resnet18 takes images of {MIN_SIZE} pixels and more; got {image_size}: resize the images")
    body: nn.Module = resnet18(weights=None)
    body.fc = nn.Identity()
    if image_size <= SMALL_SIZE:
        body.conv1 = _stem(channels, kernel=3, stride=1)
        body.maxpool = nn.Identity()
    elif channels != 3:
        body.conv1 = _stem(channels, kernel=7, stride=2)
    return body


def _stem(channels: int, *, kernel: int, stride: int) -> nn.Conv2d:
    """A first convolution, initialised as torchvision initialises the one that it replaces."""
    stem = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem
