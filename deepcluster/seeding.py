"""Keyed randomness: every use has its own stream, derived from (seed, purpose, epoch).

So a stage run alone draws what it draws in a sequence, and a resumed run equals an uninterrupted one.
"""

import hashlib
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Purpose = Literal[
    "backbone", "pca", "kmeans", "clustering", "head", "sampler", "augment", "colour", "dropout",
    "evaluate", "held_out", "probe", "retrieval", "overclustering", "trust", "gallery",
]  # fmt: skip


def derive_seed(seed: int, purpose: Purpose, epoch: int) -> int:
    """A seed in [0, 2**31) for one use: the first 31 bits of SHA-256 over "seed/purpose/epoch"."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def numpy_generator(seed: int, purpose: Purpose, epoch: int) -> np.random.Generator:
    """A NumPy generator for one use."""
    return np.random.default_rng(derive_seed(seed, purpose, epoch))


def torch_generator(seed: int, purpose: Purpose, epoch: int) -> "torch.Generator":
    """A torch CPU generator for one use."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch))


def seed_torch(seed: int, purpose: Purpose, epoch: int) -> None:
    """Seed torch's global generators: for what draws from them alone (weight initialisation, dropout)."""
    import torch

    torch.manual_seed(derive_seed(seed, purpose, epoch))
