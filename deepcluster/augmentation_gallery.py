"""`deepcluster augmentations`: a sheet of images, each beside random views of it as training would draw them.

Shapes: N images of the data set, R images shown, V views of each, C channels, H and W pixels.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.augment import Augmentation, augment, augmentation_of
from deepcluster.errors import ArtifactError, UserError
from deepcluster.evaluation.settings_used import data_changed, in_words
from deepcluster.inspection.gallery import sheet_png
from deepcluster.params import load_params
from deepcluster.pixels import to_float
from deepcluster.seeding import torch_generator

MOST_IMAGES, MOST_VIEWS = 50, 20  # about a gigabyte of colour images of 512 pixels


def show_augmentations(images: int, views: int, epoch: int, out: Path) -> None:
    """Publish the sheet at `out`; print its path, and what is on. Reads data/dataset/images.zarr and params.yaml alone.

    Fewer than `images` if there are not as many. UserError for a number out of range, and an `out` that is no place for
    a PNG.
    """
    for option, value, most in (("--images", images, MOST_IMAGES), ("--views", views, MOST_VIEWS)):
        if not 1 <= value <= most:
            raise UserError(f"{option}: must be from 1 to {most}; got {value}")
    if epoch < 1:
        raise UserError(f"--epoch: must be >= 1 (nothing is trained in epoch 0); got {epoch}")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out: must be a file name that ends in .png; got {out}")
    if out.is_dir():
        raise UserError(f"--out: must be a file name; {out} is a folder")
    params = load_params()
    if not layout.IMAGES.exists() and artifacts.elsewhere(layout.IMAGES) is None:
        raise ArtifactError(f"{layout.IMAGES}: not found; run `deepcluster run prepare`")  # for this no more is needed
    store = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    if not out.parent.is_dir():
        raise UserError(f"--out: {out.parent}: no such folder")
    augmentation = augmentation_of(params.augment, store.attributes["params"]["name"])
    originals_RCHW = np.concatenate([store.read("images", slice(i, i + 1)) for i in _spread(store.samples, images)])
    sheet_RMCHW = originals_and_views(originals_RCHW, augmentation, views=views, seed=params.seed, epoch=epoch)
    try:
        with artifacts.publishing(out) as partial:
            partial.write_bytes(sheet_png(sheet_RMCHW))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    print(f"{out}: {len(sheet_RMCHW)} of {store.samples:,} images, each with {views} views")
    if keys := data_changed(store, params):
        print(
            f"of images prepared with other settings ({in_words(keys)}): `deepcluster run prepare` follows params.yaml"
        )
    print(f"augmentations: {described(augmentation, channels=originals_RCHW.shape[1])}")


def originals_and_views(
    originals_RCHW: NDArray[np.uint8], augmentation: Augmentation, *, views: int, seed: int, epoch: int
) -> NDArray[np.uint8]:
    """uint8 [R, 1 + V, C, H, W]: each image, then its views before they are normalised.

    The transforms and random streams are those of the epoch's training. It draws for other batches, so its views are
    not these very ones.
    """
    generator, colour_generator = (torch_generator(seed, purpose, epoch) for purpose in ("augment", "colour"))
    images_RCHW = to_float(torch.from_numpy(originals_RCHW))
    views_VRCHW = [augment(images_RCHW, augmentation, generator, colour_generator) for _ in range(views)]
    pixels_VRCHW = [view.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy() for view in views_VRCHW]
    return np.stack([originals_RCHW, *pixels_VRCHW], axis=1)


def described(augmentation: Augmentation, *, channels: int) -> str:
    """Which transforms are on and how strong, in the order in which they come; `channels`: of the images."""
    flips = {"flip": augmentation.flip, "vertical_flip": augmentation.vertical_flip}
    low, high = augmentation.crop_scale
    crop = [f"crop to {low:.0%} to {high:.0%} of the area"] if augmentation.crop else []
    degrees = {"shear": augmentation.shear, "rotation": augmentation.rotation}
    zoom = [f"zoom {augmentation.zoom[0]:g} to {augmentation.zoom[1]:g}"] if augmentation.zoom != (1, 1) else []
    translate = [f"translate by up to {augmentation.translate:.0%}"] if augmentation.translate else []
    factors = {"brightness": augmentation.brightness, "contrast": augmentation.contrast}
    turn = [f"hue +-{augmentation.hue:g} of a turn"] if augmentation.hue and channels > 1 else []
    if channels > 1:
        factors["saturation"] = augmentation.saturation
    greyed = {"grayscale": augmentation.grayscale} if channels > 1 else {}
    shares = greyed | {"autocontrast": augmentation.autocontrast, "equalize": augmentation.equalize}
    parts = [
        *crop,
        *(f"{name} for half" for name, on in flips.items() if on),
        *(f"{name} +-{value:g} degrees" for name, value in degrees.items() if value),
        *zoom,
        *translate,
        *(f"{name} 1 +- {value:g}" for name, value in factors.items() if value),
        *turn,
        *(f"{name} for {value:.0%}" for name, value in shares.items() if value),
    ]
    return ", ".join(parts) or "none is on, so every view is the image itself"


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` row numbers (or all, if there are not as many), as evenly spaced as they can be, from the first."""
    taken = min(count, wanted)
    return [count * place // taken for place in range(taken)]
