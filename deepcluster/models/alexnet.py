"""AlexNet as DeepCluster trains it: one column, batch norm, no local response normalisation (paper, section 4).

The first convolution suits the image size, so that the last map is never a single pixel:

    128 pixels and more   11x11, stride 4    (the paper's; 224 pixels end in a 6x6 map)
    64 to 127 pixels      11x11, stride 2    (64 pixels end in 2x2)
    20 to 63 pixels       3x3, stride 1      (32 pixels end in 3x3, 28 in 2x2)

A last map larger than 6x6 is averaged down to 6x6; a smaller one is used as it is.
"""

import math

import torch
from torch import nn

from deepcluster.errors import UserError

MIN_SIZE = 20
FEATURE_DIM = 4096
LARGEST_MAP = 6


def build_alexnet(*, channels: int, image_size: int) -> nn.Sequential:
    """[N, C, S, S] -> [N, 4096]: the output of the second hidden layer of the classifier before its ReLU."""
    if image_size < MIN_SIZE:
        raise UserError(
            f"alexnet takes images of {MIN_SIZE} pixels and more; got {image_size}: resize the images or choose convnet"
        )
    convolutions = _convolutions(channels, image_size)
    map_size = min(_map_size(image_size), LARGEST_MAP)
    body = nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(map_size), nn.Flatten(), _classifier(256 * map_size**2))
    body.apply(_initialise)
    return body


def _stem(image_size: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of the first convolution."""
    if image_size < 64:
        return 3, 1, 1
    return (11, 2, 2) if image_size < 128 else (11, 4, 2)


def _map_size(image_size: int) -> int:
    """Side of the last map: the stem, then three poolings of 3x3 with stride 2."""
    kernel, stride, padding = _stem(image_size)
    size = (image_size + 2 * padding - kernel) // stride + 1
    for _ in range(3):
        size = (size - 3) // 2 + 1
    return size


def _convolutions(channels: int, image_size: int) -> nn.Sequential:
    kernel, stride, padding = _stem(image_size)
    return nn.Sequential(
        *_convolution(channels, 96, kernel, stride, padding),
        nn.MaxPool2d(3, 2),
        *_convolution(96, 256, 5, 1, 2),
        nn.MaxPool2d(3, 2),
        *_convolution(256, 384, 3, 1, 1),
        *_convolution(384, 384, 3, 1, 1),
        *_convolution(384, 256, 3, 1, 1),
        nn.MaxPool2d(3, 2),
    )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU()]


def _classifier(inputs: int) -> nn.Sequential:
    """Two hidden layers; no ReLU after the second, which belongs to the head (features are taken before it)."""
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(inputs, FEATURE_DIM),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(FEATURE_DIM, FEATURE_DIM),
    )


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """He et al. 2015 (fan out) for convolutions, N(0, 0.01) for linear layers, biases zero."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels
        module.weight.normal_(0, math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        module.weight.normal_(0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        module.bias.zero_()
