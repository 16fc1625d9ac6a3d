"""`deepcluster augmentations`: what it draws, what it says, and what it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcluster import artifacts, layout
from deepcluster.augment import Augmentation, augment
from deepcluster.augmentation_gallery import described, originals_and_views
from deepcluster.inspection.gallery import sheet_png
from deepcluster.pixels import to_float
from deepcluster.seeding import torch_generator

STRONG = Augmentation(
    crop=True, flip=True, vertical_flip=True, rotation=20, contrast=0.5, hue=0.3, autocontrast=0.5, equalize=0.25
)


def pixels(count=5, channels=3, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


class TestSheet:
    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    def test_rows_of_enlarged_images_with_a_wider_gap_after_the_first(self, channels, mode):
        images = pixels(6, channels, 48).reshape(2, 3, channels, 48, 48)
        sheet = Image.open(io.BytesIO(sheet_png(images)))
        assert (sheet.mode, sheet.size) == (mode, (96 + 8 + 96 + 2 + 96, 96 + 2 + 96))
        found = np.asarray(sheet).reshape(194, 298, channels)
        for row, top in enumerate((0, 98)):
            for column, left in enumerate((0, 104, 202)):
                tile = found[top : top + 96, left : left + 96]
                enlarged = images[row, column].transpose(1, 2, 0).repeat(2, axis=0).repeat(2, axis=1)
                np.testing.assert_array_equal(tile, enlarged)
        for gap in (found[:, 96:104], found[:, 200:202], found[96:98]):
            assert (gap == 128).all()

    @pytest.mark.parametrize(("side", "shown"), [(8, 96), (28, 112), (32, 96), (64, 128), (96, 96), (224, 128)])
    def test_the_size_of_an_image(self, side, shown):
        sheet = Image.open(io.BytesIO(sheet_png(np.zeros((1, 1, 1, side, side), np.uint8))))
        assert sheet.size == (shown, shown)

    @pytest.mark.parametrize("shape", [(0, 2, 1, 8, 8), (2, 0, 1, 8, 8), (2, 1, 8, 8), (1, 1, 2, 8, 8)])
    def test_wrong_images(self, shape):
        with pytest.raises(
            ValueError, match=r"a sheet needs at least one image|images must be uint8 \[R, M, 1 or 3, H, W\]"
        ):
            sheet_png(np.zeros(shape, np.uint8))


class TestViews:
    def test_they_are_what_augment_makes_with_the_streams_of_training(self):
        found = originals_and_views(pixels(), STRONG, views=3, seed=4, epoch=2)
        assert found.shape == (5, 4, 3, 16, 16)
        np.testing.assert_array_equal(found[:, 0], pixels())
        streams = torch_generator(4, "augment", 2), torch_generator(4, "colour", 2)
        for view in range(1, 4):
            expected = augment(to_float(torch.from_numpy(pixels())), STRONG, *streams).numpy() * 255
            assert np.abs(found[:, view] - expected).max() <= 0.5 + 1e-3

    def test_every_view_of_every_image_is_another(self):
        copies = np.broadcast_to(pixels(1), (4, 3, 16, 16)).copy()
        found = originals_and_views(copies, STRONG, views=5, seed=1, epoch=1)[:, 1:].reshape(20, -1)
        assert len(np.unique(found, axis=0)) == 20

    def test_without_augmentation_they_are_the_image(self):
        found = originals_and_views(pixels(), Augmentation(), views=2, seed=1, epoch=1)
        np.testing.assert_array_equal(found, pixels()[:, None].repeat(3, axis=1))


class TestDescription:
    def test_everything(self):
        everything = Augmentation(
            crop=True,
            crop_scale=(0.2, 0.85),
            flip=True,
            vertical_flip=True,
            rotation=12,
            translate=0.1,
            zoom=(0.85, 1.15),
            shear=8,
            brightness=0.4,
            contrast=0.3,
            saturation=0.2,
            hue=0.1,
            grayscale=0.2,
            autocontrast=0.25,
            equalize=0.5,
        )
        geometry = (
            "crop to 20% to 85% of the area, flip for half, vertical_flip for half, shear +-8 degrees, "
            "rotation +-12 degrees, zoom 0.85 to 1.15, translate by up to 10%, brightness 1 +- 0.4, contrast 1 +- 0.3, "
        )
        colour = "saturation 1 +- 0.2, hue +-0.1 of a turn, grayscale for 20%, "
        shares = "autocontrast for 25%, equalize for 50%"
        assert described(everything, channels=3) == geometry + colour + shares
        assert described(everything, channels=1) == geometry + shares  # grey has neither saturation nor hue

    def test_nothing(self):
        nothing = "none is on, so every view is the image itself"
        assert described(Augmentation(), channels=3) == nothing
        assert described(Augmentation(hue=0.5, grayscale=0.5), channels=1) == nothing


PARAMS = "augment: {crop: false, rotation: 30, contrast: 0.5}\n"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder where `prepare` alone has run, on 20 images each of one grey of its own."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    greys = np.arange(20, dtype=np.uint8) * 12
    images = np.broadcast_to(greys[:, None, None, None], (20, 1, 8, 8)).copy()
    provenance = artifacts.Provenance(20, "ids", params={"name": "digits"})
    with artifacts.write_store(layout.IMAGES, "images", provenance) as writer:
        writer.array("images", images, ("sample", "channel", "row", "column"))
    return tmp_path


class TestCommand:
    def test_needs_no_training_and_writes_one_picture(self, prepared, outcome):
        before = sorted(prepared.rglob("*"))
        status, out, err = outcome("augmentations", "--images", "3", "--views", "2")
        assert (status, err) == (0, "")
        assert out == (
            "data/augmentations.png: 3 of 20 images, each with 2 views\n"
            "augmentations: rotation +-30 degrees, contrast 1 +- 0.5\n"
        )
        assert sorted(prepared.rglob("*")) == sorted([*before, prepared / "data/augmentations.png"])
        sheet = np.asarray(Image.open("data/augmentations.png"))
        assert sheet.shape == (3 * 96 + 2 * 2, 3 * 96 + 8 + 2)
        assert sheet[[0, 98, 196], 0].tolist() == [0, 6 * 12, 13 * 12]  # evenly spaced originals

    def test_same_settings_same_bytes_and_another_epoch_other_views(self, prepared, outcome):
        for name, epoch in (("a", "1"), ("b", "1"), ("c", "2")):
            assert outcome("augmentations", "--epoch", epoch, "--out", f"{name}.png")[0] == 0
        assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()

    def test_the_data_set_decides_a_flip_that_is_left_open(self, prepared, outcome):
        Path("params.yaml").write_text("augment: {crop: false}\n")
        assert "none is on" in outcome("augmentations")[1]
        Path("params.yaml").write_text("augment: {crop: false, flip: true}\n")
        assert "augmentations: flip for half\n" in outcome("augmentations")[1]

    def test_more_images_than_there_are(self, prepared, outcome):
        status, out, _ = outcome("augmentations", "--images", "50", "--views", "1", "--out", "a.PNG")
        assert status == 0
        assert out.startswith("a.PNG: 20 of 20 images, each with 1 views\n")
        assert Image.open("a.PNG").size == (2 * 96 + 8, 20 * 98 - 2)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--views", "0", "--views: must be from 1 to 20; got 0"),
            ("--views", "21", "--views: must be from 1 to 20; got 21"),
            ("--images", "0", "--images: must be from 1 to 50; got 0"),
            ("--images", "51", "--images: must be from 1 to 50; got 51"),
            ("--epoch", "0", "--epoch: must be >= 1 (nothing is trained in epoch 0); got 0"),
        ],
    )
    def test_numbers_out_of_range(self, prepared, outcome, option, value, message):
        assert outcome("augmentations", option, value) == (2, "", f"error: {message}\n")

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("params.yaml", "--out: must be a file name that ends in .png; got params.yaml"),
            ("data", "--out: must be a file name that ends in .png; got data"),
            ("folder.png", "--out: must be a file name; folder.png is a folder"),
            ("params.yaml/a.png", "--out: params.yaml: no such folder"),
            ("new/folder/a.png", "--out: new/folder: no such folder"),
        ],
    )
    def test_no_place_for_a_picture(self, prepared, outcome, out, message):
        Path("folder.png").mkdir()
        assert outcome("augmentations", "--out", out) == (2, "", f"error: {message}\n")
        assert Path("params.yaml").read_text() == PARAMS
        assert not list(prepared.rglob("*.partial"))

    def test_not_prepared(self, tmp_path, monkeypatch, outcome):
        monkeypatch.chdir(tmp_path)
        Path("params.yaml").write_text(PARAMS)
        message = "error: data/dataset/images.zarr: not found; run `deepcluster run prepare`\n"
        assert outcome("augmentations") == (2, "", message)
        assert not Path("data").exists()
