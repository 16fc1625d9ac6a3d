"""torchvision's VGG16 with batch norm, up to its second hidden layer (Simonyan and Zisserman 2015, configuration D).

Above 64 pixels the layout is torchvision's, with the last map averaged (or repeated) to 7x7. Up to 64 pixels the first
pooling is left out and the last map used as it is, 64 pixels ending in 4x4, 32 in 2x2, 16 in a single pixel; the first
linear layer is so much smaller. Names in the state dict are torchvision's, less the last linear layer `classifier.6`.
"""

from collections import OrderedDict

import torch
from torch import nn

from deepcluster.errors import UserError

MIN_SIZE = 16
SMALL_SIZE = 64
FEATURE_DIM = 4096
LAST_WIDTH = 512
LAST_MAP = 7


def build_vgg16(*, channels: int, image_size: int) -> nn.Sequential:
    """[N, C, S, S] -> [N, 4096]: the output of the second hidden layer of the classifier before its ReLU."""
    from torchvision.models import vgg16_bn  # seconds to import; other backbones must not pay for it

    if image_size < MIN_SIZE:
        raise UserError(
            f"vgg16 takes images of {MIN_SIZE} pixels and more; got {image_size}: resize the images or choose convnet"
        )
    with torch.device("meta"):  # shapes alone: drawing a hundred million weights to throw them away takes seconds
        features = vgg16_bn(weights=None).features
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    map_size = LAST_MAP
    pooling: nn.Module = nn.AdaptiveAvgPool2d(LAST_MAP)
    if image_size <= SMALL_SIZE:
        first = next(index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d))
        features[first] = nn.Identity()
        map_size, pooling = image_size // 16, nn.Identity()
    classifier = _classifier(LAST_WIDTH * map_size**2)
    parts = OrderedDict(features=features, avgpool=pooling, flatten=nn.Flatten(), classifier=classifier)
    body = nn.Sequential(parts).to_empty(device=torch.get_default_device())
    body.apply(_initialise)
    return body


def _classifier(inputs: int) -> nn.Sequential:
    """torchvision's up to the second hidden layer, whose ReLU belongs to the head (features are taken before it)."""
    return nn.Sequential(
        nn.Linear(inputs, FEATURE_DIM),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(FEATURE_DIM, FEATURE_DIM),
    )


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """As torchvision: He et al. 2015 (fan out) for convolutions, N(0, 0.01) for linear layers, biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
