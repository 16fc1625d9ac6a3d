"""Bundles made without a run, for the tests of what is done with them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepcluster.checkpoint import BackboneDescription
from deepcluster.using.bundle import Bundle, Clusters, Features, Preprocessing, Reduction
from deepcluster.using.nearest import features_of, reduced

CPU = torch.device("cpu")
DESCRIPTION = BackboneDescription("convnet", 1, 8, sobel=False)


def motifs(count: int = 4, *, side: int = 8, seed: int = 0) -> np.ndarray:
    """Images of noise, uint8 [count, 1, side, side], each a cluster of its own in `noise_bundle`."""
    return np.random.default_rng(seed).integers(0, 256, (count, 1, side, side)).astype(np.uint8)


def noise_bundle(count: int = 4, *, reduction: Reduction | None = None, batch_size: int = 4) -> Bundle:
    """An untrained network, and the features of `motifs` as centroids; an outlier is whatever is no motif."""
    torch.manual_seed(0)
    backbone = DESCRIPTION.build().eval()
    preprocessing = Preprocessing(8, 1, True, (0.5,), (0.29,))
    empty = Clusters(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), np.zeros(0))
    reduction = reduction or Reduction()
    about = {"clustering": "noise", "labels": "final", "epoch": 1, "provenance": {"seed": 1}}
    bare = Bundle(DESCRIPTION, backbone, preprocessing, Features(batch_size), reduction, empty, about)
    centroids_Kd = np.concatenate(list(reduced(features_of(bare, [motifs(count)], CPU), reduction)))
    clusters = Clusters(centroids_Kd, np.ones(count, np.int64), np.full(count, 1e-6))
    return Bundle(DESCRIPTION, backbone, preprocessing, Features(batch_size), reduction, clusters, about)


def save_motif(path: Path, number: int) -> Path:
    """A PNG of the motif whose cluster has that number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(motifs(number + 1)[number, 0]).save(path)
    return path
