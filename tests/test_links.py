"""Symbolic links: not followed out of image folders and bundles, unless that is asked for."""

import os
import shutil
from pathlib import Path

import pytest
from bundles import noise_bundle
from conftest import edit_params, write_images
from PIL import Image

from deepcluster.datasets.folder import list_images, read_folder
from deepcluster.errors import ArtifactError, DataError
from deepcluster.params import load_params
from deepcluster.using.bundle import read_bundle, write_bundle


def save(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)
    return path


def read(root: Path, *, follow_links: bool, split: str = "all") -> dict[str, int]:
    """The first pixel of each image, by its id."""
    found = read_folder(root, split=split, image_size=None, grayscale=True, follow_links=follow_links)
    return dict(zip(found.sample_ids, found.images_NCHW[:, 0, 0, 0].tolist(), strict=True))


class TestFolders:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """One image inside, and links to a file and a folder outside."""
        save(tmp_path / "store/one.png", 1)
        save(tmp_path / "store/deep/two.png", 2)
        root = save(tmp_path / "root/inside/zero.png").parents[1]
        (root / "file.png").symlink_to(tmp_path / "store/one.png")
        (root / "folder").symlink_to(tmp_path / "store")
        return root

    def test_not_followed_and_how_to_ask(self, root):
        with pytest.raises(DataError) as caught:
            read(root, follow_links=False)
        assert str(caught.value).splitlines() == [
            f"{root}: 2 of 3 images cannot be read (max_unreadable is 0):",
            "  file.png: link that leads out of the folder",
            "  folder: link to a folder elsewhere",
            "  data.follow_links: true follows links that lead elsewhere",
        ]

    def test_followed_when_asked_for(self, root):
        expected = {"file.png": 1, "folder/deep/two.png": 2, "folder/one.png": 1, "inside/zero.png": 0}
        assert read(root, follow_links=True) == expected

    def test_other_trouble_does_not_mention_links(self, tmp_path):
        (tmp_path / "empty.png").touch()
        with pytest.raises(DataError) as caught:
            read(tmp_path, follow_links=False)
        assert "follow_links" not in str(caught.value)

    def test_a_folder_is_read_once_by_the_first_link(self, root, tmp_path):
        (root / "again").symlink_to(tmp_path / "store")
        assert "again/one.png" in read(root, follow_links=True)
        assert "folder/one.png" not in read(root, follow_links=True)

    def test_circles_end(self, root, tmp_path):
        (tmp_path / "store/self").symlink_to(tmp_path / "store")
        (tmp_path / "store/back").symlink_to(root)
        (root / "loop").symlink_to(root)
        listed, refused = list_images(root, root, follow_links=True)
        assert listed == ["file.png", "folder/deep/two.png", "folder/one.png", "inside/zero.png"]
        assert refused == {}

    def test_a_link_to_what_holds_the_folder(self, root, tmp_path):
        (root / "up").symlink_to(tmp_path)
        listed, refused = list_images(root, root, follow_links=True)
        assert len(listed) == 4
        assert refused == {"up": "link to a folder that holds this one"}

    def test_broken_links_and_devices_stay_refused(self, root):
        (root / "gone.png").symlink_to("nowhere.png")
        (root / "zero.png").symlink_to("/dev/zero")
        _, refused = list_images(root, root, follow_links=True)
        assert refused == {"gone.png": "broken link", "zero.png": "not a regular file"}

    def test_a_split_may_be_a_link_when_asked_for(self, root, tmp_path):
        (root / "train").symlink_to(tmp_path / "store")
        with pytest.raises(DataError, match="is a link that leads out of"):
            read(root, follow_links=False, split="train")
        assert read(root, follow_links=True, split="train") == {"train/deep/two.png": 2, "train/one.png": 1}


class TestCommands:
    @pytest.fixture
    def linked(self, tmp_path) -> Path:
        """A folder of links to images."""
        write_images(tmp_path / "store", count=12)
        folder = tmp_path / "linked"
        for path in sorted((tmp_path / "store").rglob("*.png")):
            place = folder / path.relative_to(tmp_path / "store")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
        return folder

    def test_prepare_by_params_and_artifacts_say_so(self, workspace, outcome, linked):
        from deepcluster import artifacts, layout
        from deepcluster.estimate.size import data_size

        before = artifacts.open_store(layout.IMAGES, "images", made_by="prepare").attributes["params"]
        assert "follow_links" not in before  # so what was prepared before there was the key is still the same bytes
        edit_params(Path("params.yaml"), {"data.root": str(linked)})
        assert outcome("prepare")[0] == 2
        status, out, err = outcome("prepare", "-S", "data.follow_links=true")
        assert (status, out.splitlines()[-1]) == (0, "12 images of 8x8, 1 channels; 0 files skipped"), err
        after = artifacts.open_store(layout.IMAGES, "images", made_by="prepare").attributes["params"]
        assert after == before | {"root": str(linked), "follow_links": True}
        data = load_params().data
        assert data_size(data).source == str(layout.IMAGES)
        shutil.rmtree("data/dataset")
        assert (data_size(data).count, data_size(data).source) == (12, f"names in {linked}")

    def test_assign_and_sort(self, noise, linked, outcome, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
        status, _, err = outcome("assign", "linked", "--bundle", str(noise), "--out", "-")
        assert status == 2
        refused = "12 files, of which none can be read: linked/above/000.png: link that leads out of the folder"
        assert f"error: {refused}" in err
        rows = outcome("assign", "linked", "--bundle", str(noise), "--out", "-", "--follow-links")[1].splitlines()
        assert len(rows) == 13
        assert all(row.endswith(",") for row in rows[1:])  # no error
        command = ("sort", "linked", "--into", "sorted", "--link", "--bundle", str(noise))
        assert outcome(*command)[0] == 2
        status, out, err = outcome(*command, "--follow-links")
        assert (status, out) == (0, "sorted: 12 links; labels.csv says what went where\n"), err
        targets = {os.path.realpath(path) for path in Path("sorted").rglob("*.png")}
        assert targets == {str(path) for path in (tmp_path / "store").rglob("*.png")}

    def test_new_remembers_it(self, linked, outcome, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert outcome("new", "p", "--images", "linked")[0] == 2
        status, out, err = outcome("new", "p", "--images", "linked", "--follow-links")
        assert status == 0, err
        assert "  data.follow_links: true (asked for with --follow-links)\n" in out
        assert load_params(Path("p/params.yaml")).data.follow_links is True


class TestBundles:
    @pytest.fixture
    def bundle(self, tmp_path) -> Path:
        write_bundle(tmp_path / "b", noise_bundle())
        return tmp_path / "b"

    def elsewhere(self, bundle: Path, name: str, place: Path) -> None:
        shutil.move(bundle / name, place)
        (bundle / name).symlink_to(place)

    @pytest.mark.parametrize("name", ["backbone.safetensors", "bundle.json", "README.txt"])
    def test_a_link_out_of_it(self, bundle, tmp_path, name):
        self.elsewhere(bundle, name, tmp_path / name)
        with pytest.raises(ArtifactError) as caught:
            read_bundle(bundle)
        assert str(caught.value) == (
            f"{bundle / name}: a link that leads out of the bundle, not followed; copy the bundle with `cp -rL` if you "
            "trust it"
        )
        shutil.copytree(bundle, tmp_path / "copy")  # what `cp -rL` does
        assert read_bundle(tmp_path / "copy").k == 4

    def test_a_device_is_not_read(self, bundle):
        (bundle / "backbone.safetensors").unlink()
        os.mkfifo(bundle / "backbone.safetensors")  # reading it would wait for ever
        with pytest.raises(ArtifactError, match=r"backbone\.safetensors: damaged \(not a file\)"):
            read_bundle(bundle)

    def test_links_within_it_and_to_it_are_fine(self, bundle, tmp_path):
        self.elsewhere(bundle, "backbone.safetensors", bundle / "weights")
        (tmp_path / "link").symlink_to(bundle)
        assert read_bundle(tmp_path / "link").k == 4
