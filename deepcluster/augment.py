"""Batched random transforms on the images' own device; every image draws its own parameters.

Crop, flips and affine are one matrix per image and one resampling per batch; colour follows. Parameters are drawn on
the CPU, so a seed means the same on every device; every parameter is drawn whether it is used or not, so switching one
off leaves the draws of the others as they were. Shapes: N images, C channels, H height, W width, D draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster import colour
from deepcluster.params import Augment, DataName, flips, padding

CROP_TRIES = 10
DRAWS = 2 * CROP_TRIES + 8
COLOUR_DRAWS = 7  # vertical flip among them, which came later: with it the older draws would have changed


@dataclass(frozen=True)
class Augmentation:
    """Which random transforms, and how strong. The defaults leave images as they are."""

    crop: bool = False
    """Random resized crop (Inception style)."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's share of the image area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over height, log-uniform."""
    flip: bool = False
    """Left-right, for half of the images."""
    rotation: float = 0.0
    """Degrees, drawn from -rotation to +rotation."""
    translate: float = 0.0
    """Share of width and of height, drawn from -translate to +translate for each."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of the magnification; above 1 the content grows."""
    shear: float = 0.0
    """Degrees of horizontal shear, drawn from -shear to +shear."""
    vertical_flip: bool = False
    """Upside down, for half of the images."""
    brightness: float = 0.0
    """Factor drawn from 1 - brightness to 1 + brightness; contrast and saturation likewise."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Turn of the colour circle, drawn from -hue to +hue, where 1 is a full turn."""
    grayscale: float = 0.0
    """Share of the images that lose their colours."""
    autocontrast: float = 0.0
    """Share of the images whose darkest value becomes 0 and brightest 1, each channel on its own."""
    equalize: float = 0.0
    """Share of the images whose histogram is equalised, each channel on its own."""
    padding: Literal["zeros", "border", "reflection"] = "zeros"
    """Beyond the image: black, which suits digits and drawings; the edge repeated, or mirrored, for photos."""


def augmentation_of(settings: Augment, data: DataName) -> Augmentation:
    """What section `augment` of params.yaml asks for; the data set decides what is null there."""
    suited = {"flip": flips(settings, data), "padding": padding(settings, data)}
    return Augmentation(**settings.model_dump() | suited)


def augment(
    images_NCHW: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    colour_generator: torch.Generator | None = None,
    *,
    size: int | None = None,
    first: int = 0,
    whole: int | None = None,
) -> Tensor:
    """Randomly transformed float images of the same shape, dtype and device; bilinear, so never outside [0, 1].

    `size`: [N, C, size, size] instead. Where that means fewer pixels than a crop has, some of these are skipped.
    `first`, `whole`: these are images of a batch of `whole`, from number `first` on, and are drawn for as there.

    Crop first, then flips, then shear, rotate, zoom and move about the centre; then brightness, contrast, saturation,
    hue, grayscale, autocontrast, equalize. Both generators live on the CPU. Vertical flip and colour draw from the
    second; if that is None, from one that is seeded with what a copy of `generator` draws first, so that they too
    differ from call to call while `generator` goes on as if there were no colour. Grayscale draws from one beside the
    second in the same way.
    """
    count, _, height, width = images_NCHW.shape
    other = _beside(generator) if colour_generator is None else colour_generator
    drawn, own = whole or count, slice(first, first + count)
    grey_N = _become_grey(augmentation.grayscale, drawn, other)[own]
    colour_DN = torch.rand((COLOUR_DRAWS, drawn), generator=other)[:, own]
    uniform_DN = torch.rand((DRAWS, drawn), generator=generator)[:, own]
    crop_N33 = _crop(augmentation, uniform_DN[: 2 * CROP_TRIES + 2], aspect=width / height)
    flip_N33 = _flip(augmentation, uniform_DN[2 * CROP_TRIES + 2], colour_DN[0])
    affine_N33 = _affine(augmentation, uniform_DN[2 * CROP_TRIES + 3 :], aspect=width / height)
    # affine_grid asks where an output pixel comes from, hence the last transform stands rightmost, inverted
    theta_N23 = (crop_N33 @ flip_N33 @ torch.linalg.inv(affine_N33))[:, :2].to(images_NCHW)
    shape = [*images_NCHW.shape[:2], size or height, size or width]
    grid_NHW2 = F.affine_grid(theta_N23, shape, align_corners=False)
    moved_NCHW = F.grid_sample(images_NCHW, grid_NHW2, padding_mode=augmentation.padding, align_corners=False)
    return _coloured(moved_NCHW, augmentation, colour_DN[1:], grey_N)


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform


def _matrices(count: int, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """[count, 3, 3] identities with some entries, each [count], replaced."""
    matrices_N33 = torch.eye(3).repeat(count, 1, 1)
    for (row, column), values_N in entries.items():
        matrices_N33[:, row, column] = values_N
    return matrices_N33


def _crop(augmentation: Augmentation, uniform_DN: Tensor, *, aspect: float) -> Tensor:
    """Output to input coordinates in [-1, 1]. Of ten drawn crops the first that fits; if none does, the first, cut."""
    count = uniform_DN.shape[1]
    if not augmentation.crop:
        return _matrices(count, {})
    area_TN = _between(*augmentation.crop_scale, uniform_DN[:CROP_TRIES])
    log_low, log_high = (math.log(ratio) for ratio in augmentation.crop_ratio)
    ratio_TN = torch.exp(_between(log_low, log_high, uniform_DN[CROP_TRIES : 2 * CROP_TRIES])) / aspect
    width_TN, height_TN = torch.sqrt(area_TN * ratio_TN), torch.sqrt(area_TN / ratio_TN)
    first_1N = ((width_TN <= 1) & (height_TN <= 1)).int().argmax(0, keepdim=True)
    width_N = width_TN.gather(0, first_1N)[0].clamp(max=1)
    height_N = height_TN.gather(0, first_1N)[0].clamp(max=1)
    x_N = (1 - width_N) * _between(-1, 1, uniform_DN[-2])
    y_N = (1 - height_N) * _between(-1, 1, uniform_DN[-1])
    return _matrices(count, {(0, 0): width_N, (0, 2): x_N, (1, 1): height_N, (1, 2): y_N})


def _flip(augmentation: Augmentation, uniform_N: Tensor, vertical_N: Tensor) -> Tensor:
    ones_N = torch.ones_like(uniform_N)
    x_N = torch.where(uniform_N < 0.5, -1.0, 1.0) if augmentation.flip else ones_N
    y_N = torch.where(vertical_N < 0.5, -1.0, 1.0) if augmentation.vertical_flip else ones_N
    return _matrices(len(uniform_N), {(0, 0): x_N, (1, 1): y_N})


def _affine(augmentation: Augmentation, uniform_DN: Tensor, *, aspect: float) -> Tensor:
    """Input to output coordinates in [-1, 1]: shear, rotate, zoom, then move; `aspect` keeps right angles right."""
    count = uniform_DN.shape[1]
    angle_N = torch.deg2rad(_between(-augmentation.rotation, augmentation.rotation, uniform_DN[0]))
    slope_N = torch.tan(torch.deg2rad(_between(-augmentation.shear, augmentation.shear, uniform_DN[1])))
    zoom_N = _between(*augmentation.zoom, uniform_DN[2])
    x_N, y_N = (2 * _between(-augmentation.translate, augmentation.translate, u) for u in uniform_DN[3:5])
    cos_N, sin_N = zoom_N * torch.cos(angle_N), zoom_N * torch.sin(angle_N)
    turn_N33 = _matrices(count, {(0, 0): cos_N, (0, 1): -sin_N / aspect, (1, 0): sin_N * aspect, (1, 1): cos_N})
    move_N33 = _matrices(count, {(0, 2): x_N, (1, 2): y_N})
    return move_N33 @ turn_N33 @ _matrices(count, {(0, 1): slope_N / aspect})


def _beside(generator: torch.Generator) -> torch.Generator:
    """A generator that depends on the state of `generator`, which stays as it is."""
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=copy)))


def _become_grey(share: float, count: int, generator: torch.Generator) -> Tensor:
    """Which of so many images; bool [N]."""
    if not share:
        return torch.zeros(count, dtype=torch.bool)
    return torch.rand(count, generator=_beside(generator)) < share


def _coloured(images_NCHW: Tensor, augmentation: Augmentation, uniform_DN: Tensor, grey_N: Tensor) -> Tensor:
    """The changes that are on, in a fixed order, each with its own row of the draws; `grey_N`: which become grey."""
    factors = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    shares = (augmentation.autocontrast, augmentation.equalize)
    if not any((*factors, augmentation.hue, augmentation.grayscale, *shares)):
        return images_NCHW
    drawn_DN = uniform_DN[:4].to(images_NCHW)
    for change, strength, drawn_N in zip(
        (colour.brighten, colour.contrast, colour.saturate), factors, drawn_DN[:3], strict=True
    ):
        if strength:
            images_NCHW = change(images_NCHW, _between(1 - strength, 1 + strength, drawn_N))
    if augmentation.hue:
        images_NCHW = colour.turn_hue(images_NCHW, _between(-augmentation.hue, augmentation.hue, drawn_DN[3]))
    images_NCHW = _for_some(images_NCHW, colour.to_grey, grey_N)
    for whole, share, uniform_N in zip((colour.autocontrast, colour.equalize), shares, uniform_DN[4:], strict=True):
        images_NCHW = _for_some(images_NCHW, whole, uniform_N < share)
    return images_NCHW


def _for_some(images_NCHW: Tensor, change: Callable[[Tensor], Tensor], chosen_N: Tensor) -> Tensor:
    """The chosen images changed, the others as they are; `chosen_N` lies on the CPU, so no GPU has to be asked."""
    if not chosen_N.any():
        return images_NCHW
    rows = chosen_N.nonzero()[:, 0].to(images_NCHW.device)
    return images_NCHW.index_copy(0, rows, change(images_NCHW[rows]))
