"""DeepCluster-v2's projection of the features onto the unit sphere, where the prototypes lie.

Shapes: N images, D features, P projected features.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.models.build import Backbone


class Projector(nn.Module):
    """Two layers with batch norm between, divided by their norm: [N, D] -> float32 [N, P], rows of norm 1.

    The layers of the code of Caron et al. 2020. They may compute in bfloat16; the norm is float32.
    """

    def __init__(self, feature_dim: int, *, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.outputs = hidden, outputs
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, activated_ND: Tensor) -> Tensor:
        return F.normalize(self.layers(activated_ND).float(), dim=1)


class ProjectedBackbone(Backbone):
    """A backbone and a projector as one network, whose features are the projections; over the same weights as both."""

    def __init__(self, backbone: Backbone, projector: Projector) -> None:
        super().__init__(
            backbone.front_end, backbone.body, feature_dim=projector.outputs, head_activation=nn.Identity()
        )
        self.activation, self.projector = backbone.head_activation, projector

    def forward(self, images_NCHW: Tensor) -> Tensor:
        projected_NP: Tensor = self.projector(self.activation(super().forward(images_NCHW)))
        return projected_NP
