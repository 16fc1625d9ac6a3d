"""What is trained on top of a backbone. Shapes: N images, D features, K clusters, P projected features."""

import torch
from torch import Tensor, nn

from deepcluster.models.build import build_head


class Heads(nn.Module):
    """A linear classifier over the pseudo-labels, and where wanted a projection in front of the contrastive loss."""

    def __init__(self, classifier: nn.Linear, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.projection = nn.Identity() if projection is None else projection

    def forward(self, features_ND: Tensor, activation: nn.Module) -> tuple[Tensor, Tensor]:
        """(logits [N, K] of the activated features, projected features [N, P]), both float32."""
        logits_NK: Tensor = self.classifier(activation(features_ND))
        projected_NP: Tensor = self.projection(features_ND)
        return logits_NK.float(), projected_NP.float()


def build_heads(feature_dim: int, k: int, *, projection: int | None = None) -> Heads:
    """Fresh heads: the classifier of `build_head`, then, of `projection` outputs, two layers (Chen et al. 2020, g(.)).

    Draws from torch's global generator; the classifier's weights are the same with and without a projection.
    """
    classifier = build_head(feature_dim, k)
    if projection is None:
        return Heads(classifier)
    layers = nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, projection)
    return Heads(classifier, nn.Sequential(*layers))


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@torch.no_grad()
def load_heads(heads: Heads, weights: dict[str, Tensor]) -> list[str]:
    """Put named tensors into the heads; the names that are not there or have another shape (nothing is then loaded)."""
    own = heads.state_dict()
    wrong = sorted(name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape)
    if not wrong:
        heads.load_state_dict(own | weights)
    return wrong
