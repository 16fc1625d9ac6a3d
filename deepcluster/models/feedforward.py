"""A multilayer perceptron on the pixels: hidden layers of 128, 128, 64 and 64."""

from torch import nn

WIDTHS = (128, 128, 64, 64)
FEATURE_DIM = WIDTHS[-1]


def build_feedforward(*, channels: int, image_size: int) -> nn.Sequential:
    """[N, C, S, S] -> [N, 64]: the output of the last layer before its ReLU, which belongs to the head. Any size."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = channels * image_size**2
    for width in WIDTHS:
        layers += [_linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers[:-1])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Weights by He et al. 2015 (fan in), bias zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
