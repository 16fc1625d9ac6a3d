"""Batched colour: as torchvision and PIL do it image by image, and right where the answer is known by hand."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as reference

from deepcluster import colour

COUNT = 24
CHANGES = {
    "brightness": (colour.brighten, reference.adjust_brightness),
    "contrast": (colour.contrast, reference.adjust_contrast),
    "saturation": (colour.saturate, reference.adjust_saturation),
    "hue": (colour.turn_hue, reference.adjust_hue),
    "autocontrast": (lambda images, _: colour.autocontrast(images), lambda image, _: reference.autocontrast(image)),
}


def pixels(channels=3, side=20, seed=0):
    """uint8 images: noise, few levels, narrow ranges, black, white, one value, two equal channels, grey."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (COUNT, channels, side, side), dtype=np.uint8)
    images[8:12] = 100 + images[8:12] % 20
    images[12:16] = images[12:16] // 64 * 64
    images[16], images[17], images[18] = 0, 255, 77
    images[19, 0] = 5  # one channel of three, or the whole
    images[20:22, -1] = images[20:22, 0]
    images[22] = images[22, :1]
    return torch.from_numpy(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_is_torchvisions(channels):
    images_NCHW = pixels(channels).float() / 255
    found = colour.to_grey(images_NCHW)
    torch.testing.assert_close(found, reference.rgb_to_grayscale(images_NCHW, channels), atol=1e-6, rtol=0)
    assert found.shape == images_NCHW.shape


def strengths(name):
    spread = torch.linspace(0, 1, COUNT)
    return spread - 0.5 if name == "hue" else 2 * spread


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_torchvisions_image_by_image(name, channels):
    ours, theirs = CHANGES[name]
    images_NCHW, strength_N = pixels(channels).float() / 255, strengths(name)
    expected = [theirs(image, float(s)) for image, s in zip(images_NCHW.double(), strength_N, strict=True)]
    found = ours(images_NCHW, strength_N)
    torch.testing.assert_close(found, torch.stack(expected).float(), atol=3e-6, rtol=0)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("side", [8, 16, 17, 20, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_equalize_is_pils_and_torchvisions_to_the_level(channels, side):
    images_NCHW = pixels(channels, side)
    found = colour.equalize(images_NCHW.float() / 255)
    expected = torch.stack([reference.equalize(image) for image in images_NCHW])
    assert torch.equal(found, expected.float() / 255)
    for image_CHW, found_CHW in zip(images_NCHW.numpy(), found, strict=True):
        for channel_HW, found_HW in zip(image_CHW, found_CHW, strict=True):
            by_pil = np.array(ImageOps.equalize(Image.fromarray(channel_HW)))
            np.testing.assert_array_equal((found_HW * 255).round().numpy(), by_pil)


def test_equalize_by_hand():
    # 300 dark, 400 medium, 510 bright: 700 pixels are darker than the brightest, a step is 700 // 255 = 2 of them,
    # so the levels become (0 + 1) // 2, (300 + 1) // 2 and (700 + 1) // 2 cut at 255
    levels = torch.tensor([3] * 300 + [7] * 400 + [9] * 510)
    found = colour.equalize((levels / 255).view(1, 1, 10, 121)).flatten()
    expected = torch.tensor([0] * 300 + [150] * 400 + [255] * 510) / 255
    assert torch.equal(found, expected)


def test_equalize_rounds_to_the_nearest_level():
    images_NCHW = pixels()
    up = torch.arange(images_NCHW.numel()).view(images_NCHW.shape) % 2
    nudged = (images_NCHW + 0.8 * up - 0.4) / 255
    assert torch.equal(colour.equalize(nudged.clamp(0, 1)), colour.equalize(images_NCHW.float() / 255))


def test_a_constant_image_is_harmless():
    constant = torch.full((2, 3, 20, 20), 77 / 255)
    for change in (colour.autocontrast, colour.equalize):
        assert torch.equal(change(constant), constant)
    strength_N = torch.tensor([0.3, 1.7])
    for change in (colour.contrast, colour.saturate):  # the weights of torchvision's grey sum to 0.9999
        torch.testing.assert_close(change(constant, strength_N), constant, atol=1e-4, rtol=0)
    torch.testing.assert_close(colour.turn_hue(constant, strength_N), constant)


def test_contrast_and_saturation_by_hand():
    image = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    image[..., 1] = 0.5
    grey = torch.tensor([0.2 * 0.2989 + 0.4 * 0.587 + 0.6 * 0.114, 0.5 * 0.9999])
    half = torch.tensor([0.5])
    torch.testing.assert_close(colour.saturate(image, half), (image + grey) / 2)
    torch.testing.assert_close(colour.contrast(image, half), (image + grey.mean()) / 2)


def test_a_third_of_a_turn_moves_the_colours_on():
    image = torch.tensor([0.9, 0.3, 0.1]).view(1, 3, 1, 1)
    turned = colour.turn_hue(image, torch.tensor([1 / 3]))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.1, 0.9, 0.3]))


@pytest.mark.parametrize("change", [colour.saturate, colour.turn_hue])
def test_one_channel_has_no_colour_to_change(change):
    images_NCHW = pixels(1).float() / 255
    assert torch.equal(change(images_NCHW, strengths("hue") + 0.5), images_NCHW)


def test_the_images_given_are_not_written_to():
    images_NCHW = pixels().float() / 255
    before = images_NCHW.clone()
    for name, (ours, _) in CHANGES.items():
        ours(images_NCHW, strengths(name))
    colour.equalize(images_NCHW)
    assert torch.equal(images_NCHW, before)
