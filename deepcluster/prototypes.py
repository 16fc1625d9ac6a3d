"""DeepCluster-v2's loss: the cosine of projections with fixed prototypes, the centroids (Caron et al. 2020, appendix).

Shapes: B images of a batch, V crops of each, VB rows with all first crops first, H clusterings, K clusters,
P projected features.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def prototypes_of(centroids_HKP: NDArray[np.float32]) -> Tensor:
    """Centroids divided by their norm, float32 [H, K, P]; nothing that is trained."""
    return F.normalize(torch.from_numpy(np.array(centroids_HKP, np.float32)), dim=2)


def prototype_loss(
    projected_VBP: Tensor, prototypes_HKP: Tensor, labels_BH: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """(loss, accuracy), scalars: of normalised float32 rows [VB, P] against int64 labels [B, H] of their images.

    loss: over clusterings, crops and images the mean of -log softmax(cosine with each prototype / temperature) at the
    label, in [0, inf). accuracy: over the same, how often the label's prototype is the nearest.
    """
    crops, losses, hits = len(projected_VBP) // len(labels_BH), [], []
    for prototypes_KP, labels_B in zip(prototypes_HKP, labels_BH.T, strict=True):
        scores_VBK, labels_VB = projected_VBP @ prototypes_KP.T, labels_B.repeat(crops)
        losses.append(F.cross_entropy(scores_VBK / temperature, labels_VB))
        hits.append((scores_VBK.detach().argmax(dim=1) == labels_VB).double().mean())
    return torch.stack(losses).mean(), torch.stack(hits).mean()
