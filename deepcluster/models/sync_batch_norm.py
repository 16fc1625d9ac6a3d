"""Batch norm over the images of all processes, so that its statistics are those of the whole batch.

torch's own is for GPUs alone; what stands here does the same on CPUs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from deepcluster.distributed import sum_of_tensors


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Every batch norm in the network replaced, in place, over the same weights and statistics, under the same name."""
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, SyncBatchNorm(child))
        else:
            synchronise(child, device)
    return network


class SyncBatchNorm(_BatchNorm):
    """A batch norm (Ioffe and Szegedy 2015) whose mean and variance are taken over all processes' inputs [N, C, ...].

    In evaluation it is the one that it is made of, whose weights and statistics it has.
    """

    def __init__(self, of: _BatchNorm) -> None:
        super().__init__(of.num_features, of.eps, of.momentum, of.affine, of.track_running_stats)
        self._parameters, self._buffers, self.training = of._parameters, of._buffers, of.training

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        scaled: Tensor
        with torch.autocast(input.device.type, enabled=False):
            scaled, mean_C, variance_C, count = _Normalised.apply(input.float(), self.weight, self.bias, self.eps)
        self._follow(mean_C, variance_C * count / (count - 1))
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """The running statistics move by the momentum."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(variance_C, momentum)


class _Normalised(torch.autograd.Function):
    """Batch norm of x [N, C, ...] and its gradient, in torch's own kernels for statistics that are given.

    With x^ = (x - mean) / sigma, weight w and the gradient g of the output, the gradient of x is
    w / sigma (g - sum(g) / n - x^ sum(g x^) / n), n, mean, sigma and sums being those of all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own, own_count = torch.batch_norm_update_stats(values, None, None, 0.0), values.numel() // values.shape[1]
        mean_C, variance_C = (each.double() for each in own)
        sums = torch.stack([torch.ones_like(mean_C), mean_C, variance_C + mean_C.square()]) * own_count
        counts_C, sum_C, squares_C = sum_of_tensors(sums)
        count = counts_C[0]
        exact_mean_C = sum_C / count
        mean_C = exact_mean_C.to(values.dtype)
        variance_C = (squares_C / count - exact_mean_C.square()).clamp(min=0).to(values.dtype)
        ctx.save_for_backward(values, weight, mean_C, variance_C, count)
        ctx.eps = eps
        scaled = F.batch_norm(values, mean_C, variance_C, weight, bias, eps=eps)
        ctx.mark_non_differentiable(mean_C, variance_C, count)
        return scaled, mean_C, variance_C, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        values, weight, mean_C, variance_C, count = ctx.saved_tensors
        of_values, along_C, sum_C = torch.ops.aten.native_batch_norm_backward(
            gradient, values, weight, mean_C, variance_C, None, None, False, ctx.eps, [True, True, True]
        )
        all_along_C, all_sum_C = sum_of_tensors(torch.stack([along_C, sum_C]))
        scale_C = (variance_C + ctx.eps).rsqrt() / count.to(values.dtype)
        scale_C = -scale_C if weight is None else -scale_C * weight
        of_values += F.batch_norm(values, mean_C, variance_C, scale_C * all_along_C, scale_C * all_sum_C, eps=ctx.eps)
        return of_values, None if weight is None else along_C, None if weight is None else sum_C, None


def total(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor of the same shape in each; gradients flow to all that were added."""
    found: Tensor = _Total.apply(values)
    return found


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_of_tensors(values.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_of_tensors(gradient.contiguous().clone())
