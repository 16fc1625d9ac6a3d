"""Deterministic algorithms where params.yaml demands them: torch's own, and an error for an operation without one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from deepcluster.errors import UserError

WORKSPACE, FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
_NONE_HERE = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic_torch(demanded: bool) -> Iterator[None]:
    """Inside, if demanded, torch takes deterministic algorithms alone; afterwards its settings are as they were.

    cuBLAS gets a fixed workspace, unless the environment sets one; cuDNN neither tries algorithms out nor takes those
    that add up in any order. UserError where an operation has no deterministic algorithm, naming it. Imports torch, but
    only if demanded.
    """
    if not demanded:
        yield
        return
    import torch

    enabled, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(WORKSPACE, FIXED)  # read when the first product is made on a GPU
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if (sentence := _refusal(str(error))) is None:
            raise
        raise UserError(sentence) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark = before


def _refusal(message: str) -> str | None:
    """What to say of torch's message; None if that is of something else."""
    remedy = "set deterministic: false in params.yaml, or DEEPCLUSTER_DEVICE=cpu"
    if found := _NONE_HERE.search(message):
        return f"deterministic: torch has no deterministic algorithm for {found[1]} on this device; {remedy}"
    if WORKSPACE in message:
        now = os.environ.get(WORKSPACE)
        return f"deterministic: cuBLAS needs {WORKSPACE}={FIXED} (or :16:8) in the environment, now {now!r}; {remedy}"
    return None
