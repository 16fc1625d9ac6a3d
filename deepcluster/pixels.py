"""uint8 images as a network takes them. Shapes: N images, C channels, H height, W width."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_float(images_NCHW: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images_NCHW.to(torch.float32).div_(255)


def normalise(images_NCHW: Tensor, mean_C: Sequence[float], std_C: Sequence[float]) -> Tensor:
    """(images - mean) / std per channel; mean and std in units of [0, 1]."""
    mean_C11 = torch.tensor(mean_C, dtype=images_NCHW.dtype, device=images_NCHW.device).view(-1, 1, 1)
    std_C11 = torch.tensor(std_C, dtype=images_NCHW.dtype, device=images_NCHW.device).view(-1, 1, 1)
    return images_NCHW.sub(mean_C11).div_(std_C11)
