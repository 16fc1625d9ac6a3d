"""To the device and back, without waiting for what need not be waited for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def staging(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised host memory to fill for the device: pinned for a GPU, which then copies from it on its own."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device. A GPU is not waited for where the memory is pinned; it is used again after that."""
    return tensor.to(device, non_blocking=True)


class Arriving:
    """A tensor on its way to host memory. Waiting for it waits for nothing that was queued on the GPU after it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)  # into pinned memory, if it comes from a GPU
        self._event = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def get(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._host
