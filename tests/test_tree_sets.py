"""GTSRB and Tiny ImageNet: small trees in their real layout; torchvision's GTSRB and ImageFolder are the reference."""

from pathlib import Path

import numpy as np
import pytest
from dataset_files import (
    REFUSED,
    load,
    message,
    noise,
    offline,
    ppm,
    write,
    write_gtsrb_test,
    write_gtsrb_train,
    write_jpeg,
    write_tinyimagenet,
)
from PIL import Image

from deepcluster.datasets.gtsrb import CLASS_NAMES

__all__ = ["offline"]
pytestmark = pytest.mark.usefixtures("offline")
SIGNS = {0: [noise(20, 30, 3, seed=1), noise(16, 15, 3, seed=2)], 7: [noise(40, 40, 3, seed=3)]}
TRAINING = "gtsrb/GTSRB/Training"
WNIDS = ("n02124075", "n01443537", "n04067472")  # not sorted


def signs() -> dict[int, list[np.ndarray]]:
    """One sign of each of the 43 classes, and more of two."""
    return {label: [noise(18, 20, 3, seed=label)] for label in range(43)} | SIGNS


def squashed(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


class TestGtsrb:
    @pytest.mark.parametrize("side", [None, 12])
    def test_train_agrees_with_torchvision(self, tmp_path: Path, side: int | None) -> None:
        from torchvision.datasets import GTSRB

        write_gtsrb_train(tmp_path, signs())
        data, reference = load("gtsrb", tmp_path, "train", side), GTSRB(tmp_path, split="train")
        assert len(reference) == 44
        assert [str(tmp_path / sample_id) for sample_id in data.sample_ids] == [path for path, _ in reference._samples]
        assert data.targets_N is not None
        for row, (image, label) in enumerate(reference):
            np.testing.assert_array_equal(data.images_NCHW[row], squashed(image, side or 32))
            assert data.targets_N[row] == label
        assert data.class_names == list(CLASS_NAMES)
        assert len(set(CLASS_NAMES)) == 43

    def test_test_agrees_with_torchvision(self, tmp_path: Path) -> None:
        from torchvision.datasets import GTSRB

        write_gtsrb_test(tmp_path, [noise(20 + n, 30, 3, seed=n) for n in range(5)], [16, 1, 42, 0, 16])
        data, reference = load("gtsrb", tmp_path, "test"), GTSRB(tmp_path, split="test")
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [16, 1, 42, 0, 16]
        assert data.sample_ids[1] == "gtsrb/GTSRB/Final_Test/Images/00001.ppm"
        for row, (image, _) in enumerate(reference):
            np.testing.assert_array_equal(data.images_NCHW[row], squashed(image, 32))

    def test_nothing_is_cut_off(self, tmp_path: Path) -> None:
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, :10], wide[:, -10:] = 255, 255
        write_gtsrb_test(tmp_path, [wide], [3])
        image = load("gtsrb", tmp_path, "test").images_NCHW[0]
        assert (image[:, :, 0].min(), image[:, :, -1].min(), image[:, :, 16].max()) == (255, 255, 0)

    def test_grey(self, tmp_path: Path) -> None:
        picture = noise(32, 32, 3)
        write_gtsrb_test(tmp_path, [picture], [3])
        grey = load("gtsrb", tmp_path, "test", grayscale=True).images_NCHW
        np.testing.assert_array_equal(grey[0, 0], np.asarray(Image.fromarray(picture).convert("L")))

    def test_trees_that_are_not_whole(self, tmp_path: Path) -> None:
        write_gtsrb_train(tmp_path, signs())
        folder = tmp_path / TRAINING / "00007"
        (folder / "00000_00000.ppm").rename(folder / "00000_00001.ppm")
        said = "missing (1 of 44 images in the classes' tables)"
        assert message("gtsrb", tmp_path, "train") == f"{folder / '00000_00000.ppm'}: {said}"
        write(folder / "00000_00000.ppm", ppm(SIGNS[7][0]))
        said = "not in the classes' tables (1 such files)"
        assert message("gtsrb", tmp_path, "train") == f"{folder / '00000_00001.ppm'}: {said}"
        table = folder / "GT-00007.csv"
        table.write_text(table.read_text().replace(";7\n", ";8\n"))
        assert message("gtsrb", tmp_path, "train") == f"{table}: ClassId must be 7; got 8"
        table.unlink()
        assert (
            message("gtsrb", tmp_path, "train")
            == f"{table}: not found; delete {tmp_path / TRAINING} and fetch it again"
        )

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ("Filename;ClassId\n00000.ppm;43\n", "ClassId must be 0 to 42; got 43"),
            ("", "{images}/00000.ppm: not in GT-final_test.csv (1 such files)"),
            (
                "Filename;ClassId\n00000.ppm;4\n00000.ppm;5\n",
                "lists 00000.ppm as 4 and as 5; delete it and fetch it again",
            ),
            ("Filename;ClassId\n00000.ppm;x\n", "not a table with Filename and ClassId (ValueError("),
            ("Name;ClassId\n00000.ppm;1\n", "not a table with Filename and ClassId (KeyError('Filename'))"),
            ("Filename;ClassId\n00000.ppm\n", "not a table with Filename and ClassId (TypeError("),
        ],
    )
    def test_damaged_tables(self, tmp_path: Path, table: str, said: str) -> None:
        write_gtsrb_test(tmp_path, [noise(9, 9, 3)], [1])
        path = write(tmp_path / "gtsrb/GT-final_test.csv", table)
        images = tmp_path / "gtsrb/GTSRB/Final_Test/Images"
        start = said.format(images=images) if "{images}" in said else f"{path}: {said}"
        assert message("gtsrb", tmp_path, "test").startswith(start)

    def test_folders_in_the_places_of_tables(self, tmp_path: Path) -> None:
        write_gtsrb_test(tmp_path, [noise(9, 9, 3)], [1])
        write_gtsrb_train(tmp_path, signs())
        for split, place in (("test", "gtsrb/GT-final_test.csv"), ("train", f"{TRAINING}/00007/GT-00007.csv")):
            (tmp_path / place).unlink()
            (tmp_path / place).mkdir()
            assert message("gtsrb", tmp_path, split) == f"{tmp_path / place}: is not a file; move it away"

    def test_damaged_pictures(self, tmp_path: Path) -> None:
        write_gtsrb_test(tmp_path, [noise(9, 9, 3)] * 3, [1, 2, 3])
        folder = tmp_path / "gtsrb/GTSRB/Final_Test/Images"
        write(folder / "00001.ppm", b"")
        one = f"{folder / '00001.ppm'}: cannot be read (empty file); delete it and fetch it again"
        assert message("gtsrb", tmp_path, "test") == one
        write(folder / "00000.ppm", ppm(noise(9, 9, 3))[:-5])
        assert message("gtsrb", tmp_path, "test").startswith(f"{folder / '00000.ppm'}: cannot be read (")
        assert ", like 1 more; delete" in message("gtsrb", tmp_path, "test")

    def test_links_are_not_followed_out(self, tmp_path: Path) -> None:
        write_gtsrb_test(tmp_path / "root", [noise(9, 9, 3)], [1])
        path = tmp_path / "root/gtsrb/GTSRB/Final_Test/Images/00000.ppm"
        path.rename(tmp_path / "elsewhere.ppm")
        path.symlink_to(tmp_path / "elsewhere.ppm")
        assert message("gtsrb", tmp_path / "root", "test") == f"{path}: link that leads out of the folder"

    def test_refused_download_names_what_is_missing(self, tmp_path: Path) -> None:
        write(tmp_path / "gtsrb/GT-final_test.csv", "Filename;ClassId\n")
        assert message("gtsrb", tmp_path, "test") == (
            f"gtsrb is not in {tmp_path} and could not be downloaded ({REFUSED}): put GTSRB_Final_Test_Images.zip "
            "(MD5 c7e4e6327067d32654124b0fe9e82185), or unpacked GTSRB/Final_Test/Images, "
            f"into {tmp_path / 'gtsrb'}, or allow network access"
        )

    def test_unknown_split(self, tmp_path: Path) -> None:
        assert message("gtsrb", tmp_path, "val") == "gtsrb has no split 'val': expected train or test"


class TestTinyImageNet:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        write_tinyimagenet(tmp_path / "tiny-imagenet-200", WNIDS)
        return tmp_path / "tiny-imagenet-200"

    def test_train_agrees_with_torchvision(self, tree: Path) -> None:
        from torchvision.datasets import ImageFolder

        data, reference = load("tinyimagenet", tree.parent, "train"), ImageFolder(str(tree / "train"))
        assert data.images_NCHW.shape == (6, 3, 64, 64)
        assert [str(tree.parent / name) for name in data.sample_ids] == [path for path, _ in reference.samples]
        assert data.targets_N is not None
        assert data.targets_N.tolist() == reference.targets == [0, 0, 1, 1, 2, 2]
        for row, (image, _) in enumerate(reference):
            np.testing.assert_array_equal(data.images_NCHW[row], np.asarray(image).transpose(2, 0, 1))
        assert data.class_names == [f"thing {wnid}, object" for wnid in sorted(WNIDS)]

    def test_val_has_the_labels_of_its_annotations(self, tree: Path) -> None:
        data = load("tinyimagenet", tree.parent, "val")
        assert [name.rpartition("/")[2] for name in data.sample_ids] == [f"val_{n}.JPEG" for n in range(6)]
        assert data.targets_N is not None
        assert data.targets_N.tolist() == [1, 0, 2, 1, 0, 2]  # sorted, WNIDS[1] comes before WNIDS[0]
        red = data.images_NCHW[:, 0].mean((1, 2))
        np.testing.assert_allclose(red, [0, 40, 80, 0, 40, 80], atol=4)

    def test_test_has_none(self, tree: Path) -> None:
        data = load("tinyimagenet", tree.parent, "test")
        assert data.images_NCHW.shape == (3, 3, 64, 64)
        assert (data.targets_N, data.class_names) == (None, None)

    def test_size_and_grey(self, tree: Path) -> None:
        data = load("tinyimagenet", tree.parent, "val", 8, grayscale=True)
        assert data.images_NCHW.shape == (6, 1, 8, 8)
        assert data.images_NCHW[2].mean() == pytest.approx(0.299 * 80, abs=3)

    def test_classes_without_words_go_by_their_id(self, tree: Path) -> None:
        (tree / "words.txt").write_text(f"{WNIDS[1]}\tgoldfish, Carassius auratus\n")
        names = load("tinyimagenet", tree.parent, "val").class_names
        assert names == ["goldfish, Carassius auratus", "n02124075", "n04067472"]
        (tree / "words.txt").unlink()
        assert load("tinyimagenet", tree.parent, "val").class_names == sorted(WNIDS)

    def test_trees_that_are_not_whole(self, tree: Path) -> None:
        root, table = tree.parent, tree / "val/val_annotations.txt"
        write_jpeg(tree / "val/images/val_6.JPEG", (1, 2, 3))
        said = "not in val_annotations.txt (1 such files)"
        assert message("tinyimagenet", root, "val") == f"{tree / 'val/images/val_6.JPEG'}: {said}"
        for name in ("val_6", "val_4"):
            (tree / f"val/images/{name}.JPEG").unlink()
        said = "missing (1 of 6 images in val_annotations.txt)"
        assert message("tinyimagenet", root, "val") == f"{tree / 'val/images/val_4.JPEG'}: {said}"
        good = table.read_text()
        table.write_text(good + "val_9.JPEG\n")
        said = "line 7: expected a file name, a tab and a class; delete it and fetch it again"
        assert message("tinyimagenet", root, "val") == f"{table}: {said}"
        table.unlink()
        assert message("tinyimagenet", root, "val") == f"{table}: not found; delete {tree / 'val'} and fetch it again"

    def test_classes_that_disagree(self, tree: Path) -> None:
        root, wnids = tree.parent, tree / "wnids.txt"
        wnids.write_text("n01443537\nn02124075\n")
        for split, place in (("train", "train"), ("val", "val/val_annotations.txt")):
            said = f"class 'n04067472' is not in {wnids}"
            assert message("tinyimagenet", root, split) == f"{tree / place}: {said}"
        wnids.write_text("\n".join((*WNIDS, "n00000001")))
        said = f"holds no images, but {wnids} lists it"
        assert message("tinyimagenet", root, "train") == f"{tree / 'train/n00000001'}: {said}"
        wnids.unlink()
        assert message("tinyimagenet", root, "train") == f"{wnids}: not found; delete {tree} and fetch it again"

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_class_that_is_listed_twice(self, tree: Path, split: str) -> None:
        wnids = tree / "wnids.txt"
        wnids.write_text("\n".join((*WNIDS, WNIDS[1])))
        said = f"{wnids}: lists {WNIDS[1]} twice; delete it and fetch it again"
        assert message("tinyimagenet", tree.parent, split) == said

    def test_an_image_that_is_listed_twice(self, tree: Path) -> None:
        table = tree / "val/val_annotations.txt"
        good = table.read_text()
        table.write_text(good + f"val_0.JPEG\t{WNIDS[0]}\t0\t0\t9\t9\n")
        assert load("tinyimagenet", tree.parent, "val").targets_N is not None
        table.write_text(good + f"val_0.JPEG\t{WNIDS[1]}\t0\t0\t9\t9\n")
        said = f"lists val_0.JPEG as {WNIDS[0]} and as {WNIDS[1]}; delete it and fetch it again"
        assert message("tinyimagenet", tree.parent, "val") == f"{table}: {said}"

    @pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
    def test_folders_in_the_places_of_tables(self, tree: Path, name: str) -> None:
        (tree / name).unlink()
        (tree / name).mkdir()
        assert message("tinyimagenet", tree.parent, "val") == f"{tree / name}: is not a file; move it away"

    def test_a_file_in_the_place_of_the_folder(self, tmp_path: Path) -> None:
        path = write(tmp_path / "tiny-imagenet-200", b"")
        assert message("tinyimagenet", tmp_path, "val") == f"{path}: is not a folder; move it away"

    def test_damaged_picture(self, tree: Path) -> None:
        path = tree / "test/images/test_1.JPEG"
        path.write_bytes(path.read_bytes()[:300])
        assert message("tinyimagenet", tree.parent, "test").startswith(f"{path}: cannot be read (")

    def test_a_folder_without_the_split(self, tmp_path: Path) -> None:
        (tmp_path / "tiny-imagenet-200").mkdir()
        folder = tmp_path / "tiny-imagenet-200" / "val"
        assert message("tinyimagenet", tmp_path, "val") == f"{folder}: no such folder"

    def test_refused_download(self, tmp_path: Path) -> None:
        assert message("tinyimagenet", tmp_path, "train") == (
            f"tinyimagenet is not in {tmp_path} and could not be downloaded ({REFUSED}): put tiny-imagenet-200.zip "
            f"(MD5 90528d7ca1a48142e341f4ef8d21d0de), or unpacked tiny-imagenet-200, into {tmp_path}, "
            "or allow network access"
        )

    def test_unknown_split(self, tmp_path: Path) -> None:
        expected = "tinyimagenet has no split 'vall': expected train, val or test; did you mean 'val'?"
        assert message("tinyimagenet", tmp_path, "vall") == expected
