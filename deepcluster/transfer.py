"""To the device and back, without waiting for what need not be waited for."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A tensor of a writable array on the device; to a GPU through pinned memory, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Arriving:
    """A tensor on its way to host memory. Waiting for it waits for nothing that was queued on the GPU after it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)  # into pinned memory, if it comes from a GPU
        self._event = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def get(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._host
