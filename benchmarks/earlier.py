"""The data path of the usual loader, as a reference: every image through PIL, one by one, in one process, each time.

Extraction resizes to 256, takes the central 224 and normalises; training takes a random resized crop and a flip.
The network is the same, in float32 and the default memory layout, under torch's default SGD. Photos start as 500x375
JPEG files in memory, which that path decodes in every pass, as it does without a cache of decoded images. MNIST starts
decoded and is enlarged from 28x28 to 224.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.data import Source, smooth
from benchmarks.networks import CLUSTERS, SGD
from deepcluster.models.build import Arch, build_backbone, build_head

SIZE = 224


class _Transformed(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, images: list[Image.Image | bytes], transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image)).convert("RGB")
        return self.transform(image), index % CLUSTERS


@dataclass
class EarlierEpoch:
    """Extraction and training of one epoch over PIL images of C channels."""

    arch: Arch
    images: list[Image.Image | bytes]
    channels: int
    still: Any
    random: Any
    batch_size: int = 32
    backbone: Any = field(init=False)
    head: Any = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.backbone = build_backbone(self.arch, channels=self.channels, image_size=SIZE, sobel=False, grayscale=False)
        self.head = build_head(self.backbone.feature_dim, CLUSTERS)
        settings = {"lr": SGD.lr, "momentum": SGD.momentum, "weight_decay": SGD.weight_decay}
        self.optimizers = [torch.optim.SGD(module.parameters(), **settings) for module in (self.backbone, self.head)]

    def epoch(self) -> int:
        self.extract()
        return self.train()

    def transform_only(self) -> int:
        """The images of one extraction pass, without the network."""
        return sum(len(batch) for batch, _ in self._loader(self.still))

    def extract(self) -> int:
        self.backbone.eval()
        with torch.no_grad():
            return sum(len(self.backbone(batch)) for batch, _ in self._loader(self.still))

    def train(self) -> int:
        self.backbone.train()
        for batch, labels in self._loader(self.random):
            logits = self.head(self.backbone.head_activation(self.backbone(batch)))
            loss = F.cross_entropy(logits, labels)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
        return len(self.images)

    def _loader(self, transform: Any) -> Any:
        return DataLoader(_Transformed(self.images, transform), batch_size=self.batch_size, num_workers=0)


def earlier_photos(arch: Arch, *, count: int, batch_size: int = 32) -> EarlierEpoch:
    """AlexNet or ResNet18 on photos."""
    images = [_jpeg(pixels) for pixels in smooth(count, 375, 500)]
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    still = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIZE), *normalise])
    random = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *normalise])
    return EarlierEpoch(arch, images, 3, still, random, batch_size)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def earlier_mnist(source: Source, *, count: int, batch_size: int = 32) -> EarlierEpoch:
    """AlexNet on MNIST, enlarged."""
    images = [Image.fromarray(pixels) for pixels in source.digits(count)]
    normalise = [transforms.ToTensor(), transforms.Normalize([0.13], [0.31])]
    enlarged = transforms.Compose([transforms.Resize((SIZE, SIZE)), *normalise])
    return EarlierEpoch("alexnet", images, 1, enlarged, enlarged, batch_size)
