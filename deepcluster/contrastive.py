"""What a batch is trained on: the loss on the pseudo-labels, and with a strategy a contrastive loss on the features.

none            the loss on the pseudo-labels.
pseudo_labels   plus a contrastive loss (Hadsell et al. 2006) over all pairs of a batch: images with the same
                pseudo-label attract each other, those with different ones repel each other up to a margin.
two_views       two augmentations of every image: the losses of both on the pseudo-label, plus NT-Xent between them
                (Chen et al. 2020, equation 1): two views of an image attract each other, all others repel.

Shapes: N images, V views of each, VN rows with all first views first, K clusters, P features or projected features.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from deepcluster.losses import Loss, pseudo_label_loss
from deepcluster.training_parts import Part

Strategy = Literal["none", "pseudo_labels", "two_views"]


class Terms(NamedTuple):
    """Scalars of one batch: `total` is trained on; the others are its terms, not yet weighted.

    pseudo_label: with two views the sum of both losses. contrastive: None without a strategy.
    """

    total: Tensor
    pseudo_label: Tensor
    contrastive: Tensor | None


@dataclass(frozen=True)
class Objective:
    """total = label_weight * pseudo_label + weight * contrastive; without a strategy just pseudo_label.

    margin: pseudo_labels; distance of L2-normalised features, which lie at most 2 apart. temperature: two_views.
    """

    loss: Loss = "cross_entropy"
    strategy: Strategy = "none"
    weight: float = 1.0
    label_weight: float = 1.0
    margin: float = 1.0
    temperature: float = 0.5

    @property
    def views(self) -> int:
        """Augmentations of every image in a batch."""
        return 2 if self.strategy == "two_views" else 1

    def terms(self, logits_VNK: Tensor, features_VNP: Tensor, labels_N: Tensor, part: Part | None = None) -> Terms:
        """Of float32 logits [VN, K] and features [VN, P], and int64 pseudo-labels [N].

        They may be those of a `part` of the batch: the mean of all parts' terms is the batch's.
        """
        labelled = sum(pseudo_label_loss(self.loss, logits_NK, labels_N) for logits_NK in logits_VNK.chunk(self.views))
        assert isinstance(labelled, Tensor)
        if part is not None and part.shared:
            labelled = labelled * part.weight
            if self.strategy != "none":  # pairs of images of all parts
                features_VNP = torch.cat([part.everyone(view_NP) for view_NP in features_VNP.chunk(self.views)])
                labels_N = part.everyone(labels_N)
        match self.strategy:
            case "none":
                return Terms(labelled, labelled, None)
            case "pseudo_labels":
                contrastive = same_label_loss(features_VNP, labels_N, margin=self.margin)
            case "two_views":
                contrastive = two_view_loss(*features_VNP.chunk(2), temperature=self.temperature)
            case _:
                assert_never(self.strategy)
        return Terms(self.label_weight * labelled + self.weight * contrastive, labelled, contrastive)


def same_label_loss(features_NP: Tensor, labels_N: Tensor, *, margin: float) -> Tensor:
    """Contrastive loss of L2-normalised float rows [N, P] under int64 labels [N], a scalar >= 0.

    With distances d between rows: the mean of d over pairs of one label, plus the mean of margin - d over pairs of two
    labels nearer than the margin; pairs that contribute nothing do not count. Zero for a batch without pairs.
    """
    from pytorch_metric_learning.losses import ContrastiveLoss  # half a second to import, for those who use it

    return _scalar(ContrastiveLoss(pos_margin=0.0, neg_margin=margin)(features_NP, labels_N))


def two_view_loss(first_NP: Tensor, second_NP: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent of the rows of two views [N, P] each, row i of both being image i; a scalar > 0.

    Mean over all 2N rows of -log of softmax(cosine / temperature) at the row's other view, over all rows but itself.
    Computed by SupConLoss, which is the same where a row has one positive: NTXentLoss builds a row of all negatives for
    each pair, so its time and memory grow with the cube of N (2 GB at N = 256).
    """
    from pytorch_metric_learning.losses import SupConLoss

    images_VN = torch.arange(len(first_NP), device=first_NP.device).repeat(2)
    return _scalar(SupConLoss(temperature=temperature)(torch.cat([first_NP, second_NP]), images_VN))


def _scalar(loss: Any) -> Tensor:
    assert isinstance(loss, Tensor)
    return loss
