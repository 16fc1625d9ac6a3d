"""Which sizes of image a backbone takes besides the one that it was made for: small crops are smaller."""

from collections.abc import Callable

import torch

from deepcluster.errors import UserError
from deepcluster.models.build import Backbone

KEY = "train.v2.small_size"


def refuse_small_crops(
    size: int | None, build: Callable[[], Backbone], *, arch: str, channels: int, image_size: int
) -> None:
    """UserError that names the smallest side that suits, unless the backbone takes crops of that side; None suits.

    `build` makes the backbone for `image_size`; it is made here without memory for its weights.
    """
    if size is None or size == image_size:
        return
    if size > image_size:
        raise UserError(f"{KEY}: must be <= {image_size}, the side of the images; got {size}")
    with torch.device("meta"):
        backbone = build().eval()
    if not _takes(backbone, channels, size):
        smallest = next(side for side in range(size + 1, image_size + 1) if _takes(backbone, channels, side))
        raise UserError(f"{KEY}: must be >= {smallest} for {arch} and images of {image_size} pixels; got {size}")


def _takes(backbone: Backbone, channels: int, size: int) -> bool:
    """Whether shapes fit all the way."""
    try:
        found = backbone(torch.empty(2, channels, size, size, device="meta"))
    except RuntimeError:
        return False
    return tuple(found.shape) == (2, backbone.feature_dim)
