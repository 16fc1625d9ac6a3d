"""One epoch of training on pseudo-labels (paper, section 3.2 and 3.4).

Shapes: N images of the data set, B images of a batch, C channels, H height, W width, K clusters.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepcluster.augment import Augmentation, augment, normalise, to_float
from deepcluster.errors import NumericsError
from deepcluster.losses import Loss, pseudo_label_loss
from deepcluster.models.build import Backbone, Precision, autocast, compiled
from deepcluster.transfer import to_device


@dataclass(frozen=True)
class OptimizerSettings:
    """One optimizer; momentum is SGD's, betas are Adam's."""

    name: Literal["sgd", "adam"]
    lr: float
    momentum: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class StepResult:
    """One optimizer step: the batch's mean loss, its share of pseudo-labels predicted, its number of images."""

    step: int
    loss: float
    accuracy: float
    images: int


def build_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimizer over exactly these parameters. Give it a backbone's or a head's, never both.

    On the CPU it is fused: one pass over the weights without temporaries, 25 times faster for AlexNet's 57 million.
    """
    weights = list(parameters)
    fused = True if all(weight.device.type == "cpu" for weight in weights) else None
    match settings.name:
        case "sgd":
            return torch.optim.SGD(
                weights,
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                fused=fused,
            )
        case "adam":
            return torch.optim.Adam(
                weights, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=fused
            )
        case _:
            assert_never(settings.name)


def train_epoch(
    backbone: Backbone,
    head: nn.Linear,
    images: NDArray[np.uint8],
    labels_N: NDArray[np.int32],
    *,
    indices: NDArray[np.int64],
    batch_size: int,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    backbone_optimizer: torch.optim.Optimizer,
    head_optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    device: torch.device,
    precision: Precision,
    loss: Loss,
    compile: bool = False,
) -> Iterator[StepResult]:
    """Trains backbone and head in place on images[indices], in that order; yields after each step, counted from 1.

    `images` is uint8 [N, C, H, W], `generator` a CPU one: augmentation and dropout depend on it alone. Weights and
    their optimizer's state are left in channels_last memory format. `compile`: see `models.build.compiled`.
    NumericsError when a loss is not finite, before that step changes any weight.
    """
    backbone.to(device).to(memory_format=torch.channels_last).train()
    head.to(device).train()
    _lay_out_as_weights(backbone_optimizer)
    forward = compiled(backbone, compile)
    uploads = uploaded(images, labels_N, batches(indices, batch_size), device)
    for step, (images_BCHW, labels_B) in enumerate(uploads, start=1):
        inputs = normalise(augment(to_float(images_BCHW), augmentation, generator), mean, std)
        with _dropout_from(generator, device), autocast(device, precision):
            features_BD = forward(inputs.contiguous(memory_format=torch.channels_last))
            logits_BK = head(backbone.head_activation(features_BD)).float()
            batch_loss = pseudo_label_loss(loss, logits_BK, labels_B)
        value, correct = _numbers(batch_loss, logits_BK, labels_B)
        if not math.isfinite(value):
            raise NumericsError(
                f"loss is {value} at step {step}: lower train.optimizer.lr or set train.precision to fp32"
            )
        _update(batch_loss, backbone_optimizer, head_optimizer)
        yield StepResult(step=step, loss=value, accuracy=correct / len(labels_B), images=len(labels_B))


def uploaded(
    images: NDArray[np.uint8],
    labels_N: NDArray[np.int32],
    rows_of_batches: Sequence[NDArray[np.int64]],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 images [B, C, H, W], int64 labels [B]) on the device for each batch of row numbers.

    A thread collects the next batch's rows meanwhile: neither memory nor a mapped file keeps the device waiting.
    """

    def collect(rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return np.ascontiguousarray(images[rows]), labels_N[rows].astype(np.int64)

    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(collect, rows_of_batches[0]) if len(rows_of_batches) else None
        for following in range(1, len(rows_of_batches) + 1):
            assert upcoming is not None
            images_BCHW, labels_B = upcoming.result()
            if following < len(rows_of_batches):
                upcoming = pool.submit(collect, rows_of_batches[following])
            yield to_device(images_BCHW, device), to_device(labels_B, device)


def batches(indices: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """`indices` in order, cut every `batch_size`; a last single one joins the batch before: batch norm needs two."""
    cuts = list(range(batch_size, len(indices), batch_size))
    if cuts and len(indices) - cuts[-1] == 1:
        cuts.pop()
    return np.split(indices, cuts) if len(indices) else []


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Momentum and moments get the memory format of their weights.

    torch's fused optimizers on the CPU walk weights and state in memory order without comparing strides (seen in
    2.14), so state restored from a file would act on the wrong weights once these are channels_last.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


@contextmanager
def _dropout_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generator: seeded from `generator` inside, restored afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _numbers(batch_loss: Tensor, logits_BK: Tensor, labels_B: Tensor) -> tuple[float, int]:
    """Loss and number of correct predictions, brought from the device in one transfer."""
    correct = (logits_BK.detach().argmax(dim=1) == labels_B).sum()
    value, count = torch.stack([batch_loss.detach().double(), correct.double()]).tolist()
    return value, int(count)


def _update(batch_loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    batch_loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
