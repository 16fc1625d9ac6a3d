"""One epoch of DeepCluster-v2 (Caron et al. 2020, appendix of SwAV): crops against fixed prototypes.

Every image is cropped several times; the projection of each crop is trained to be nearest to the prototypes of the
image's pseudo-labels, one of each clustering. On the way the bank is filled: the projections of the first crops, which
the next epoch clusters. Shapes: N images of the data set, B images of a batch, V crops, C channels, S side of the
images, H clusterings, K clusters, P projected features.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deepcluster.augment import Augmentation, augment
from deepcluster.models.build import Backbone, Precision, autocast, compiled
from deepcluster.models.projector import Projector
from deepcluster.pixels import normalise, to_float
from deepcluster.prototypes import prototype_loss
from deepcluster.training import (
    StepResult,
    backward,
    batches,
    dropout_from,
    keep_frozen_still,
    lay_out_as_weights,
    rates_of,
    refuse_non_finite,
    set_rates,
    update,
    uploaded,
)
from deepcluster.transfer import Arriving

BankRows = Literal["first", "mean"]


@dataclass(frozen=True)
class Crops:
    """The crops of an image: global ones as the augmentation says, then small ones, of other shares of the area.

    small_size: their side in pixels; None: that of the images. small_scale: range of their share of the area.
    """

    global_crops: int = 2
    small_crops: int = 6
    small_size: int | None = None
    small_scale: tuple[float, float] = (0.05, 0.14)

    def of(
        self,
        images_BCSS: Tensor,
        augmentation: Augmentation,
        generator: torch.Generator,
        colour_generator: torch.Generator | None,
    ) -> list[Tensor]:
        """Float crops by size, all of one size in one tensor, each with all images' first crop of that size first."""
        smaller = replace(augmentation, crop=True, crop_scale=self.small_scale)
        large = [augment(images_BCSS, augmentation, generator, colour_generator) for _ in range(self.global_crops)]
        small = [
            augment(images_BCSS, smaller, generator, colour_generator, size=self.small_size)
            for _ in range(self.small_crops)
        ]
        if not small or small[0].shape == large[0].shape:
            return [torch.cat(large + small)]
        return [torch.cat(large), torch.cat(small)]


def train_epoch_v2(
    backbone: Backbone,
    projector: Projector,
    images: NDArray[np.uint8],
    labels_NH: NDArray[np.int32],
    prototypes_HKP: Tensor,
    bank_NP: NDArray[np.float32],
    *,
    indices: NDArray[np.int64],
    batch_size: int,
    crops: Crops,
    temperature: float,
    bank_rows: BankRows,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    device: torch.device,
    precision: Precision = "fp32",
    colour_generator: torch.Generator | None = None,
    lr_factor: Callable[[int, int], float] = lambda step, steps: 1.0,
    clip_norm: float | None = None,
    compile: bool = False,
    taken: int = 0,
) -> Generator[StepResult]:
    """Trains backbone and projector in place on images[indices], in that order; yields after each step, from 1.

    bank_NP, float32 [N, P], is filled in place: each image's row is the projection that its latest batch computed
    before the step, of its first crop, or the mean of those of its global crops, normalised. The prototypes stay as
    they are. The rest, `taken` too, as in `training.train_epoch`. Crops of one size pass the backbone together; all of
    them together pass the projector.
    NumericsError when a loss is not finite, before that step changes any weight.
    """
    backbone.to(device).to(memory_format=torch.channels_last).train()
    projector.to(device).train()
    keep_frozen_still(backbone)
    rates, prototypes_HKP = rates_of(optimizers), prototypes_HKP.to(device)
    for optimizer in optimizers:
        lay_out_as_weights(optimizer)
    forward, cut = compiled(backbone, compile), batches(indices, batch_size)
    left = cut[taken:]
    arriving = uploaded(images, labels_NH, left, device)
    for step, (rows_B, (images_BCSS, labels_BH)) in enumerate(zip(left, arriving, strict=True), start=taken + 1):
        views = crops.of(to_float(images_BCSS), augmentation, generator, colour_generator)
        inputs = [normalise(view, mean, std).contiguous(memory_format=torch.channels_last) for view in views]
        with dropout_from(generator, device), autocast(device, precision):
            projected_VBP = projector(backbone.head_activation(torch.cat([forward(each) for each in inputs])))
        loss, accuracy = prototype_loss(projected_VBP, prototypes_HKP, labels_BH, temperature=temperature)
        numbers = Arriving(torch.stack([loss.detach().double(), accuracy]))
        backward(loss, optimizers)
        measured, hit = numbers.get().tolist()
        refuse_non_finite(measured, step)
        bank_NP[rows_B] = _bank_rows(projected_VBP.detach(), len(rows_B), crops, bank_rows).cpu().numpy()
        set_rates(optimizers, rates, lr_factor(step, len(cut)))
        lr = optimizers[0].param_groups[0]["lr"]
        update(optimizers, clip_norm)
        yield StepResult(step, len(rows_B), measured, hit, measured, None, lr)


def _bank_rows(projected_VBP: Tensor, images: int, crops: Crops, which: BankRows) -> Tensor:
    """Float32 [B, P], of norm 1."""
    if which == "first" or crops.global_crops == 1:
        return projected_VBP[:images]
    global_GBP = torch.stack(projected_VBP[: crops.global_crops * images].chunk(crops.global_crops))
    return F.normalize(global_GBP.mean(dim=0), dim=1)
