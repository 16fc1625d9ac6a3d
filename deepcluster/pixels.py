"""uint8 images as a network takes them. Shapes: N images, C channels, H height, W width."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def to_float(images_NCHW: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images_NCHW.to(torch.float32).div_(255)


def normalise(images_NCHW: Tensor, mean_C: Sequence[float], std_C: Sequence[float]) -> Tensor:
    """(images - mean) / std per channel; mean and std in units of [0, 1]."""
    kind = images_NCHW.dtype, images_NCHW.device
    return images_NCHW.sub(_per_channel(tuple(mean_C), *kind)).div_(_per_channel(tuple(std_C), *kind))


@lru_cache(maxsize=16)
def _per_channel(values_C: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Shape [C, 1, 1]. Kept, since sending a few numbers to a GPU for every batch takes as long as a small kernel."""
    with torch.inference_mode(False):  # for training too, whoever asks first
        return torch.tensor(values_C, dtype=dtype, device=device).view(-1, 1, 1)
