"""Colour and vertical flip as `augment` draws them: for each image on its own, from a generator of their own."""

from colorsys import rgb_to_hsv
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from deepcluster.augment import COLOUR_DRAWS, Augmentation, augment

STRENGTHS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.2, "autocontrast": 0.6, "equalize": 0.5}
COLOURS = Augmentation(**STRENGTHS)
NEW = STRENGTHS | {"vertical_flip": True, "grayscale": 0.5}
MOVED = Augmentation(crop=True, rotation=30, translate=0.2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def images(count, channels=3, side=20):
    return torch.rand(count, channels, side, side, generator=seeded(7))


def run(images_NCHW, augmentation, seed=1):
    return augment(images_NCHW, augmentation, seeded(0), seeded(seed))


def levels_equalised(images):
    return reference.equalize((255 * images).round().byte()).float() / 255


def test_without_a_second_generator_each_call_has_colours_of_its_own():
    generator = seeded(3)
    views = [augment(images(8), COLOURS, generator) for _ in range(3)]
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    assert torch.equal(views[0], augment(images(8), COLOURS, seeded(3)))
    assert not torch.equal(views[0], augment(images(8), COLOURS, seeded(4)))


@pytest.mark.parametrize("name", NEW)
def test_two_views_of_one_batch_differ(name):
    generators = seeded(1), seeded(2)
    alone = Augmentation(**{name: NEW[name]})
    batch = images(count=64)
    first, second = (augment(batch, alone, *generators) for _ in range(2))
    assert (first != second).flatten(1).any(dim=1).sum() > 64 / 4


@pytest.mark.parametrize("name", NEW)
def test_copies_of_an_image_come_out_differently(name):
    copies = images(count=1).expand(16, 3, 20, 20)
    results = run(copies, Augmentation(**{name: NEW[name]})).flatten(1)
    kinds = len(torch.unique((results * 1e4).round(), dim=0))
    assert kinds == (2 if name in ("vertical_flip", "grayscale", "autocontrast", "equalize") else 16)


def test_brightness_contrast_saturation_and_hue_are_drawn_uniformly_from_their_ranges():
    count = 2000
    pixel = torch.tensor([0.4, 0.2, 0.2]).view(1, 3, 1, 1)
    row = torch.cat([pixel, torch.full((1, 3, 1, 1), 0.3)], dim=3).expand(count, 3, 1, 2)

    def check(strength_N, low, high):
        assert low - 1e-4 <= strength_N.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < strength_N.max() <= high + 1e-4
        assert float(strength_N.mean()) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))

    found = {name: run(row, Augmentation(**{name: 0.4})) for name in ("brightness", "contrast", "saturation", "hue")}
    check(found["brightness"][:, 0, 0, 0] / 0.4, 0.6, 1.4)
    check((found["contrast"][:, 0, 0, 0] - found["contrast"][:, 0, 0, 1]) / 0.1, 0.6, 1.4)
    check((found["saturation"][:, 0, 0, 0] - found["saturation"][:, 1, 0, 0]) / 0.2, 0.6, 1.4)
    turn_N = torch.tensor([rgb_to_hsv(*pixel)[0] for pixel in found["hue"][:, :, 0, 0].tolist()])
    check(torch.where(turn_N > 0.5, turn_N - 1, turn_N), -0.4, 0.4)


def made_grey(images_NCHW):
    return reference.rgb_to_grayscale(images_NCHW, 3)


@pytest.mark.parametrize(
    ("name", "change"),
    [("grayscale", made_grey), ("autocontrast", reference.autocontrast), ("equalize", levels_equalised)],
)
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_grayscale_autocontrast_and_equalize_change_their_share_of_the_images_and_no_other(name, change, share):
    narrow = (100 + 50 * images(count=1000)).round() / 255
    found = run(narrow, Augmentation(**{name: share}))
    changed = (found - change(narrow)).abs().amax(dim=(1, 2, 3)) < 1e-4
    same = (found - narrow).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (changed ^ same).all()
    assert float(changed.float().mean()) == pytest.approx(share, abs=0.05)


def by_torchvision(image_CHW, settings, draw_D):
    """Colour of one image from its draws (vertical flip first), in the documented order."""
    _, *draws, autocontrast, equalize = draw_D.tolist()
    for name, draw in zip(("brightness", "contrast", "saturation"), draws[:3], strict=True):
        strength = getattr(settings, name)
        image_CHW = getattr(reference, f"adjust_{name}")(image_CHW, 1 + strength * (2 * draw - 1))
    image_CHW = reference.adjust_hue(image_CHW, settings.hue * (2 * draws[3] - 1))
    if settings.grayscale == 1:
        image_CHW = made_grey(image_CHW)
    if autocontrast < settings.autocontrast:
        image_CHW = reference.autocontrast(image_CHW)
    return levels_equalised(image_CHW) if equalize < settings.equalize else image_CHW


@pytest.mark.parametrize(
    "changed",
    [{}, {"grayscale": 1.0}, *({name: 0.0} for name in STRENGTHS)],
    ids=lambda changed: "".join(changed) or "all",
)
def test_colours_follow_in_a_fixed_order_each_with_draws_of_its_own(changed):
    # switched off or on, a change must leave the draws of the others as they were
    settings = replace(COLOURS, **changed)
    images_NCHW = images(count=40)
    draws_DN = torch.rand((COLOUR_DRAWS, 40), generator=seeded(6))
    expected = [by_torchvision(image, settings, draw) for image, draw in zip(images_NCHW, draws_DN.T, strict=True)]
    found = run(images_NCHW, settings, seed=6)
    error = (found - torch.stack(expected)).abs()
    # where rounding moved a pixel to the level beside its own, equalize makes two or three levels of it
    assert error.max() < 4 / 255
    assert float((error < 2e-5).float().mean()) > 0.99


def test_colour_follows_geometry():
    # the black that a move brings in counts towards the mean that contrast is about
    moved = run(images(count=32), MOVED)
    found = run(images(count=32), replace(MOVED, contrast=0.5), seed=2)
    factor_N = 0.5 + torch.rand((COLOUR_DRAWS, 32), generator=seeded(2))[2]
    expected = [reference.adjust_contrast(image, float(f)) for image, f in zip(moved, factor_N, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_stay_in_the_range(channels):
    extremes = (images(count=200, channels=channels) > 0.5).float()
    result = run(extremes, Augmentation(**vars(MOVED) | NEW))
    assert result.shape == extremes.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1


def test_grey_images_have_no_hue_and_no_saturation():
    images_NCHW = images(count=16, channels=1)
    coloured = run(images_NCHW, Augmentation(saturation=1.0, hue=0.5, grayscale=1.0))
    torch.testing.assert_close(coloured, images_NCHW, atol=1e-5, rtol=0)
