"""Keyed randomness."""

import numpy as np
import torch

from deepcluster.seeding import derive_seed, numpy_generator, seed_torch, torch_generator


def test_seeds_are_the_documented_bits_of_sha256():
    import hashlib

    expected = int(hashlib.sha256(b"1/kmeans/3").hexdigest()[:8], 16) // 2
    assert derive_seed(1, "kmeans", 3) == expected


def test_every_use_has_its_own_stream():
    seeds = {
        derive_seed(seed, purpose, epoch)
        for seed in range(5)
        for purpose in ("backbone", "kmeans", "head", "sampler", "augment", "colour")
        for epoch in range(5)
    }
    assert len(seeds) == 150


def test_same_key_same_draws():
    assert numpy_generator(1, "sampler", 2).random() == numpy_generator(1, "sampler", 2).random()
    assert torch.equal(
        torch.rand(3, generator=torch_generator(1, "augment", 2)),
        torch.rand(3, generator=torch_generator(1, "augment", 2)),
    )
    seed_torch(1, "head", 1)
    first = torch.rand(2)
    np.random.default_rng().random()
    seed_torch(1, "head", 1)
    assert torch.equal(first, torch.rand(2))
