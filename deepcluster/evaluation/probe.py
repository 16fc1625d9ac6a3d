"""The linear probe: how well a linear classifier on frozen features does (Zhang et al. 2016; Caron et al. 2018, 4.2).

Multinomial logistic regression by stochastic gradient descent: Nesterov momentum, a cosine of the learning rate down
to zero, no penalty. Features are standardised with mean and standard deviation of the rows to learn from, and divided
by sqrt(D), so that the same learning rates suit any number of features. Several are tried side by side on four fifths
of those rows; the one with the highest accuracy on the last fifth (of equal ones the smallest) is trained again on all
of them, and scored once on the rows to score.
Shapes: L rows to learn from, S rows to score, D features, C classes, B rows of a batch, R learning rates,
F rows that are fitted.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcluster.evaluation.held_out import Examples, stratified_fifth

LEARNING_RATES = (0.3, 1.0, 3.0, 10.0, 30.0)
BATCH = 256
MOMENTUM = 0.9
FEWEST_STEPS = 1000
FEWEST_EPOCHS = 10
_SMALLEST_STD = 1e-6  # of features that do not vary: they stay zero
_BLOCK_ROWS = 4096

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Probe:
    """accuracy: share of the scored rows that are right. learning_rate: the one that was picked."""

    accuracy: float
    learning_rate: float


def linear_probe(
    examples: Examples, *, classes: int, seed: int, device: torch.device, progress: Progress | None = None
) -> Probe:
    """Train and score a probe; `progress` is told (steps done, steps in total). Same seed and device, same result."""
    learn_LD, targets_L = examples.learn_LD, examples.learn_targets_L
    every_L = np.arange(len(targets_L))
    validate_V = stratified_fifth(targets_L, seed=seed)
    if not len(validate_V):  # one image a class: nothing can be set aside
        validate_V = every_L
    fit_F = np.setdiff1d(every_L, validate_V)
    first, second = steps_of(len(fit_F)), steps_of(len(every_L))

    def fitted(rows: NDArray[np.int64], rates: tuple[float, ...], before: int) -> Classifiers:
        found = _untrained(learn_LD, rows, classes, len(rates), device)
        for done in _fit(found, learn_LD, targets_L, rows, rates=rates, seed=seed):
            if progress:
                progress(before + done, first + second)
        return found

    validated_R = fitted(fit_F, LEARNING_RATES, 0).accuracies(learn_LD[validate_V], targets_L[validate_V])
    rate = LEARNING_RATES[int(np.argmax(validated_R))]
    final = fitted(every_L, (rate,), first)
    return Probe(float(final.accuracies(examples.score_SD, examples.score_targets_S)[0]), rate)


def steps_of(rows: int) -> int:
    """Batches that a probe on so many rows is trained on."""
    return max(FEWEST_STEPS, math.ceil(FEWEST_EPOCHS * rows / BATCH))


@dataclass(frozen=True)
class Classifiers:
    """Linear classifiers of several learning rates, on features standardised by mean and scale."""

    weights_DRC: Tensor
    biases_RC: Tensor
    mean_D: Tensor
    scale_D: Tensor

    def inputs(self, rows_BD: NDArray[np.float32]) -> Tensor:
        """Rows standardised, and divided by sqrt(D)."""
        return (torch.from_numpy(rows_BD).to(self.mean_D.device) - self.mean_D) * self.scale_D

    def scores(self, inputs_BD: Tensor) -> Tensor:
        """[B, R, C], by one product for all of them."""
        products_BX = inputs_BD @ self.weights_DRC.flatten(1)
        return products_BX.view(len(inputs_BD), *self.biases_RC.shape) + self.biases_RC

    def accuracies(self, rows_SD: NDArray[np.float32], targets_S: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of right answers of each, float64 [R]."""
        right_R = np.zeros(len(self.biases_RC))
        for start in range(0, len(rows_SD), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            found_BR = self.scores(self.inputs(rows_SD[block])).argmax(dim=2).cpu().numpy()
            right_R += (found_BR == targets_S[block, None]).sum(axis=0)
        return np.asarray(right_R / len(rows_SD))


def _fit(
    found: Classifiers,
    rows_LD: NDArray[np.float32],
    targets_L: NDArray[np.int64],
    own_F: NDArray[np.int64],
    *,
    rates: tuple[float, ...],
    seed: int,
) -> Iterator[int]:
    """Train on the rows `own_F`; yields the number of steps done.

    The gradient of the softmax's cross-entropy is written out: all learning rates share each batch's products.
    """
    values = (found.weights_DRC, found.biases_RC)
    velocities = tuple(torch.zeros_like(value) for value in values)
    rates_R1 = torch.tensor(rates, device=found.mean_D.device)[:, None]
    steps = steps_of(len(own_F))
    for step, batch_B in enumerate(_batches(own_F, steps, seed)):
        inputs_BD = found.inputs(rows_LD[batch_B])
        errors_BRC = found.scores(inputs_BD).softmax(dim=2)
        targets_B = torch.from_numpy(targets_L[batch_B]).to(errors_BRC.device)
        errors_BRC[torch.arange(len(batch_B), device=errors_BRC.device), :, targets_B] -= 1
        errors_BRC /= len(batch_B)
        gradients = ((inputs_BD.T @ errors_BRC.flatten(1)).view_as(found.weights_DRC), errors_BRC.sum(dim=0))
        now_R1 = rates_R1 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for value, velocity, gradient in zip(values, velocities, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient)
            value -= now_R1 * (gradient + MOMENTUM * velocity)
        yield step + 1


def _untrained(
    rows_LD: NDArray[np.float32], own_F: NDArray[np.int64], classes: int, count: int, device: torch.device
) -> Classifiers:
    """All weights zero; mean and standard deviation of the rows `own_F`, summed in float64."""
    blocks = [own_F[start : start + _BLOCK_ROWS] for start in range(0, len(own_F), _BLOCK_ROWS)]
    mean_D = sum(rows_LD[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(own_F)
    square_D = sum(np.square(rows_LD[block] - mean_D).sum(axis=0) for block in blocks)
    std_D = np.sqrt(square_D / len(own_F))
    scale_D = np.where(std_D > _SMALLEST_STD, 1 / np.maximum(std_D, _SMALLEST_STD), 0) / math.sqrt(len(std_D))
    return Classifiers(
        torch.zeros(len(std_D), count, classes, device=device),
        torch.zeros(count, classes, device=device),
        torch.tensor(mean_D, dtype=torch.float32, device=device),
        torch.tensor(scale_D, dtype=torch.float32, device=device),
    )


def _batches(own_F: NDArray[np.int64], steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`steps` batches of row numbers: epoch after epoch in an order of its own, without an incomplete last batch."""
    rng, given, size = np.random.default_rng(seed), 0, min(BATCH, len(own_F))
    while True:
        order_F = rng.permutation(own_F)
        for start in range(0, len(own_F) - size + 1, size):
            if given == steps:
                return
            given += 1
            yield order_F[start : start + size]
