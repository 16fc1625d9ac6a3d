"""LARS: SGD whose steps are scaled layer by layer, so that large batches can have large learning rates.

With gradient g and weight w of a layer, decay b, learning rate l and momentum m (You et al. 2017, section 5):

    ratio = trust * |w| / (|g| + b |w|)          v = m v + ratio * (g + b w)          w = w - l v

As torch's SGD, and unlike the paper's algorithm 1, the velocity does not contain the learning rate, so a schedule acts
on all of it at once. Weights with one axis or none (biases, batch norm's) have no decay, and ratio 1 (Goyal et al. 2017
and most programs since); so have those whose weight or gradient is zero everywhere.
"""

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

TRUST = 0.001
OWN = ("lr", "momentum", "weight_decay", "trust")  # of what torch keeps in a group


class LARS(torch.optim.Optimizer):
    """`lr` >= 0, `momentum` in [0, 1), `weight_decay` >= 0; `trust`: the relative size of a step at lr 1."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = TRUST,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change every weight that has a gradient; no number is brought from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, **{name: group[name] for name in OWN})
        return loss

    def _step(
        self, weight: Tensor, gradient: Tensor, *, lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        if weight.ndim > 1:
            gradient = _scaled(weight, gradient, weight_decay, trust)
        state = self.state[weight]
        if not momentum:
            velocity = gradient
        elif "momentum_buffer" in state:
            velocity = state["momentum_buffer"].mul_(momentum).add_(gradient)
        else:
            velocity = state["momentum_buffer"] = gradient.clone()
        weight.sub_(lr * velocity)


def _scaled(weight: Tensor, gradient: Tensor, weight_decay: float, trust: float) -> Tensor:
    """ratio * (g + b w); ratio 1 where weight or gradient is zero."""
    length, slope = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
    ratio = torch.where((length > 0) & (slope > 0), trust * length / (slope + weight_decay * length), 1.0)
    return ratio * (gradient + weight_decay * weight)
