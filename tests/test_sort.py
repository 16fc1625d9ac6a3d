"""`deepcluster sort`: where images end up, and that nothing else is ever touched."""

import csv
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from bundles import noise_bundle, save_motif

from deepcluster.using.bundle import write_bundle


@pytest.fixture
def sort(noise, tmp_path, monkeypatch, outcome):
    """Runs `deepcluster sort ARGUMENTS` with the bundle of noise, in a folder with the images of `photos`."""
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, number in (("a.png", 0), ("sub/a.png", 0), ("sub/A.PNG", 0), ("sub/b.png", 3), ("x/y/a.png", 1)):
        save_motif(Path("photos/t.png"), number)
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos/t.png").rename(Path("photos", name))
    Path("photos/bad.png").touch()
    return lambda *arguments: outcome("sort", *arguments, "--bundle", str(noise))


def tree(folder: str) -> dict[str, str]:
    """sha256 of every file, links followed, by path."""
    paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def table(folder: str) -> list[dict[str, str]]:
    with Path(folder, "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("how", ["--copy", "--link"])
def test_a_folder_for_each_cluster(sort, how):
    before = tree("photos")
    status, out, err = sort("photos", "--into", "sorted here", how)
    assert status == 0
    names = {"00": ["A-2.PNG", "a-3.png", "a.png"], "01": ["a.png"], "03": ["b.png"]}
    found = {path.name: sorted(os.listdir(path)) for path in Path("sorted here").iterdir() if path.is_dir()}
    assert found == names
    assert tree("photos") == before
    where = {row["sample"]: row["file"] for row in table("sorted here")}
    assert where == {
        "photos/a.png": "00/a.png",
        "photos/bad.png": "",
        "photos/sub/A.PNG": "00/A-2.PNG",
        "photos/sub/a.png": "00/a-3.png",
        "photos/sub/b.png": "03/b.png",
        "photos/x/y/a.png": "01/a.png",
    }
    contents = tree("sorted here")
    for sample, file in where.items():
        assert not file or contents[file] == before[str(Path(sample).relative_to("photos"))]
    kind = "copies" if how == "--copy" else "links"
    assert out == f"sorted here: 5 {kind}; labels.csv says what went where\n"
    assert err.splitlines()[-1] == "warning: 1 file cannot be read: photos/bad.png: empty file"
    links = [Path("sorted here", file).is_symlink() for file in where.values() if file]
    assert links == [how == "--link"] * 5


def test_links_are_relative_and_move_along(sort, tmp_path):
    sort("photos", "--into", "sorted", "--link")
    assert os.readlink("sorted/03/b.png") == "../../photos/sub/b.png"
    os.chdir(tmp_path)
    Path("here").rename("there")
    assert Path("there/sorted/03/b.png").read_bytes() == Path("there/photos/sub/b.png").read_bytes()


def test_links_lead_to_the_image_from_behind_a_link_to_a_folder(sort, tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    Path("near").symlink_to(tmp_path / "far/away")
    assert sort("photos", "--into", "near/sorted", "--link")[0] == 0
    assert Path("near/sorted/03/b.png").read_bytes() == Path("photos/sub/b.png").read_bytes()


def test_copies_do_not_change_with_the_original(sort):
    sort("photos", "--into", "sorted", "--copy")
    content = Path("sorted/03/b.png").read_bytes()
    Path("photos/sub/b.png").write_bytes(b"else")
    assert Path("sorted/03/b.png").read_bytes() == content


def test_names_that_would_grow_too_long(sort):
    name = "é" * 125 + "x.png"  # 255 bytes
    shutil.copyfile("photos/a.png", f"photos/{name}")
    shutil.copyfile("photos/a.png", f"photos/sub/{name}")
    assert sort("photos", "--into", "sorted", "--copy")[0] == 0
    found = sorted(name for name in os.listdir("sorted/00") if "é" in name)
    assert found == sorted([name, "é" * 124 + "-2.png"])  # 248 bytes and an ending of 6; half a letter would not do


def test_as_many_digits_as_the_clusters_need(sort, tmp_path, outcome):
    write_bundle(tmp_path / "many", noise_bundle(101))
    outcome("sort", "photos", "--into", "sorted", "--link", "--bundle", str(tmp_path / "many"))
    assert {path.name for path in Path("sorted").iterdir()} == {"000", "001", "003", "labels.csv"}


class TestSecondRun:
    def test_it_needs_force_and_leaves_nothing_of_the_first(self, sort):
        sort("photos", "--into", "sorted", "--link")
        expected = "error: --into: sorted is not empty; --force replaces what an earlier `deepcluster sort` laid out\n"
        assert sort("photos", "--into", "sorted", "--copy") == (2, "", expected)
        shutil.rmtree("photos/x")
        assert sort("photos", "--into", "sorted", "--copy", "--force")[0] == 0
        assert {path.name for path in Path("sorted").iterdir()} == {"00", "03", "labels.csv"}
        assert not Path("sorted/03/b.png").is_symlink()

    def test_what_else_lies_there_is_never_deleted(self, sort):
        sort("photos", "--into", "sorted", "--link")
        Path("sorted/00/note.txt").write_text("mine")
        expected = "error: --into: sorted holds what was not laid out there, such as '00/note.txt'; name a new folder\n"
        assert sort("photos", "--into", "sorted", "--link", "--force") == (2, "", expected)
        assert Path("sorted/00/note.txt").read_text() == "mine"

    def test_another_folder_is_never_replaced(self, sort):
        Path("mine").mkdir()
        Path("mine/labels.csv").write_text("sample,cluster\n")
        expected = "error: --into: mine is not empty; name a new folder\n"
        assert sort("photos", "--into", "mine", "--link", "--force") == (2, "", expected)

    def test_an_empty_folder_is_taken(self, sort):
        Path("sorted").mkdir()
        assert sort("photos", "--into", "sorted", "--link")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--into", "s"], "sort: say --copy (copies) or --link (relative symbolic links)"),
        (["none", "--into", "s", "--copy"], "none: no such folder"),
        (["photos/a.png", "--into", "s", "--copy"], "photos/a.png: is not a folder"),
        (
            ["photos", "--into", "photos/s", "--copy"],
            "--into: photos/s and photos lie one in the other; name a folder apart from the images",
        ),
        (
            ["photos/sub", "--into", "photos", "--copy", "--force"],
            "--into: photos and photos/sub lie one in the other; name a folder apart from the images",
        ),
        (
            ["photos", "--into", "link/s", "--copy"],
            "--into: link/s and photos lie one in the other; name a folder apart from the images",
        ),
        (
            ["photos", "--into", "photos", "--link", "--force"],
            "--into: photos and photos lie one in the other; name a folder apart from the images",
        ),
        (["photos", "--into", "no/s", "--copy"], "--into: no: no such folder"),
        (["photos", "--into", "file", "--copy"], "--into: file is a file; name a folder"),
        (
            ["empty", "--into", "s", "--copy"],
            "empty: holds no images (.png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm)",
        ),
    ],
)
def test_refused(sort, arguments, message):
    Path("empty").mkdir()
    Path("file").touch()
    Path("link").symlink_to("photos")
    before = tree("photos")
    status, out, err = sort(*arguments)
    assert (status, out, err.splitlines()[-1]) == (2, "", f"error: {message}")
    assert tree("photos") == before
    assert not Path("s").exists()


def test_the_current_folder_is_refused(sort, tmp_path):
    (tmp_path / "work").mkdir()
    os.chdir(tmp_path / "work")
    message = "error: --into: . is the current folder, or holds it; name a new folder\n"
    assert sort("../here/photos", "--into", ".", "--copy") == (2, "", message)


def test_without_one_image_that_can_be_read_nothing_is_laid_out(sort):
    Path("bad").mkdir()
    Path("bad/0.png").touch()
    status, _, err = sort("bad", "--into", "s", "--copy")
    assert (status, err.splitlines()[-1]) == (2, "error: 1 file, of which none can be read: bad/0.png: empty file")
    assert not Path("s").exists()


def test_a_full_disk_leaves_nothing(sort, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    status, _, err = sort("photos", "--into", "s", "--copy")
    assert (status, err.splitlines()[-1]) == (2, "error: --into: s cannot be written: No space left on device")
    assert sorted(os.listdir()) == ["photos"]
