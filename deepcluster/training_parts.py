"""What a step of training needs where several processes each have a part of the batch.

The batch is that of one process, cut into parts; the loss that each goes down is so weighted that the mean of all
gradients, which DistributedDataParallel takes, is the gradient of the whole batch's loss. So learning rates stay as
they are, whatever the number of processes.
Shapes: B images of the whole batch, P processes, K clusters, D projected features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.distributed import ALONE, Process, blocks, sum_of_tensors
from deepcluster.models.build import Backbone, compiled
from deepcluster.models.heads import Heads
from deepcluster.models.sync_batch_norm import synchronise, total

LEAST_IMAGES = 2  # of a process: batch norm needs two

Network = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` of a batch of `whole`, which `process` has.

    All of them, in every process, where there are not two for each.
    """

    start: int
    stop: int
    whole: int
    process: Process = ALONE

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def shared(self) -> bool:
        """Whether other processes have the other images."""
        return self.stop - self.start < self.whole

    @property
    def weight(self) -> float:
        """Of this part's mean, in the mean over the processes that equals the batch's: 1 where all have as many."""
        return (self.stop - self.start) * self.process.count / self.whole if self.shared else 1.0

    def everyone(self, rows_BD: Tensor) -> Tensor:
        """All processes' rows [B, ...], in the batch's order, from this one's; gradients flow to all."""
        if not self.shared:
            return rows_BD
        beside = [0, 0] * (rows_BD.dim() - 1) + [self.start, self.whole - self.stop]
        return total(F.pad(rows_BD, beside))

    def mean(self, numbers: Tensor) -> Tensor:
        """Over all processes."""
        return sum_of_tensors(numbers) / self.process.count if self.process.count > 1 else numbers


def part_of(whole: int, process: Process) -> Part:
    """The process's part of a batch of so many images."""
    if whole < LEAST_IMAGES * process.count:
        return Part(0, whole, whole, process)
    own = blocks(whole, process.count)[process.rank]
    return Part(own.start, own.stop, whole, process)


def network_of(
    backbone: Backbone, heads: Heads, *, compile: bool, process: Process, device: torch.device, sync_batch_norm: bool
) -> Network:
    """Backbone and heads as one: images to (logits [N, K], projected features [N, D]).

    Of several processes gradients are averaged over all, and weights begin as the first one's. Without
    `sync_batch_norm` each takes batch norm's statistics from its own images; those of the first one are kept.
    """
    if process.count == 1:
        return _Network(backbone, heads, compile)
    if sync_batch_norm:
        synchronise(backbone, device)
    from torch.nn.parallel import DistributedDataParallel

    places = [device] if device.type == "cuda" else None
    network = _Network(backbone, heads, compile)
    found = DistributedDataParallel(network, device_ids=places)
    found.broadcast_buffers = not sync_batch_norm  # before each step; they begin as the first one's in any case
    return found


class _Network(nn.Module):
    def __init__(self, backbone: Backbone, heads: Heads, compile: bool) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads
        self._run = [compiled(backbone, compile)]  # in a list: the same weights are not to be registered twice

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.heads(self._run[0](images_NCHW), self.backbone.head_activation)
        return found
