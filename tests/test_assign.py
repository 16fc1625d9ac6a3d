"""`deepcluster assign`: the table, every kind of file, and what is refused."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import motifs, save_motif
from conftest import write_images
from PIL import Image
from safetensors.numpy import load_file
from scipy.spatial.distance import cdist

from deepcluster.checkpoint import BackboneDescription

HEADER = "sample,cluster,distance,second,second_distance,outlier,error"


@pytest.fixture
def assign(noise, tmp_path, monkeypatch, outcome):
    """Runs `deepcluster assign ARGUMENTS` with the bundle of noise, in an empty folder."""
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: outcome("assign", *arguments, "--bundle", str(noise))


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["sample"]: row for row in csv.DictReader(text.splitlines())}


def clusters_of(text: str) -> dict[str, str]:
    return {name: row["cluster"] for name, row in rows_of(text).items()}


class TestTable:
    def test_files_and_folders_in_their_order(self, assign):
        for name, number in (("z.png", 3), ("in/b.png", 1), ("in/a.png", 2), ("in/deep/er/c.png", 0)):
            save_motif(Path(name), number)
        status, out, _ = assign("z.png", "in", "--out", "-")
        assert status == 0
        assert list(clusters_of(out).items()) == [
            ("z.png", "3"),
            ("in/a.png", "2"),
            ("in/b.png", "1"),
            ("in/deep/er/c.png", "0"),
        ]
        assert out.splitlines()[0] == HEADER

    def test_the_same_in_a_file(self, assign):
        save_motif(Path("a.png"), 1)
        _, printed, _ = assign("a.png", "--out", "-")
        status, out, err = assign("a.png", "--out", "labels.csv")
        assert (status, out) == (0, "")
        assert Path("labels.csv").read_text() == printed
        assert err.splitlines()[-1] == "1 image by noise (k = 4); 0 outliers"

    def test_what_is_no_motif_is_an_outlier(self, assign):
        save_motif(Path("own.png"), 1)
        Image.fromarray(motifs(1, seed=77)[0, 0]).save("other.png")
        rows = rows_of(assign("own.png", "other.png", "--out", "-")[1])
        assert [row["outlier"] for row in rows.values()] == ["false", "true"]
        assert float(rows["own.png"]["distance"]) < 1e-6 < float(rows["other.png"]["distance"])

    def test_distances_are_those_of_the_features(self, workspace, outcome):
        """By torch, numpy and scipy alone, in float64, from what lies on disk."""
        write_images(Path("new"), count=20, seed=8)
        outcome("bundle", "--no-check")
        status, out, _ = outcome("assign", "new", "--bundle", "bundle", "--out", "-")
        assert status == 0
        rows = rows_of(out)
        backbone = BackboneDescription("convnet", 1, 8, sobel=False).build().double().eval()
        weights = load_file("data/epochs/2/checkpoint/model.safetensors")
        backbone.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        pixels = np.stack([np.asarray(Image.open(name), np.float64)[None] / 255 for name in rows])
        import zarr

        facts = zarr.open_group("data/dataset/images.zarr", mode="r").attrs
        inputs = (pixels - facts["mean"][0]) / facts["std"][0]
        with torch.no_grad():
            features = backbone(torch.from_numpy(inputs)).numpy()
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        centroids = zarr.open_group("data/evaluation/clusters.zarr", mode="r")["centroids"][:].astype(float)
        expected = cdist(features, centroids)
        order = expected.argsort(axis=1)
        cells = list(rows.values())
        assert [int(row["cluster"]) for row in cells] == order[:, 0].tolist()
        assert [int(row["second"]) for row in cells] == order[:, 1].tolist()
        expected.sort(axis=1)
        np.testing.assert_allclose([float(row["distance"]) for row in cells], expected[:, 0], rtol=1e-4)
        np.testing.assert_allclose([float(row["second_distance"]) for row in cells], expected[:, 1], rtol=1e-4)


class TestKindsOfFiles:
    def test_modes_and_formats_are_decoded_as_in_training(self, assign):
        grey = Image.fromarray(motifs(1)[0, 0])
        kinds = {
            "rgb.png": grey.convert("RGB"),
            "palette.gif": grey.convert("P"),
            "sixteen.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
            "alpha.png": grey.convert("LA"),
            "plain.pgm": grey,
            "lossless.webp": grey.convert("RGB"),
        }
        for name, image in kinds.items():
            image.save(name, **({"lossless": True} if name.endswith("webp") else {}))
        grey.save("moving.gif", save_all=True, append_images=[Image.fromarray(motifs(2)[1, 0])])
        grey.convert("CMYK").save("print.jpg", quality=100)
        grey.resize((32, 32), Image.Resampling.NEAREST).save("large.bmp")
        rows = rows_of(assign(".", "--out", "-")[1])
        assert len(rows) == 9
        assert {row["cluster"] for row in rows.values()} == {"0"}
        exact = [row["distance"] for name, row in rows.items() if name not in ("print.jpg", "large.bmp")]
        assert max(map(float, exact)) < 1e-6

    def test_one_pixel_is_enough(self, assign):
        Image.new("L", (1, 1), 200).save("dot.png")
        Image.new("L", (3, 900), 200).save("line.png")
        rows = rows_of(assign("dot.png", "line.png", "--out", "-")[1])
        assert rows["dot.png"]["cluster"] == rows["line.png"]["cluster"] != ""

    def test_a_named_file_may_be_called_anything(self, assign):
        save_motif(Path("a.png"), 2).rename("image")
        assert clusters_of(assign("image", "--out", "-")[1]) == {"image": "2"}


class TestTrouble:
    def test_files_that_cannot_be_read_have_a_row(self, assign):
        save_motif(Path("in/good.png"), 1)
        Path("in/empty.png").touch()
        Path("in/text.jpg").write_text("not a picture")
        Path("in/cut.png").write_bytes(Path("in/good.png").read_bytes()[:50])
        Path("in/out.png").symlink_to("/etc/passwd")
        status, _, err = assign("in", "--out", "t.csv")
        assert status == 0
        rows = rows_of(Path("t.csv").read_text())
        assert list(rows) == ["in/cut.png", "in/empty.png", "in/good.png", "in/out.png", "in/text.jpg"]
        errors = {name: row["error"] for name, row in rows.items()}
        assert errors["in/good.png"] == ""
        assert errors["in/empty.png"] == "empty file"
        assert errors["in/out.png"] == "link that leads out of the folder"
        assert errors["in/text.jpg"] == "not an image of a known format"
        assert errors["in/cut.png"]
        assert [row["cluster"] for row in rows.values()] == ["", "", "1", "", ""]
        lines = err.splitlines()
        assert lines[-2] == "1 image by noise (k = 4); 0 outliers"
        assert lines[-1].startswith("warning: 4 files cannot be read: in/out.png: link that leads out of the folder; ")
        assert lines[-1].endswith("; ...")

    def test_bad_files_between_good_ones_shift_nothing(self, assign, monkeypatch):
        monkeypatch.setattr("deepcluster.using.files._FILES_AT_ONCE", 3)
        for index in range(11):
            path = Path(f"in/{index:02}.png")
            if index in (0, 4, 5, 6, 10):
                path.parent.mkdir(exist_ok=True)
                path.touch()
            else:
                save_motif(path, index % 4)
        found = clusters_of(assign("in", "--out", "-")[1])
        expected = {i: "" if i in (0, 4, 5, 6, 10) else str(i % 4) for i in range(11)}
        assert list(found.values()) == list(expected.values())

    def test_none_can_be_read(self, assign):
        Path("empty.png").touch()
        status, _, err = assign("empty.png", "--out", "t.csv")
        assert status == 2
        assert err.splitlines()[-1] == "error: 1 file, of which none can be read: empty.png: empty file"
        assert Path("t.csv").read_text() == f"{HEADER}\nempty.png,,,,,,empty file\n"

    def test_one_that_is_not_there_stands_in_the_table_of_the_others(self, assign):
        save_motif(Path("a.png"), 1)
        save_motif(Path("in/b.png"), 2)
        status, out, err = assign("a.png", "gone.png", "in", "--out", "t.csv")
        assert (status, out) == (1, "")
        assert err.splitlines()[-2:] == [
            "2 images by noise (k = 4); 0 outliers",
            "warning: 1 file cannot be read: gone.png: no such file or folder",
        ]
        text = Path("t.csv").read_text()
        assert list(clusters_of(text).items()) == [("a.png", "1"), ("gone.png", ""), ("in/b.png", "2")]
        assert rows_of(text)["gone.png"]["error"] == "no such file or folder"

    def test_one_in_a_folder_that_cannot_be_read_is_no_mistake_of_the_command_line(self, assign):
        save_motif(Path("in/a.png"), 1)
        Path("in/empty.png").touch()
        assert assign("in", "--out", "t.csv")[0] == 0

    def test_a_pipe_is_not_waited_for(self, assign):
        os.mkfifo("pipe.png")
        assert assign("pipe.png", "--out", "-")[1] == f"{HEADER}\npipe.png,,,,,,not a regular file\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["none.png", "gone", "--out", "-"],
                "error: none.png: no such file or folder\nerror: gone: no such file or folder\n",
            ),
            (
                ["empty", "--out", "-"],
                "error: empty: holds no images (.png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm)\n",
            ),
            (["in", "--out", "in"], "error: --out: in is a folder; name a file\n"),
            (["in", "--out", "no/t.csv"], "error: --out: no: no such folder\n"),
            (
                ["in", "--out", "in/a.png"],
                "error: --out: in/a.png exists and is no table of `deepcluster assign`; name another file\n",
            ),
        ],
    )
    def test_refused(self, assign, arguments, message):
        content = save_motif(Path("in/a.png"), 1).read_bytes()
        Path("empty").mkdir()
        status, out, err = assign(*arguments)
        assert (status, out, err.splitlines()[-len(message.splitlines()) :]) == (2, "", message.splitlines())
        assert Path("in/a.png").read_bytes() == content

    def test_a_name_too_long_for_any_file_system(self, assign):
        status, _, err = assign("x" * 5000, "--out", "-")
        assert (status, err) == (2, f"error: {'x' * 5000}: no such file or folder\n")

    def test_an_earlier_table_is_replaced(self, assign):
        save_motif(Path("a.png"), 1)
        save_motif(Path("b.png"), 2)
        assign("a.png", "--out", "t.csv")
        assert assign("b.png", "--out", "t.csv")[0] == 0
        assert clusters_of(Path("t.csv").read_text()) == {"b.png": "2"}


class TestNames:
    @pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-b.png", "@c.png", "\td.png", "\re.png"])
    def test_no_cell_begins_a_formula(self, assign, name):
        save_motif(Path("in") / name, 1)
        os.chdir("in")
        status, _, _ = assign(".", "--out", "../t.csv")
        assert status == 0
        with open("../t.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["sample"] for row in rows] == [f"./{name}"]
        assert Path(rows[0]["sample"]).is_file()

    @pytest.mark.parametrize(
        "name", ["<script>alert(1)</script>".replace("/", "\\") + ".png", "日本 ü é.png", 'a,b"c.png', "two\nlines.png"]
    )
    def test_others_stand_as_they_are(self, assign, name):
        save_motif(Path(name), 1)
        assign(".", "--out", "t.csv")
        with open("t.csv", encoding="utf-8", newline="") as file:
            assert [row["sample"] for row in csv.DictReader(file)] == [name]

    def test_as_long_as_a_name_can_be(self, assign):
        name = "é" * 125 + "x.png"
        assert len(name.encode()) == 255
        save_motif(Path("short.png"), 3).rename(name)
        assert clusters_of(assign(".", "--out", "-")[1]) == {name: "3"}

    def test_bytes_that_are_no_text(self, assign):
        save_motif(Path("in/good.png"), 1)
        shutil.copyfile("in/good.png", b"in/caf\xe9.png")
        expected = {"in/caf\\udce9.png": "name is not UTF-8", "in/good.png": ""}
        assert {name: row["error"] for name, row in rows_of(assign("in", "--out", "-")[1]).items()} == expected
        found = rows_of(assign(os.fsdecode(b"in/caf\xe9.png"), "--out", "-")[1])
        assert {name: row["error"] for name, row in found.items()} == {"in/caf\\udce9.png": "name is not UTF-8"}

    def test_no_escape_sequence_reaches_the_terminal(self, assign):
        Path("\x1b[31mred.png").touch()
        _, _, err = assign(".", "--out", "t.csv")
        assert "\\x1b[31mred.png: empty file" in err
        assert "\x1b" not in err


class TestWhichBundle:
    def test_a_project_s_own_as_it_is_now(self, workspace, outcome):
        write_images(Path("new"), count=4, seed=8)
        Path("bundle").mkdir()  # of an earlier run, perhaps; a project does not take it
        status, out, err = outcome("assign", "new", "--out", "-")
        assert status == 0
        assert "by the final clustering of epoch 2 (k = 2)" in err
        shutil.rmtree("bundle")
        outcome("bundle", "--no-check")
        assert outcome("assign", "new", "--bundle", "bundle", "--out", "-")[1] == out

    def test_elsewhere_the_folder_bundle(self, tmp_path, noise, outcome, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_motif(Path("a.png"), 1)
        message = (
            "error: --bundle: needed here, as this folder is no project that has run and holds no ./bundle; "
            "`deepcluster bundle` writes one, in a project's folder\n"
        )
        assert outcome("assign", "a.png", "--out", "-") == (2, "", message)
        shutil.copytree(noise, "bundle")
        assert clusters_of(outcome("assign", "a.png", "--out", "-")[1]) == {"a.png": "1"}

    def test_the_data_set_is_not_read(self, workspace, outcome):
        write_images(Path("new"), count=4, seed=8)
        expected = outcome("assign", "new", "--out", "-")[1]
        shutil.rmtree("data/dataset/targets.zarr")
        for shard in Path("data/dataset/images.zarr/images/c").rglob("*"):
            if shard.is_file():
                shard.write_bytes(bytes(shard.stat().st_size))  # its size is looked at, not its content
        assert outcome("assign", "new", "--out", "-")[1] == expected
