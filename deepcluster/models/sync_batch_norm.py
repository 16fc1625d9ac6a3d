"""Batch norm over the images of all processes, so that its statistics are those of the whole batch.

torch's own is for GPUs alone; what stands here does the same on CPUs.
"""

from typing import Any

import torch
from torch import Tensor, nn
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
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        axes = [axis for axis in range(input.dim()) if axis != 1]
        values = input.float()
        counted = values.new_full((1,), input.numel() / input.shape[1])
        summed = total(torch.cat([values.sum(axes), counted]))
        count, mean_C = summed[-1].detach(), summed[:-1] / summed[-1].detach()
        centred = values - mean_C.view(shape)
        variance_C = total(centred.square().sum(axes)) / count
        self._follow(mean_C.detach(), variance_C.detach() * count / (count - 1))
        scaled = centred * (variance_C + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
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
