"""Losses on pseudo-labels. Shapes: N images, K clusters."""

from typing import Literal, assert_never

from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross_entropy", "mse", "l1", "l2"]


def pseudo_label_loss(name: Loss, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Mean loss of a batch, a scalar: float logits [N, K] against int64 pseudo-labels [N].

    With p = softmax(logits) [N, K] and y the labels as one-hot rows, each is a mean over the N images of
    cross_entropy: -log p at the label (paper, equation 1), in [0, inf).
    mse: the mean over the K clusters of (p - y)^2, in [0, 2/K]: its gradient fades as K grows.
    l1: the sum over the clusters of |p - y|, in [0, 2]. l2: the sum of (p - y)^2 (Brier 1950), in [0, 2].
    These three have no gradient where the softmax is sure, right or wrong; they want lower learning rates.
    """
    if name == "cross_entropy":
        return F.cross_entropy(logits_NK, labels_N)
    errors_NK = logits_NK.softmax(dim=1) - F.one_hot(labels_N, logits_NK.shape[1])
    match name:
        case "mse":
            return errors_NK.square().mean()
        case "l1":
            return errors_NK.abs().sum(dim=1).mean()
        case "l2":
            return errors_NK.square().sum(dim=1).mean()
        case _:
            assert_never(name)
