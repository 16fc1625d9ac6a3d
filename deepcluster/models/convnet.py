"""A small convnet for images of 8 to 64 pixels: four 3x3 convolutions with batch norm, pooled to one vector."""

from torch import nn

from deepcluster.errors import UserError

MIN_SIZE, MAX_SIZE = 8, 64
WIDTHS = (32, 64, 128, 256)


def build_convnet(*, channels: int, image_size: int, widths: tuple[int, int, int, int] = WIDTHS) -> nn.Sequential:
    """[N, C, S, S] -> [N, widths[-1]]; the map is halved after a layer, not the last, if 4 pixels or more remain."""
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise UserError(
            f"convnet takes images of {MIN_SIZE} to {MAX_SIZE} pixels; got {image_size}: resize the images "
            "or choose another model.arch"
        )
    layers: list[nn.Module] = []
    map_size = image_size
    for layer, width in enumerate(widths, start=1):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if layer < len(widths) and map_size >= 8:
            layers.append(nn.MaxPool2d(2))
            map_size //= 2
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
