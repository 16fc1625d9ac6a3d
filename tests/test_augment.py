"""Batched transforms: exact where the answer is known by hand, and random per image."""

from dataclasses import replace

import pytest
import torch

from deepcluster.augment import Augmentation, augment, augmentation_of
from deepcluster.params import Augment
from deepcluster.pixels import normalise, to_float

EVERYTHING = Augmentation(
    crop=True, crop_scale=(0.3, 1.0), flip=True, rotation=30, translate=0.2, zoom=(0.7, 1.3), shear=15
)
COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.2, "autocontrast": 0.6, "equalize": 0.5}


def images(count=8, channels=1, height=8, width=8):
    # not torch.rand, which some tests replace
    return torch.empty(count, channels, height, width).uniform_(generator=torch.Generator().manual_seed(7))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def run(images_NCHW, augmentation, seed=0, colour_seed=None):
    colour_generator = None if colour_seed is None else seeded(colour_seed)
    return augment(images_NCHW, augmentation, seeded(seed), colour_generator)


def test_defaults_leave_images_alone():
    images_NCHW = images(channels=3, height=9, width=6)
    torch.testing.assert_close(run(images_NCHW, Augmentation()), images_NCHW, atol=1e-5, rtol=0)


def test_a_crop_of_the_whole_image_leaves_it_alone():
    whole = Augmentation(crop=True, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    torch.testing.assert_close(run(images(), whole), images(), atol=1e-5, rtol=0)


def test_flip_mirrors_about_half_of_the_images_exactly():
    images_NCHW = images(count=2000)
    flipped = run(images_NCHW, Augmentation(flip=True))
    same = (flipped - images_NCHW).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (flipped - images_NCHW.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all()
    assert 900 < int(mirrored.sum()) < 1100


def one_draw(monkeypatch, value):
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.full(shape, value))


def test_translation_by_a_whole_pixel_fills_with_zeros(monkeypatch):
    one_draw(monkeypatch, 1.0)
    moved = run(images(), Augmentation(translate=1 / 8))
    torch.testing.assert_close(moved[:, :, 1:, 1:], images()[:, :, :-1, :-1], atol=1e-5, rtol=0)
    assert moved[:, :, 0].abs().max() < 1e-5
    assert moved[:, :, :, 0].abs().max() < 1e-5


def test_border_padding_repeats_the_edge(monkeypatch):
    one_draw(monkeypatch, 1.0)
    moved = run(images(), Augmentation(translate=1 / 8, padding="border"))
    torch.testing.assert_close(moved[:, :, 0, 1:], images()[:, :, 0, :-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("draw", "turns"), [(1.0, -1), (0.0, 1)])
def test_rotation_by_a_right_angle(monkeypatch, draw, turns):
    one_draw(monkeypatch, draw)
    turned = run(images(), Augmentation(rotation=90))
    torch.testing.assert_close(turned, torch.rot90(images(), turns, dims=(2, 3)), atol=1e-5, rtol=0)


def test_rotation_of_an_oblong_image_keeps_its_pixels_square(monkeypatch):
    one_draw(monkeypatch, 1.0)
    oblong = images(height=4, width=8)
    turned = run(oblong, Augmentation(rotation=90))
    torch.testing.assert_close(turned[..., 2:6], torch.rot90(oblong[..., 2:6], -1, dims=(2, 3)), atol=1e-5, rtol=0)


def test_zoom_of_two_halves_a_slope_about_the_centre():
    ramp = torch.arange(8.0)
    zoomed = run(ramp.expand(1, 1, 8, 8), Augmentation(zoom=(2.0, 2.0)))
    # pixel j shows what lay at 3.5 + (j - 3.5) / 2
    torch.testing.assert_close(zoomed, (1.75 + ramp / 2).expand(1, 1, 8, 8), atol=1e-5, rtol=0)


def test_shear_moves_rows_against_each_other(monkeypatch):
    one_draw(monkeypatch, 1.0)
    # 45 degrees: a row y pixels below the centre moves y to the right; rows of 2 pixels lie at -0.5 and 0.5
    stripes = torch.zeros(1, 1, 2, 8)
    stripes[..., 2:6] = 1
    sheared = run(stripes, Augmentation(shear=45))[0, 0]
    expected = [[0, 0.5, 1, 1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1, 1, 0.5, 0]]
    torch.testing.assert_close(sheared, torch.tensor(expected), atol=1e-5, rtol=0)


def test_rotation_is_about_the_centre_and_comes_before_translation(monkeypatch):
    one_draw(monkeypatch, 1.0)
    result = run(images(), Augmentation(rotation=90, translate=1 / 8))
    turned = torch.rot90(images(), -1, dims=(2, 3))
    torch.testing.assert_close(result[:, :, 1:, 1:], turned[:, :, :-1, :-1], atol=1e-5, rtol=0)


def crops(augmentation, count=1000):
    """Relative width, height and centre (x, y) of crops, read off a ramp in x and a ramp in y."""
    ramp = torch.linspace(0.5 / 32, 31.5 / 32, 32)
    ramps = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T]).expand(count, 2, 32, 32)
    cropped = run(ramps, augmentation)
    width_N = (cropped[:, 0, 16, 17] - cropped[:, 0, 16, 15]) * 16
    height_N = (cropped[:, 1, 17, 16] - cropped[:, 1, 15, 16]) * 16
    return width_N, height_N, cropped[:, 0, 16, 15:17].mean(dim=1), cropped[:, 1, 15:17, 16].mean(dim=1)


def test_crop_area_and_ratio_follow_the_settings():
    # many of these do not fit into the image; cut to fit they would be smaller than the settings allow
    settings = Augmentation(crop=True, crop_scale=(0.6, 0.7), crop_ratio=(0.55, 1 / 0.55))
    width_N, height_N, _, _ = crops(settings)
    area_N, log_ratio_N = width_N * height_N, torch.log(width_N / height_N)
    assert 0.6 - 1e-3 <= area_N.min() < 0.605
    assert 0.695 < area_N.max() <= 0.7 + 1e-3
    assert max(width_N.max(), height_N.max()) <= 1 + 1e-3
    assert float(log_ratio_N.mean()) == pytest.approx(0, abs=0.03)
    assert 0.4 < log_ratio_N.abs().max() < 0.52


def test_crops_lie_anywhere_inside_the_image():
    width_N, height_N, x_N, y_N = crops(Augmentation(crop=True, crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)))
    torch.testing.assert_close(torch.stack([width_N, height_N]), torch.full((2, 1000), 0.5), atol=1e-4, rtol=0)
    for centre_N in (x_N, y_N):
        assert 0.25 - 1e-4 <= centre_N.min() < 0.26
        assert 0.74 < centre_N.max() <= 0.75 + 1e-4
        assert float(centre_N.mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([x_N, y_N]))[0, 1]) < 0.1


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop=True),
        Augmentation(rotation=20),
        Augmentation(translate=0.2),
        Augmentation(zoom=(0.5, 1.5)),
        Augmentation(shear=20),
    ],
)
def test_each_image_draws_its_own_parameters(augmentation):
    copies = images(count=1).expand(16, 1, 8, 8)
    results = run(copies, augmentation).flatten(1)
    distances = torch.cdist(results, results) + torch.eye(16)
    assert distances.min() > 1e-3


def test_the_seed_decides_and_successive_batches_differ():
    assert torch.equal(run(images(), EVERYTHING, seed=3), run(images(), EVERYTHING, seed=3))
    assert not torch.equal(run(images(), EVERYTHING, seed=3), run(images(), EVERYTHING, seed=4))
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(augment(images(), EVERYTHING, generator), augment(images(), EVERYTHING, generator))


def test_switching_one_transform_on_leaves_the_draws_of_the_others():
    # zoom 1 +- nothing and flip of a symmetric image: the rotation must be the same with and without them
    symmetric = images() + images().flip(3)
    torch.testing.assert_close(
        run(symmetric, Augmentation(rotation=20)),
        run(symmetric, Augmentation(rotation=20, flip=True)),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_values_stay_in_the_range_of_the_input(padding):
    extremes = (images(count=500, channels=3) > 0.5).float()
    settings = {**vars(EVERYTHING), "padding": padding}
    result = run(extremes, Augmentation(**settings))
    assert result.shape == extremes.shape
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-5


# Made by the code as it was before there was vertical flip and colour: published results rest on these draws.
@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (EVERYTHING, [[0.4305862, 0.3319454, 0.3927743, 0.2000875], [0.4791518, 0.3174444, 0.4148880, 0.1989615]]),
        (
            Augmentation(rotation=12.0, translate=0.1, zoom=(0.85, 1.15), shear=8.0),
            [[0.4079354, 0.4344317, 0.4663845, 0.3115849], [0.4377584, 0.4517100, 0.5050021, 0.3365249]],
        ),
        (
            Augmentation(crop=True, flip=True, padding="border"),
            [[0.4585952, 0.3040484, 0.3275297, 0.4254782], [0.4734668, 0.2958182, 0.3173820, 0.4100216]],
        ),
    ],
)
def test_geometry_is_what_it_was(augmentation, expected):
    ramp = torch.arange(64.0).view(1, 1, 8, 8).expand(4, 1, 8, 8) / 64
    generator = seeded(5)
    found = augment(ramp, augmentation, generator)[:, 0, 3, 3:5].T
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=0)
    # and it took from the generator what it took
    torch.testing.assert_close(
        torch.rand(2, generator=generator), torch.tensor([0.0183161, 0.4880878]), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("colour_seed", [None, 1, 2])
def test_geometry_depends_on_the_first_generator_alone(colour_seed):
    first, second = seeded(3), seeded(3)
    colour_generator = None if colour_seed is None else seeded(colour_seed)
    moved = augment(images(channels=3), EVERYTHING, first, colour_generator)
    assert torch.equal(moved, run(images(channels=3), EVERYTHING, seed=3))
    augment(images(channels=3), replace(EVERYTHING, vertical_flip=True, **COLOURS), second, colour_generator)
    assert torch.equal(first.get_state(), second.get_state())


def test_vertical_flip_turns_about_half_of_the_images_upside_down_and_nothing_else():
    images_NCHW = images(count=1000)
    flipped = run(images_NCHW, Augmentation(vertical_flip=True), colour_seed=1)
    same = (flipped - images_NCHW).abs().amax(dim=(1, 2, 3)) < 1e-5
    upside_down = (flipped - images_NCHW.flip(2)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (same ^ upside_down).all()
    assert 440 < int(upside_down.sum()) < 560
    # independent of the left-right flips, which stay as they were
    both = run(images_NCHW, Augmentation(flip=True, vertical_flip=True), colour_seed=1)
    once = run(images_NCHW, Augmentation(flip=True))
    expected = torch.where(upside_down.view(-1, 1, 1, 1), once.flip(2), once)
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=0)
    mirrored = (once - images_NCHW.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 200 < int((mirrored & upside_down).sum()) < 300


def test_every_setting_of_params_reaches_its_transform():
    settings = Augment(
        crop=True,
        crop_scale=(0.3, 0.9),
        crop_ratio=(0.5, 2.0),
        flip=True,
        vertical_flip=True,
        rotation=1.0,
        translate=0.2,
        zoom=(0.9, 1.2),
        shear=3.0,
        brightness=0.4,
        contrast=0.5,
        saturation=0.6,
        hue=0.07,
        grayscale=0.3,
        autocontrast=0.8,
        equalize=0.9,
        padding="border",
    )
    found = augmentation_of(settings, "digits")
    assert vars(found) == settings.model_dump()
    assert augmentation_of(Augment(crop=False, flip=False, padding="zeros"), "cifar10") == Augmentation()


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        (("digits", "mnist", "kmnist", "usps", "gtsrb"), False),
        (("cifar10", "stl10", "tinyimagenet", "fashionmnist", "folder"), True),
    ],
)
def test_characters_and_signs_are_not_mirrored_unless_params_say_so(names, flip):
    assert [augmentation_of(Augment(), name).flip for name in names] == [flip] * 5
    assert [augmentation_of(Augment(flip=not flip), name).flip for name in names] == [not flip] * 5


@pytest.mark.parametrize(
    ("names", "padding"),
    [
        (("digits", "mnist", "fashionmnist", "kmnist", "usps"), "zeros"),
        (("cifar10", "stl10", "tinyimagenet", "gtsrb", "folder"), "reflection"),
    ],
)
def test_beyond_photographs_lies_their_mirror_image_and_beyond_drawings_nothing(names, padding):
    assert [augmentation_of(Augment(), name).padding for name in names] == [padding] * 5
    assert augmentation_of(Augment(padding="border"), names[0]).padding == "border"


def test_to_float_and_normalise_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert to_float(pixels).dtype == torch.float32
    normal = normalise(to_float(pixels), [0.5, 0.2, 0.0], [0.25, 1.0, 0.5])
    torch.testing.assert_close(normal.flatten(), torch.tensor([-2.0, 0.0, 2.0]))


def test_another_size_shows_the_same_part_in_fewer_pixels():
    """A ramp stays a ramp: half as many steps, each in the middle of two."""
    ramp = torch.linspace(0, 1, 16).expand(3, 1, 16, 16)
    small = augment(ramp, Augmentation(), seeded(0), size=8)
    assert small.shape == (3, 1, 8, 8)
    torch.testing.assert_close(small[0, 0, 0], ramp[0, 0, 0].view(8, 2).mean(1), atol=1e-5, rtol=0)
    large, cut = (augment(ramp, replace(EVERYTHING, padding="border"), seeded(4), size=size) for size in (16, 8))
    torch.testing.assert_close(cut, torch.nn.functional.avg_pool2d(large, 2), atol=0.05, rtol=0)
