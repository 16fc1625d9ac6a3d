"""Folders of images of every kind and every kind of trouble."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from deepcluster import memory
from deepcluster.datasets import Dataset, decoding, load_dataset
from deepcluster.errors import DataError, ResourceError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path: Path, colour: Any = RED, *, size: tuple[int, int] = (4, 4), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def load(root: Path, image_size: int | None = 4, *, split: str = "all", **options: Any) -> Dataset:
    return load_dataset("folder", root=root, split=split, image_size=image_size, **{"grayscale": False, **options})


def pixel(data: Dataset, row: int = 0, y: int = 0, x: int = 0) -> tuple[int, ...]:
    return tuple(int(value) for value in data.images_NCHW[row, :, y, x])


def near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 6) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance


class TestOrderAndTargets:
    def test_class_folders(self, tmp_path: Path) -> None:
        for name, colour in (("b/2.png", BLUE), ("b/10.PNG", GREEN), ("a-x/deep/er/1.png", RED), ("B/1.png", WHITE)):
            save(tmp_path / name, colour)
        data = load(tmp_path)
        assert data.sample_ids == ["B/1.png", "a-x/deep/er/1.png", "b/10.PNG", "b/2.png"]
        assert data.class_names == ["B", "a-x", "b"]
        assert data.targets_N is not None
        assert data.targets_N.dtype == np.int64
        assert data.targets_N.tolist() == [0, 1, 2, 2]
        assert [pixel(data, row) for row in range(4)] == [WHITE, RED, GREEN, BLUE]
        assert data.images_NCHW.dtype == np.uint8

    def test_more_files_than_one_task_keep_their_order(self, tmp_path: Path) -> None:
        for index in range(100):
            save(tmp_path / f"{index:03}.png", (index, 2 * index, 0))
        data = load(tmp_path)
        assert [pixel(data, row) for row in range(100)] == [(index, 2 * index, 0) for index in range(100)]
        assert data.targets_N is None
        assert data.class_names is None

    @pytest.mark.parametrize("names", [("1.png", "2.png"), ("a/1.png", "a/b/2.png"), ("1.png", "a/1.png", "b/1.png")])
    def test_folders_that_tell_no_classes(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        for name in names:
            save(tmp_path / name)
        data = load(tmp_path)
        assert data.sample_ids == sorted(names)
        assert (data.targets_N, data.class_names) == (None, None)

    def test_hidden_and_other_files_are_ignored(self, tmp_path: Path) -> None:
        for name in ("a.png", ".b.png", ".trash/c.png", "__MACOSX/._d.png"):
            save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("hello")
        data = load(tmp_path)
        assert data.sample_ids == ["a.png"]
        assert data.skipped == []

    def test_statistics_and_progress(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", (255, 0, 51))
        save(tmp_path / "b.png", (0, 0, 51))
        calls: list[tuple[int, int]] = []
        data = load(tmp_path, progress=lambda done, total: calls.append((done, total)))
        assert data.mean == pytest.approx((0.5, 0, 0.2))
        assert data.std == pytest.approx((0.5, 1 / 255, 1 / 255))
        assert calls == [(2, 2)]


class TestSplit:
    def test_its_folder_is_read_and_named_in_the_ids(self, tmp_path: Path) -> None:
        for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/c/2.png"):
            save(tmp_path / name)
        data = load(tmp_path, split="test")
        assert data.sample_ids == ["test/a/2.png", "test/c/2.png"]
        assert data.class_names == ["a", "c"]
        assert len(load(tmp_path, split="all").images_NCHW) == 4

    def test_an_unsplit_folder_is_training_data_and_nothing_else(self, tmp_path: Path) -> None:
        save(tmp_path / "1.png")
        assert load(tmp_path, split="train").sample_ids == ["1.png"]
        with pytest.raises(DataError, match="no such folder; use split all to read the whole of"):
            load(tmp_path, split="test")

    @pytest.mark.parametrize("split", ["..", ".", "../other", "/etc"])
    def test_a_path_is_no_split(self, tmp_path: Path, split: str) -> None:
        save(tmp_path / "1.png")
        with pytest.raises(DataError, match="split must be the name of a folder"):
            load(tmp_path, split=split)


class TestPixels:
    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("1", 1, WHITE),
            ("L", 77, (77, 77, 77)),
            ("LA", (0, 51), (204, 204, 204)),
            ("RGB", (1, 2, 3), (1, 2, 3)),
            ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
            ("I;16", 257 * 200, (200, 200, 200)),
            ("I;16", 200, (1, 1, 1)),
            ("I;16", 128, (0, 0, 0)),
            ("I;16", 65535, WHITE),
        ],
    )
    def test_modes_of_png(self, tmp_path: Path, mode: str, colour: Any, expected: tuple[int, ...]) -> None:
        save(tmp_path / "a.png", colour, mode=mode)
        data = load(tmp_path)
        assert (data.images_NCHW == np.array(expected, np.uint8)[None, :, None, None]).all()

    def test_palette_with_transparency_lies_on_white(self, tmp_path: Path) -> None:
        image = Image.new("P", (4, 4), 1)
        image.putpalette([9, 9, 9, 255, 0, 0])
        image.putpixel((3, 0), 0)
        image.save(tmp_path / "a.png", transparency=0)
        data = load(tmp_path)
        assert pixel(data) == RED
        assert pixel(data, x=3) == WHITE

    def test_transparent_colour_of_rgb(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", (1, 2, 3), transparency=(1, 2, 3))
        assert pixel(load(tmp_path)) == WHITE

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        save(tmp_path / "a.jpg", (0, 255, 255, 0), mode="CMYK", size=(16, 16), quality=95)
        assert near(pixel(load(tmp_path, 16)), RED)

    def test_sixteen_bit_pgm(self, tmp_path: Path) -> None:
        (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535\n" + struct.pack(">4H", 0, 257, 65535, 257 * 128))
        assert load(tmp_path, 2).images_NCHW[0, 0].tolist() == [[0, 1], [255, 128]]

    @pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "gif", "webp", "tif", "TIFF", "ppm"])
    def test_every_extension(self, tmp_path: Path, suffix: str) -> None:
        save(tmp_path / f"a.{suffix}", BLUE, size=(16, 16))
        assert near(pixel(load(tmp_path, 16)), BLUE)

    def test_first_frame_of_an_animation(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert pixel(load(tmp_path)) == GREEN

    def test_grayscale(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", (100, 50, 200))
        save(tmp_path / "b.png", (0, 0, 0, 0), mode="RGBA")
        data = load(tmp_path, grayscale=True)
        assert data.images_NCHW.shape == (2, 1, 4, 4)
        assert pixel(data, 0) == (round(0.299 * 100 + 0.587 * 50 + 0.114 * 200),)
        assert pixel(data, 1) == (255,)
        assert len(data.mean) == 1

    @pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
    @pytest.mark.parametrize(
        ("orientation", "corner"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (6, (0, 1)), (8, (1, 0))]
    )
    def test_exif_orientation(self, tmp_path: Path, suffix: str, orientation: int, corner: tuple[int, int]) -> None:
        image = Image.new("RGB", (32, 32), "black")
        image.paste(WHITE, (0, 0, 16, 16))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"a.{suffix}", exif=exif)
        data = load(tmp_path, 32)
        bright = [(y, x) for y in (0, 1) for x in (0, 1) if pixel(data, 0, 8 + 16 * y, 8 + 16 * x)[0] > 128]
        assert bright == [corner]


class TestSize:
    def test_mixed_sizes_give_the_centre_square(self, tmp_path: Path) -> None:
        wide = Image.new("RGB", (40, 10), RED)
        wide.paste(GREEN, (15, 0, 25, 10))
        wide.save(tmp_path / "wide.png")
        wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
        assert (load(tmp_path, 10).images_NCHW == np.array(GREEN, np.uint8)[None, :, None, None]).all()
        for size in (5, 20):
            data = load(tmp_path, size)
            assert data.images_NCHW.shape == (2, 3, size, size)
            assert (data.images_NCHW[:, :, 2:-2, 2:-2] == np.array(GREEN, np.uint8)[None, :, None, None]).all()

    def test_is_the_shorter_side_resized_and_the_centre_cropped(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image.save(tmp_path / "a.png")
        reference = np.asarray(image.resize((32, 16), Image.Resampling.BILINEAR).crop((8, 0, 24, 16)))
        found = load(tmp_path, 16).images_NCHW[0].transpose(1, 2, 0)
        assert np.abs(found.astype(int) - reference).max() <= 1

    def test_shrinking_averages(self, tmp_path: Path) -> None:
        board = np.indices((64, 64)).sum(0) % 2 * 255
        Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
        assert np.abs(load(tmp_path, 8).images_NCHW.astype(int) - 127).max() <= 2

    def test_large_jpeg_decoded_at_a_fraction_is_the_same_picture(self, tmp_path: Path) -> None:
        blocks = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(blocks).save(tmp_path / "a.jpg", quality=95)
        reference = np.asarray(Image.fromarray(blocks).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(load(tmp_path, 64).images_NCHW[0, 0] - reference).mean() < 8

    def test_native_size_of_equal_squares_is_kept_to_the_pixel(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{index}.png")
        np.testing.assert_array_equal(load(tmp_path, None).images_NCHW, pixels.transpose(0, 3, 1, 2))

    @pytest.mark.parametrize("sizes", [[(4, 4), (5, 5)], [(4, 6)], [(257, 257)]])
    def test_without_a_common_square_image_size_is_needed(self, tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
        for index, size in enumerate(sizes):
            save(tmp_path / f"{index}.png", size=size)
        with pytest.raises(DataError) as caught:
            load(tmp_path, None)
        width, height = sizes[-1]
        assert f"{len(sizes) - 1}.png is {width}x{height}; set image_size, for example 224" in str(caught.value)


def truncated_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def text_file(path: Path) -> None:
    path.write_text("this is no image")


def empty_file(path: Path) -> None:
    path.touch()


def postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 9_000)).save(path, "PNG")


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.jpg")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def float_pixels(path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(path, "TIFF")


TROUBLE = [
    (truncated_jpeg, "image file is truncated"),
    (text_file, "not an image of a known format"),
    (empty_file, "empty file"),
    (postscript, "not an image of a known format"),
    (bomb, "over 178,956,970 pixels, refused"),
    (broken_link, "broken link"),
    (pipe, "not a regular file"),
    (float_pixels, "floating-point pixels have no known range"),
]


class TestUnreadable:
    @pytest.mark.parametrize(("make", "reason"), TROUBLE)
    def test_is_an_error_with_its_reason(self, tmp_path: Path, make: Any, reason: str) -> None:
        save(tmp_path / "a.png")
        make(tmp_path / "bad.jpg")
        with pytest.raises(DataError) as caught:
            load(tmp_path)
        first, second = str(caught.value).splitlines()
        assert first == f"{tmp_path}: 1 of 2 images cannot be read (max_unreadable is 0):"
        assert second.startswith(f"  bad.jpg: {reason}")

    def test_is_left_out_and_listed_within_the_share(self, tmp_path: Path) -> None:
        for index, colour in enumerate((RED, GREEN, BLUE)):
            save(tmp_path / f"{index}" / "good.png", colour)
        empty_file(tmp_path / "0" / "bad.jpg")
        truncated_jpeg(tmp_path / "1" / "bad.jpg")
        data = load(tmp_path, max_unreadable=0.4)
        assert data.sample_ids == ["0/good.png", "1/good.png", "2/good.png"]
        assert [pixel(data, row) for row in range(3)] == [RED, GREEN, BLUE]
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [0, 1, 2]
        assert data.skipped[0] == "0/bad.jpg: empty file"
        assert data.skipped[1].startswith("1/bad.jpg: image file is truncated")
        assert data.mean == pytest.approx((1 / 3, 1 / 3, 1 / 3))
        with pytest.raises(DataError, match=r"2 of 5 images cannot be read \(max_unreadable is 0.39\)"):
            load(tmp_path, max_unreadable=0.39)

    def test_only_the_first_few_are_shown(self, tmp_path: Path) -> None:
        for index in range(8):
            empty_file(tmp_path / f"{index}.png")
        with pytest.raises(DataError) as caught:
            load(tmp_path, max_unreadable=1.0)
        lines = str(caught.value).splitlines()
        assert lines[0].endswith("8 of 8 images cannot be read (max_unreadable is 1):")
        assert lines[1:] == [f"  {index}.png: empty file" for index in range(5)] + ["  and 3 more"]

    def test_pillow_is_strict_here_and_as_before_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        truncated_jpeg(tmp_path / "cut.jpg")
        bomb(tmp_path / "bomb.png")
        with pytest.raises(DataError, match=r"(?s)bomb\.png: over .*cut\.jpg: image file is truncated"):
            load(tmp_path)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
        assert Image.MAX_IMAGE_PIXELS is None

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        try:
            os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
        except OSError:
            pytest.skip("this file system refuses such names")
        with pytest.raises(DataError, match=r"\\udcff\.png: name is not UTF-8"):
            load(tmp_path)


class TestLinks:
    def test_that_lead_out_are_not_followed(self, tmp_path: Path) -> None:
        save(tmp_path / "outside" / "secret.png", BLUE)
        root = tmp_path / "root"
        save(root / "a.png")
        (root / "file.png").symlink_to(tmp_path / "outside" / "secret.png")
        (root / "folder").symlink_to(tmp_path / "outside")
        data = load(root, max_unreadable=0.9)
        assert data.sample_ids == ["a.png"]
        assert data.skipped == [
            "file.png: link that leads out of the folder",
            "folder: link to a folder elsewhere",
        ]
        with pytest.raises(DataError, match="2 of 3 images cannot be read"):
            load(root)

    def test_that_stay_inside(self, tmp_path: Path) -> None:
        save(tmp_path / "pool" / "a.png", BLUE)
        (tmp_path / "b.png").symlink_to("pool/a.png")
        (tmp_path / "pool" / "loop").symlink_to(tmp_path)
        data = load(tmp_path)
        assert data.sample_ids == ["b.png", "pool/a.png"]
        assert data.skipped == []

    def test_as_the_root_are_fine_but_as_a_split_lead_out(self, tmp_path: Path) -> None:
        save(tmp_path / "real" / "a.png")
        (tmp_path / "root").symlink_to(tmp_path / "real")
        assert load(tmp_path / "root").sample_ids == ["a.png"]
        (tmp_path / "real" / "test").symlink_to(tmp_path)
        with pytest.raises(DataError, match="give the folder that it leads to as the root"):
            load(tmp_path / "root", split="test")


class TestMemory:
    @pytest.mark.parametrize(
        ("grayscale", "channels", "or_grey"), [(False, 3, " or data.grayscale: true"), (True, 1, "")]
    )
    def test_what_does_not_fit_is_refused_before_a_file_is_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grayscale: bool, channels: int, or_grey: str
    ) -> None:
        for index in range(1000):
            (tmp_path / f"{index}.png").touch()
        monkeypatch.setattr(memory, "available_memory", lambda: channels * 224.0 * 224.0 * 1000 - 1)
        monkeypatch.setattr(decoding, "decode", lambda *_, **__: pytest.fail("opened"))
        with pytest.raises(ResourceError) as caught:
            load(tmp_path, 224, grayscale=grayscale)
        gigabytes = "0.15" if channels == 3 else "0.05"
        assert str(caught.value) == (
            f"data: 1,000 images of {channels} x 224 x 224 need about {gigabytes} GB of memory and {gigabytes} GB are "
            f"available; set data.image_size below 224{or_grey}"
        )

    def test_what_just_fits_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "1.png")
        monkeypatch.setattr(memory, "available_memory", lambda: 3.0 * 4 * 4)
        assert load(tmp_path).sample_ids == ["1.png"]

    def test_what_no_machine_has_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "1.png")
        with pytest.raises(ResourceError, match=r"need about 3000000000\.00 GB of memory and .* GB are available"):
            load(tmp_path, 10**9)
        monkeypatch.setattr(memory, "available_memory", lambda: float("inf"))
        with pytest.raises(
            ResourceError, match=r"need about 3000000000\.00 GB of memory, refused; set data\.image_size"
        ):
            load(tmp_path, 10**9)


class TestNothingThere:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            load(tmp_path / "absent")
        assert str(caught.value) == f"{tmp_path / 'absent'}: no such folder"

    def test_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.png: is not a folder"):
            load(save(tmp_path / "a.png"))

    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "readme.md").write_text("no images")
        with pytest.raises(DataError) as caught:
            load(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: holds no images (.png .jpg")

    def test_share_out_of_range(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="max_unreadable must be between 0 and 1; got 2"):
            load(tmp_path, max_unreadable=2)
