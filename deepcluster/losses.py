"""Losses on pseudo-labels. Shapes: N images, K clusters."""

from typing import Literal, assert_never

from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross_entropy"]


def pseudo_label_loss(name: Loss, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Mean loss of a batch, a scalar: float logits [N, K] against int64 pseudo-labels [N] (paper, equation 1)."""
    match name:
        case "cross_entropy":
            return F.cross_entropy(logits_NK, labels_N)
        case _:
            assert_never(name)
