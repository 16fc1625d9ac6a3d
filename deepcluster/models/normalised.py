"""A backbone with the data set's normalisation in front, for use without the pipeline."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepcluster.models.build import Backbone


class NormalisedBackbone(nn.Module):
    """Float images [N, C, S, S] in [0, 1] -> features [N, D]; mean and std are per channel, in units of [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features_ND: Tensor = self.backbone((images - self.mean) / self.std)
        return features_ND
