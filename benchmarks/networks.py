"""A pass of extraction and an epoch of training, ours and bare, on images in memory; each returns its images.

The bare ones are what the hardware gives: the same network, precision and memory layout on one random batch that
already lies in memory, with nothing around forward, or forward + backward + optimizer.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.data import noise
from deepcluster.augment import Augmentation
from deepcluster.contrastive import Objective
from deepcluster.features import extract_features
from deepcluster.models.build import Arch, Precision, autocast, build_backbone
from deepcluster.models.heads import build_heads
from deepcluster.training import ON_PSEUDO_LABELS, OptimizerSettings, build_optimizer, train_epoch

CPU = torch.device("cpu")
CLUSTERS = 100
SGD = OptimizerSettings("sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)
PHOTOS = Augmentation(crop=True, flip=True)
DIGITS = Augmentation(rotation=12.0, translate=0.1, zoom=(0.85, 1.15), shear=8.0)


@dataclass
class Case:
    """One backbone on images uint8 [N, C, S, S] in one precision."""

    arch: Arch
    images: NDArray[np.uint8]
    batch_size: int
    precision: Precision
    device: torch.device = CPU
    backbone: Any = field(init=False)
    heads: Any = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        _, channels, size, _ = self.images.shape
        self.backbone = build_backbone(self.arch, channels=channels, image_size=size, sobel=False, grayscale=False)
        self.backbone.to(self.device, memory_format=torch.channels_last)
        self.heads = build_heads(self.backbone.feature_dim, CLUSTERS).to(self.device)
        self.optimizers = [build_optimizer(module.parameters(), SGD) for module in (self.backbone, self.heads)]
        self.labels = np.random.default_rng(0).integers(CLUSTERS, size=len(self.images)).astype(np.int32)
        inputs = torch.randn(self.batch_size, channels, size, size)
        self.inputs = inputs.to(self.device, memory_format=torch.channels_last)
        self.targets = torch.randint(CLUSTERS, (self.batch_size,)).to(self.device)
        self.batches = len(self.images) // self.batch_size

    @property
    def name(self) -> str:
        return f"{self.arch} {self.images.shape[2]}px {self.precision}"

    def extract(self) -> int:
        mean, std = self._statistics()
        blocks = extract_features(
            self.backbone,
            self.images,
            batch_size=self.batch_size,
            mean=mean,
            std=std,
            device=self.device,
            precision=self.precision,
        )
        return sum(len(block) for block in blocks)

    def bare_forward(self) -> int:
        self.backbone.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for _ in range(self.batches):
                self.backbone(self.inputs)
        self._finish()
        return self.batches * self.batch_size

    def train(self, objective: Objective = ON_PSEUDO_LABELS) -> int:
        mean, std = self._statistics()
        steps = train_epoch(
            self.backbone,
            self.heads,
            self.images,
            self.labels,
            indices=np.random.default_rng(1).permutation(len(self.images)),
            batch_size=self.batch_size,
            augmentation=PHOTOS if self.images.shape[2] > 64 else DIGITS,
            mean=mean,
            std=std,
            optimizers=self.optimizers,
            generator=torch.Generator().manual_seed(1),
            device=self.device,
            precision=self.precision,
            objective=objective,
        )
        images = sum(step.images for step in steps)
        self._finish()
        return images

    def bare_steps(self) -> int:
        self.backbone.train()
        for _ in range(self.batches):
            with autocast(self.device, self.precision):
                logits, _ = self.heads(self.backbone(self.inputs), self.backbone.head_activation)
            loss = F.cross_entropy(logits, self.targets)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
        self._finish()
        return self.batches * self.batch_size

    def epoch(self) -> int:
        """Extraction, then training, over the same images."""
        self.extract()
        return self.train()

    def _finish(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _statistics(self) -> tuple[list[float], list[float]]:
        channels = self.images.shape[1]
        return [0.5] * channels, [0.25] * channels


def photo_case(arch: Arch, precision: Precision, *, size: int = 224, count: int = 64, batch_size: int = 32) -> Case:
    return Case(arch, noise(count, 3, size, size), batch_size, precision)
