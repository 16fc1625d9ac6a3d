"""One epoch of training on pseudo-labels (paper, section 3.2 and 3.4).

Shapes: N images of the data set, B images of a batch, C channels, H height, W width, K clusters.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepcluster.augment import Augmentation, augment
from deepcluster.contrastive import Objective, Terms
from deepcluster.distributed import ALONE, Process
from deepcluster.errors import NumericsError, UserError
from deepcluster.lars import LARS
from deepcluster.models.build import Backbone, Precision, autocast
from deepcluster.models.heads import Heads
from deepcluster.pixels import normalise, to_float
from deepcluster.threads import ahead
from deepcluster.training_parts import Part, network_of, part_of
from deepcluster.transfer import Arriving, sent, staging

ON_PSEUDO_LABELS = Objective()
LEAST_IMAGES = 32


@dataclass(frozen=True)
class OptimizerSettings:
    """One optimizer; momentum is SGD's and LARS', betas are Adam's."""

    name: Literal["sgd", "adam", "lars"]
    lr: float
    momentum: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class StepResult:
    """One optimizer step: what was measured on the batch before it, and the first optimizer's learning rate.

    loss: what was trained on; pseudo_label_loss and contrastive_loss (None without a strategy): its terms, unweighted.
    accuracy: the share of pseudo-labels predicted, over all views. images: each counted once, whatever its views.
    """

    step: int
    images: int
    loss: float
    accuracy: float
    pseudo_label_loss: float
    contrastive_loss: float | None
    lr: float


def build_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimizer over exactly these parameters. Give it a backbone's or a head's, never both.

    It is fused where torch has that: on the CPU one pass over the weights without temporaries, 25 times faster for
    AlexNet's 57 million.
    """
    weights = list(parameters)
    fused = True if all(weight.device.type in ("cpu", "cuda") for weight in weights) else None
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
        case "lars":
            return LARS(weights, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
        case _:
            assert_never(settings.name)


def train_epoch(
    backbone: Backbone,
    heads: Heads,
    images: NDArray[np.uint8],
    labels_N: NDArray[np.int32],
    *,
    indices: NDArray[np.int64],
    batch_size: int,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    device: torch.device,
    precision: Precision = "fp32",
    colour_generator: torch.Generator | None = None,
    objective: Objective = ON_PSEUDO_LABELS,
    lr_factor: Callable[[int, int], float] = lambda step, steps: 1.0,
    unscheduled: Sequence[torch.optim.Optimizer] = (),
    clip_norm: float | None = None,
    compile: bool = False,
    taken: int = 0,
    process: Process = ALONE,
    sync_batch_norm: bool = True,
) -> Generator[StepResult]:
    """Trains backbone and heads in place on images[indices], in that order; yields after each step, counted from 1.

    `images` is uint8 [N, C, H, W], the generators are CPU ones: augmentation (see `augment`) and dropout depend on them
    alone. The views of an image are augmented from its pixels, then normalised once. `lr_factor(step, steps)` times its
    own learning rate is what each optimizer takes, but for those also in `unscheduled`, which keep theirs; the first
    one's is reported. `clip_norm`: largest norm of all gradients together. Weights and their optimizers' state are left
    in channels_last memory format. `compile`: see `models.build.compiled`. `taken`: steps of this epoch that were taken
    before, and are passed over; whatever is handed over must be as they left it. Several processes, given the same,
    take a part of each batch each (`training_parts`), and yield the same; `sync_batch_norm`: see `network_of`.
    NumericsError when a loss is not finite, before that step changes any weight. UserError for two views that are one.
    """
    _lay_out(backbone, heads, optimizers, device)
    scheduled = [optimizer for optimizer in optimizers if all(optimizer is not other for other in unscheduled)]
    rates = rates_of(scheduled)
    network = network_of(
        backbone, heads, compile=compile, process=process, device=device, sync_batch_norm=sync_batch_norm
    )
    cut = batches(indices, batch_size)
    parts = [part_of(len(batch), process) for batch in cut]
    own = [batch[part.rows] for batch, part in zip(cut, parts, strict=True)]
    for step, (images_BCHW, labels_B) in enumerate(uploaded(images, labels_N, own[taken:], device), start=taken + 1):
        part = parts[step - 1]
        views = _views(images_BCHW, objective.views, augmentation, generator, colour_generator, part)
        if step == 1 and len(views) > 1:
            _refuse_identical(views, part)
        inputs = normalise(views[0] if len(views) == 1 else torch.cat(views), mean, std)
        with dropout_from(generator, device, process), autocast(device, precision):
            logits_BK, projected_BP = network(inputs.contiguous(memory_format=torch.channels_last))
        terms = objective.terms(logits_BK, projected_BP, labels_B, part)
        arriving = Arriving(_measured(terms, logits_BK, labels_B.repeat(objective.views), part))
        backward(terms.total, optimizers)  # a GPU goes on with this while its numbers are read
        loss, accuracy, labelled, contrasted = arriving.get().tolist()
        refuse_non_finite(loss, step)
        set_rates(scheduled, rates, lr_factor(step, len(parts)))
        lr = optimizers[0].param_groups[0]["lr"]
        update(optimizers, clip_norm)
        contrastive = None if terms.contrastive is None else contrasted
        yield StepResult(step, part.whole, loss, accuracy, labelled, contrastive, lr)


def _views(
    images_BCHW: Tensor,
    count: int,
    augmentation: Augmentation,
    generator: torch.Generator,
    colour_generator: torch.Generator | None,
    part: Part,
) -> list[Tensor]:
    """So many random views of a part of a batch, as of the whole batch they would be, float32 in [0, 1]."""
    pixels, drawn = to_float(images_BCHW), {"first": part.start, "whole": part.whole}
    return [augment(pixels, augmentation, generator, colour_generator, **drawn) for _ in range(count)]


def _lay_out(
    backbone: Backbone, heads: Heads, optimizers: Sequence[torch.optim.Optimizer], device: torch.device
) -> None:
    """In place: on the device, for training, in channels_last memory format, optimizers' state too."""
    backbone.to(device).to(memory_format=torch.channels_last).train()
    heads.to(device).train()
    keep_frozen_still(backbone)
    for optimizer in optimizers:
        lay_out_as_weights(optimizer)


def averaged(
    steps: Iterable[StepResult], backbone: Backbone, average: Backbone, *, decay: float
) -> Generator[StepResult]:
    """Passes the steps on; after each, average = decay x average + (1 - decay) x backbone, in place.

    Weights and batch norm's statistics are averaged, counts are copied (the teacher of Tarvainen and Valpola 2017,
    equation 3).
    """
    for step in steps:
        with torch.no_grad():
            for kept, now in zip(average.state_dict().values(), backbone.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(now, 1 - decay)
                else:
                    kept.copy_(now)
        yield step


def uploaded(
    images: NDArray[np.uint8],
    labels_N: NDArray[np.int32],
    rows_of_batches: Sequence[NDArray[np.int64]],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 images [B, C, H, W], int64 labels [B]) on the device for each batch of row numbers.

    A thread collects the next batch's rows meanwhile: neither memory nor a mapped file keeps the device waiting.
    """

    def collect(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        batch = staging((len(rows), *images.shape[1:]), torch.uint8, device)
        np.take(images, rows, axis=0, out=batch.numpy(), mode="clip")  # by default it would fill a buffer first
        return batch, torch.from_numpy(labels_N[rows].astype(np.int64))

    for images_BCHW, labels_B in ahead(map(collect, rows_of_batches)):
        yield sent(images_BCHW, device), sent(labels_B, device)


def batches(indices: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """`indices` in order, cut every `batch_size`; a last single one joins the batch before: batch norm needs two."""
    cuts = list(range(batch_size, len(indices), batch_size))
    if cuts and len(indices) - cuts[-1] == 1:
        cuts.pop()
    return np.split(indices, cuts) if len(indices) else []


def refuse_non_finite(loss: float, step: int) -> None:
    """NumericsError for a loss that is NaN or infinite, to be raised before the step changes any weight."""
    if not math.isfinite(loss):
        raise NumericsError(f"loss is {loss} at step {step}: lower train.optimizer.lr or set train.precision to fp32")


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Momentum and moments get the memory format of their weights.

    torch's fused optimizers on the CPU walk weights and state in memory order without comparing strides (seen in
    2.14), so state restored from a file would act on the wrong weights once these are channels_last.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


@contextmanager
def dropout_from(generator: torch.Generator, device: torch.device, process: Process = ALONE) -> Iterator[None]:
    """Dropout draws from torch's global generator: seeded from `generator` inside, restored afterwards.

    In every process otherwise, since their images differ.
    """
    seed = int(torch.randint(2**62, (), generator=generator)) + process.rank
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _refuse_identical(views: Sequence[Tensor], part: Part) -> None:
    """UserError if no pixel differs by a grey level between two views of a batch; in a small one that may be chance."""
    first_NCHW, second_NCHW = views
    difference = part.process.largest(float((first_NCHW - second_NCHW).abs().max()))
    if part.whole >= LEAST_IMAGES and difference < 1 / 255:
        raise UserError(
            "train.contrastive.strategy: two_views needs views that differ, but `augment` leaves those of these images "
            "identical; switch on augment.crop, rotation, translate or another"
        )


def keep_frozen_still(backbone: nn.Module) -> None:
    """Modules of which no weight is trained run as in evaluation: else batch norm's statistics would go on moving."""
    for module in backbone.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(weight.requires_grad for weight in own):
            module.eval()


def _measured(terms: Terms, logits_BK: Tensor, labels_B: Tensor, part: Part) -> Tensor:
    """Loss, accuracy, pseudo-label and contrastive loss (0 without one) of the whole batch, for one transfer."""
    accuracy = (logits_BK.detach().argmax(dim=1) == labels_B).double().mean() * part.weight
    contrastive = terms.pseudo_label.new_zeros(()) if terms.contrastive is None else terms.contrastive
    numbers = (terms.total, accuracy, terms.pseudo_label, contrastive)
    return part.mean(torch.stack([number.detach().double() for number in numbers]))


def rates_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[list[float]]:
    """The learning rates as they are now, by optimizer and group."""
    return [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]


def set_rates(optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[Sequence[float]], factor: float) -> None:
    """The learning rates of `rates_of`, times the factor."""
    for optimizer, own in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate * factor


def backward(loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """The gradients of the loss alone, for the weights of every optimizer."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]


def update(optimizers: Sequence[torch.optim.Optimizer], clip_norm: float | None) -> None:
    """One step of every optimizer down the gradients."""
    if clip_norm is not None:
        weights = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
        nn.utils.clip_grad_norm_(weights, clip_norm)
    for optimizer in optimizers:
        optimizer.step()
