"""Augmentation of a batch at once, against torchvision's transforms of the same strengths image by image.

Both start from uint8 images in memory and end with float32 in [0, 1]; torchvision's affine is bilinear, as ours is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from benchmarks import plots, results
from benchmarks.data import Source, noise
from benchmarks.results import Comparison, compare
from deepcluster.augment import Augmentation, augment
from deepcluster.pixels import to_float

BATCH = 256
GEOMETRY: dict[str, Any] = {"crop": True, "flip": True, "rotation": 12.0, "translate": 0.1, "zoom": (0.85, 1.15)}
COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "autocontrast": 0.5, "equalize": 0.5}
OURS = {
    "geometry": Augmentation(**GEOMETRY, shear=8.0),
    "geometry and colour": Augmentation(**GEOMETRY, shear=8.0, vertical_flip=True, **COLOUR),
}


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Comparison]:
    """Grey images of 28 pixels, colour ones of 32 and 96."""
    found = [
        row for channels, size in ((1, 28), (3, 32), (3, 96)) for row in of_size(source, channels, size, quick=quick)
    ]
    print("\n" + results.table(results.COMPARISON_HEADER, [results.comparison_row(row) for row in found]))
    plots.ratios(output / "augment.svg", found)
    return found


def of_size(source: Source, channels: int, size: int, *, quick: bool) -> Iterator[Comparison]:
    """Geometry alone, then all of it; a batch of ours for every eighth of it image by image."""
    pixels = source.digits(BATCH)[:, None] if size == 28 else noise(BATCH, channels, size, size)
    batch_NCHW = torch.from_numpy(pixels)
    one_by_one = batch_NCHW[: BATCH // 8]
    for name, augmentation in OURS.items():
        generator, colour_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        transform = torchvision_transforms(size, colour=augmentation.equalize > 0)

        def ours(augmentation: Any = augmentation, generators: Any = (generator, colour_generator)) -> int:
            augment(to_float(batch_NCHW), augmentation, *generators)
            return BATCH

        def reference(transform: Any = transform) -> int:
            torch.stack([transform(image) for image in one_by_one])
            return len(one_by_one)

        yield compare(
            f"{name} {size}px {'grey' if channels == 1 else 'colour'}",
            ours,
            reference,
            against="torchvision v2, each image",
            unit="images",
            rounds=3 if quick else 31,
        )


def torchvision_transforms(size: int, *, colour: bool) -> v2.Compose:
    """What `OURS` holds, with torchvision's classes."""
    bilinear = v2.InterpolationMode.BILINEAR
    geometry = [
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=False),
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(12, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=8, interpolation=bilinear),
    ]
    coloured = [
        v2.RandomVerticalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.RandomAutocontrast(),
        v2.RandomEqualize(),
    ]
    return v2.Compose([*geometry, *(coloured if colour else []), v2.ToDtype(torch.float32, scale=True)])
