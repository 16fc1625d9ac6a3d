"""Fixed filters in front of a backbone. They are buffers, never parameters: nothing here can be trained.

The buffers are not persistent either, so a checkpoint holds learned weights only.
Shapes: N images, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.errors import UserError

LUMA_RGB = (0.299, 0.587, 0.114)
MEAN_RGB = (1 / 3, 1 / 3, 1 / 3)
SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))


class Grayscale(nn.Module):
    """Weighted sum of R, G and B (by default ITU-R BT.601 luma): [N, 3, H, W] -> [N, 1, H, W]."""

    weights: Tensor

    def __init__(self, weights: tuple[float, float, float] = LUMA_RGB) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return F.conv2d(images_NCHW, self.weights)


class Sobel(nn.Module):
    """Horizontal and vertical differences of a grey image: [N, 1, H, W] -> [N, 2, H, W]; zeros beyond the border."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.tensor([SOBEL_X, SOBEL_Y]).unsqueeze(1), persistent=False)

    def forward(self, images_N1HW: Tensor) -> Tensor:
        return F.conv2d(images_N1HW, self.filters, padding=1)


def build_front_end(*, channels: int, sobel: bool, grayscale: bool) -> tuple[nn.Module, int]:
    """The fixed front end and the number of channels that leave it.

    Sobel makes RGB grey first, asked or not: by luma if `grayscale` asks, else by the plain mean of the channels, which
    is what the paper's code does and its published weights were trained on.
    """
    if channels not in (1, 3) and (sobel or grayscale):
        raise UserError(f"sobel and grayscale need images with 1 or 3 channels; got {channels}: switch both off")
    grey = [Grayscale(LUMA_RGB if grayscale else MEAN_RGB)] if channels == 3 and (sobel or grayscale) else []
    edges = [Sobel()] if sobel else []
    return nn.Sequential(*grey, *edges), 2 if sobel else 1 if grey else channels
