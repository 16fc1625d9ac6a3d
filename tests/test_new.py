"""`deepcluster new`: a look at the images, settings that fit them, and a project that is whole or not there."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT, command_environment
from PIL import Image
from ruamel.yaml import YAML

from deepcluster.errors import DataError, UserError
from deepcluster.fingerprints import code_text, fingerprints
from deepcluster.params import final_k, load_params
from deepcluster.projects.choices import Choice, choices, clusters_of, image_side
from deepcluster.projects.git import DVC_CONFIG
from deepcluster.projects.look import Look, look_at
from deepcluster.projects.settings_text import params_text, with_reasons
from deepcluster.projects.write import new_project
from deepcluster.shipped import shipped, shipped_text

SEEN = Look(
    root=Path("/photos"),
    split="all",
    count=1_000,
    empty=0,
    refused=0,
    looked=3,
    unreadable={},
    sides=(70, 80, 300),
    grey=False,
    classes=(),
)


def seen(**changes: Any) -> Look:
    return Look(**{**vars(SEEN), **changes})


def chosen(**changes: Any) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choices(seen(**changes))}


def write(
    folder: Path, *, count: int = 12, size: tuple[int, int] = (40, 30), grey: bool = False, name: str = ""
) -> Path:
    """Noise as PNG files: WIDTH x HEIGHT."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = rng.integers(0, 255, (size[1], size[0], 1 if grey else 3)).astype(np.uint8)
        Image.fromarray(pixels[:, :, 0] if grey else pixels).save(folder / f"{name}{index:02}.png")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a space in its name, and nobody's own settings of git and DVC."""
    for name, value in command_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    for name in ("DVC_STAGE", "COLUMNS", "GIT_DIR"):
        monkeypatch.delenv(name, raising=False)
    import dvc.logger  # noqa: F401  gives DVC's log the streams of the test that imports it first

    monkeypatch.setattr(logging.getLogger("dvc"), "handlers", [])
    root = tmp_path / "a place"
    root.mkdir()
    monkeypatch.chdir(root)
    return root


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, text=True, capture_output=True, check=True).stdout


class TestLook:
    def test_counts_measures_and_names_what_cannot_be_read(self, tmp_path):
        write(tmp_path / "a", count=3, size=(40, 30))
        write(tmp_path / "b", count=2, size=(20, 90))
        (tmp_path / "b/empty.jpg").touch()
        (tmp_path / "b/text.png").write_text("no image")
        (tmp_path / "a/notes.txt").write_text("not counted")
        (tmp_path / "a/outside.png").symlink_to("/etc/hostname")
        found = look_at(tmp_path)
        assert (found.split, found.count, found.empty, found.refused, found.looked) == ("all", 7, 1, 1, 7)
        assert found.unreadable == {"b/empty.jpg": "empty file", "b/text.png": "not an image of a known format"}
        assert sorted(found.sides) == [20, 20, 30, 30, 30]
        assert found.side == 30
        assert (found.grey, found.classes) == (False, ("a", "b"))

    def test_takes_the_train_folder_where_there_is_one(self, tmp_path):
        write(tmp_path / "train/cat", count=2)
        write(tmp_path / "train/dog", count=2)
        write(tmp_path / "test/cat", count=5)
        found = look_at(tmp_path)
        assert (found.split, found.count, found.classes) == ("train", 4, ("cat", "dog"))

    @pytest.mark.parametrize(
        ("folders", "classes"), [(("",), ()), (("one",), ()), (("one", ""), ()), (("one", "two"), ("one", "two"))]
    )
    def test_classes_by_the_rule_of_image_folders(self, tmp_path, folders, classes):
        for folder in folders:
            write(tmp_path / folder, count=2)
        assert look_at(tmp_path).classes == classes

    def test_a_sample_is_spread_evenly_over_the_folder(self, tmp_path):
        for index in range(10):
            write(tmp_path, count=1, size=(10 + index, 10 + index), name=f"{index}")
        found = look_at(tmp_path, sample=4)
        assert (found.count, found.looked, found.sides) == (10, 4, (10, 13, 16, 19))

    def test_grey_photographs_saved_in_colour_are_grey(self, tmp_path):
        rng = np.random.default_rng(1)
        for index in range(3):
            grey = Image.fromarray(rng.integers(0, 255, (40, 40)).astype(np.uint8))
            grey.convert("RGB").save(tmp_path / f"{index}.jpg")
        assert look_at(tmp_path).grey
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[20:, :, 0] = 60  # one dark red corner
        Image.fromarray(pixels).save(tmp_path / "red.png")
        assert not look_at(tmp_path).grey

    def test_names_that_are_long_or_not_ascii(self, tmp_path):
        write(tmp_path / "фото 写真", count=2, name="é" * 100)
        assert look_at(tmp_path).count == 2


class TestSide:
    @pytest.mark.parametrize(
        ("middle", "count", "expected"),
        [
            (4, 100, 8),  # no network takes less
            (28, 60_000, 28),
            (32, 100, 32),
            (63, 100, 32),
            (64, 100, 64),
            (100, 100, 96),
            (4000, 100, 128),
            (4000, 12_817, 128),  # 12,817 x 128 x 128 = 209,993,728
            (4000, 12_818, 96),
            (4000, 50_000, 64),
            (4000, 10_000_000, 32),
        ],
    )
    def test_by_the_median_and_the_number(self, middle, count, expected):
        assert image_side(seen(sides=(middle,), count=count)) == expected

    def test_is_one_that_params_and_architecture_take(self):
        for side in (1, 9, 40, 70, 500):
            text = params_text(seen(sides=(side,)), choices(seen(sides=(side,))))
            assert YAML(typ="safe").load(text)["data"]["image_size"] >= 8


@pytest.mark.parametrize(
    ("count", "k"),
    [(10, 2), (100, 7), (1_797, 30), (10_000, 70), (60_000, 170), (1_000_000, 700), (100_000_000, 1000)],
)
def test_k_grows_with_the_root_of_the_number(count, k):
    assert clusters_of(count) == k


class TestChoices:
    def test_for_few_images(self):
        found = chosen(count=40)
        assert (found["cluster.k"], found["pca.components"]) == (4, 20)
        assert (found["train.epoch_size"], found["train.batch_size"]) == (10.0, 32)  # 400 images, 13 steps

    def test_for_many(self):
        found = chosen(count=200_000, sides=(500,))
        assert (found["data.image_size"], found["epochs"], found["train.schedule.epochs"]) == (32, 10, 10)
        assert (found["train.epoch_size"], found["train.batch_size"], found["cluster.k"]) == (1.0, 128, 310)

    def test_for_as_many_as_digits_they_are_those_of_digits(self):
        found, shipped_params = chosen(count=1_797, sides=(8,), grey=True), load_params(CHECKOUT / "params.yaml")
        for key in ("model.arch", "pca.components", "cluster.k", "epochs", "train.epoch_size", "train.batch_size"):
            value: Any = shipped_params
            for part in key.split("."):
                value = getattr(value, part)
            assert found[key] == value, key

    def test_for_photographs_they_are_those_of_the_recipe(self, tmp_path):
        """Of as many as its k is for; but where the images lie, and what was seen of their files."""
        look = seen(count=20_500, sides=(100,), split="train")
        path = tmp_path / "params.yaml"
        path.write_text(params_text(look, choices(look)), encoding="utf-8")
        found, recipe = (load_params(file).model_dump() for file in (path, CHECKOUT / "recipes/image-folder.yaml"))
        assert (found["data"].pop("root"), found["data"].pop("max_unreadable")) == ("/photos", 0.0)
        del recipe["data"]["root"], recipe["data"]["max_unreadable"]
        assert found == recipe

    def test_photographs_are_cropped_and_coloured_grey_images_are_neither(self):
        assert (chosen()["augment.crop"], chosen()["augment.hue"], chosen()["augment.rotation"]) == (True, 0.1, 0.0)
        grey = chosen(grey=True)
        assert grey["data.grayscale"] is True
        assert [key for key in grey if key.startswith("augment.")] == ["augment.flip"]

    def test_above_64_pixels_a_resnet(self):
        assert (chosen(sides=(64,))["model.arch"], chosen(sides=(96,))["model.arch"]) == ("convnet", "resnet18")

    @pytest.mark.parametrize(
        ("changes", "share"),
        [
            ({}, 0.0),
            ({"looked": 100, "unreadable": {"x": "empty file"}}, 0.03),
            ({"empty": 20}, 0.05),
            ({"refused": 1_000}, 0.9),
        ],
    )
    def test_the_share_to_skip(self, changes, share):
        assert chosen(**changes)["data.max_unreadable"] == share

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"looked": 1, "unreadable": {"x": "empty file"}, "empty": 1}, "1 of 1 image looked at cannot be read"),
            (
                {"unreadable": {"x": "cut short"}, "empty": 1},
                "1 of 3 images looked at cannot be read, 1 other file is empty",
            ),
            ({"empty": 1_200}, "0 of 3 images looked at cannot be read, 1,200 other files are empty"),
            ({"refused": 1}, "0 of 3 images looked at cannot be read, 1 file may not be opened"),
        ],
    )
    def test_each_unreadable_file_is_counted_once(self, changes, words):
        (why,) = (choice.why for choice in choices(seen(**changes)) if choice.key == "data.max_unreadable")
        assert why == f"{words}; `prepare` lists what it skips"

    def test_too_few_images(self):
        message = "/photos: 12 images, of which about 9 can be read; clusters need 10 at least"
        with pytest.raises(DataError, match=f"^{message}$"):
            choices(seen(count=12, looked=4))

    @pytest.mark.parametrize("grey", [True, False])
    @pytest.mark.parametrize("count", [10, 11, 3_000, 90_000])
    @pytest.mark.parametrize("sides", [(3,), (20, 40), (90,), (2_000,)])
    def test_are_valid_together(self, tmp_path, grey, count, sides):
        look = seen(count=count, sides=sides, looked=len(sides), grey=grey)
        path = tmp_path / "params.yaml"
        path.write_text(params_text(look, choices(look)), encoding="utf-8")
        params = load_params(path)
        assert params.cluster.k <= count / 2
        assert params.pca.components <= count / 2
        assert params.train.batch_size <= count * params.train.epoch_size


class TestParamsText:
    def test_every_choice_stands_below_its_reason(self):
        found = choices(SEEN)
        text = params_text(SEEN, found)
        for choice in found:
            first = choice.why.split()[0]
            assert f"# new: {first}" in text
        assert text.count("# new: ") == len(found)
        loaded = YAML(typ="safe").load(text)
        for choice in found:
            value = loaded
            for part in choice.key.split("."):
                value = value[part]
            assert value == choice.value, choice.key

    def test_the_rest_is_the_shipped_file(self):
        changed = {choice.key.split(".")[-1] for choice in choices(SEEN)}
        shipped_lines = [
            line for line in shipped_text("params.yaml").splitlines() if line.split(":")[0].strip() not in changed
        ]
        written = params_text(SEEN, choices(SEEN)).splitlines()
        assert [line for line in shipped_lines if line not in written] == []

    def test_lines_are_short(self):
        written = params_text(SEEN, choices(SEEN)).splitlines()
        assert [line for line in written if len(line) > 120 and line.lstrip().startswith("#")] == []

    def test_a_reason_goes_above_its_key_as_deep_as_it(self):
        text = "epochs: 3\nmodel:\n  arch: convnet  # x\n"
        reasons = [Choice("model.arch", "convnet", "line\nbreaks go"), Choice("epochs", 3, "few")]
        assert with_reasons(text, reasons) == (
            "# new: few\nepochs: 3\nmodel:\n  # new: line?breaks go\n  arch: convnet  # x\n"
        )

    @pytest.mark.parametrize("name", ["/a b/é", "/x: # y", "/'\"\\", "/null", "-1", "~", "/tab\there", "/写真"])
    def test_any_path_is_read_back_as_it_is(self, tmp_path, name):
        look = seen(root=Path(name))
        path = tmp_path / "params.yaml"
        path.write_text(params_text(look, choices(look)), encoding="utf-8")
        assert load_params(path).data.root == name


class TestCommand:
    def test_makes_a_project_that_git_and_dvc_know(self, outcome, place):
        write(place / "my images", count=20)
        status, out, _ = outcome("new", "a project", "--images", "my images")
        assert status == 0
        lines = out.splitlines()
        assert (
            "  evaluate.k: null (clusters of the result: 3 so, as the pseudo-labels; any other number can be set)"
            in lines
        )
        assert lines[0] == f"{place}/my images: 20 images, 0 of 20 looked at cannot be read"
        assert "  data.image_size: 30 (their shorter sides have 30 pixels)" in lines
        assert out.endswith(
            "a project: project made\n\nNext:\n  cd 'a project'\n  deepcluster doctor\n  deepcluster estimate\n"
            "  deepcluster run\n  deepcluster summary\n"
        )
        project = place / "a project"
        assert load_params(project / "params.yaml").data.root == f"{place}/my images"
        assert git(project, "log", "--format=%s") == "Project made by `deepcluster new`\n"
        assert git(project, "status", "--porcelain") == ""
        assert sorted(git(project, "ls-files").splitlines()) == [
            ".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "README.md", "dvc.yaml", "params.yaml",
            *sorted(f"recipes/{path.name}" for path in (CHECKOUT / "recipes").glob("*.yaml")),
            "stages/code.yaml", "stages/schedule.yaml",
        ]  # fmt: skip
        assert sorted(path.name for path in place.iterdir()) == ["a project", "my images"]

    def test_git_leaves_out_what_the_commands_write_under_their_usual_names(self, outcome, place):
        write(place / "images")
        assert outcome("new", "p", "--images", "images")[0] == 0
        for name in ("bundle/bundle.json", "sorted/00/a.png", "labels.csv", "params.before-recipe-2.yaml"):
            (place / "p" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "p" / name).touch()
        (place / "p/notes.txt").touch()
        assert git(place / "p", "status", "--porcelain") == "?? notes.txt\n"

    @pytest.mark.parametrize(
        ("folders", "clusters", "words"),
        [(("",), 3, "as many as pseudo-labels"), (("cat", "dog"), 2, "a cluster for each subfolder")],
    )
    def test_it_says_how_many_clusters_the_result_has(self, place, folders, clusters, words):
        for folder in folders:
            write(place / "images" / folder, count=20 // len(folders), name=folder)
        look, found, _ = new_project(place / "p", place / "images")
        params = load_params(place / "p/params.yaml")
        assert final_k(params, len(look.classes)) == clusters
        (why,) = (choice.why for choice in found if choice.key == "evaluate.k")
        assert why.startswith(f"clusters of the result: {clusters} so, ")
        about = " ".join((place / "p/README.md").read_text().split())
        assert "Training is on `cluster.k` = 3 pseudo-labels." in about
        assert f"`evaluate.k` clusters: null, so {clusters}, {words}. " in about

    def test_the_same_cache_settings_as_here(self):
        assert (CHECKOUT / ".dvc/config").read_text() == DVC_CONFIG

    def test_an_empty_folder_stays_the_same_one(self, outcome, place, monkeypatch):
        write(place / "images")
        (place / "project").mkdir()
        inode = (place / "project").stat().st_ino
        monkeypatch.chdir(place / "project")
        assert outcome("new", ".", "--images", "../images")[0] == 0
        assert (place / "project").stat().st_ino == inode
        assert Path("dvc.yaml").is_file()
        assert git(Path(), "status", "--porcelain") == ""
        assert not list(Path().glob(".new*"))

    def test_without_a_git_identity_nothing_is_committed_but_all_is_staged(self, outcome, place, monkeypatch):
        write(place / "images")
        for role in ("AUTHOR", "COMMITTER"):
            for what in ("NAME", "EMAIL"):
                monkeypatch.delenv(f"GIT_{role}_{what}", raising=False)
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
        status, out, _ = outcome("new", "p", "--images", "images")
        assert status == 0
        assert "p: project made; not committed yet, as git knows no user.name\n" in out
        assert all(line.startswith("A ") for line in git(place / "p", "status", "--porcelain").splitlines())


class TestRefusals:
    """Before anything is written."""

    @pytest.fixture
    def refused(self, outcome, place):
        def run(*arguments: str, message: str) -> None:
            before = sorted(place.rglob("*"))
            status, out, err = outcome("new", *arguments)
            assert (status, out) == (2, "")
            assert [line for line in err.splitlines() if line.startswith("error")] == [f"error: {message}"]
            assert sorted(place.rglob("*")) == before

        return run

    def test_no_such_folder(self, refused, place):
        refused("p", "--images", "none", message=f"{place}/none: no such folder")

    def test_a_file(self, refused, place):
        (place / "file").touch()
        refused("p", "--images", "file", message=f"{place}/file: is not a folder")

    def test_no_images(self, refused, place):
        (place / "empty").mkdir()
        extensions = ".png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm"
        refused("p", "--images", "empty", message=f"{place}/empty: holds no images ({extensions})")

    def test_none_readable(self, refused, place):
        (place / "bad").mkdir()
        (place / "bad/a.png").touch()
        (place / "bad/b.png").write_text("text")
        found = "a.png: empty file; b.png: not an image of a known format"
        refused("p", "--images", "bad", message=f"{place}/bad: none of the 2 images looked at can be read: {found}")

    def test_only_links_that_lead_out(self, refused, place):
        (place / "links").mkdir()
        (place / "links/a.png").symlink_to("/etc/hostname")
        message = f"{place}/links: none of its images may be read: a.png: link that leads out of the folder"
        refused("p", "--images", "links", message=message)

    def test_a_folder_that_is_taken(self, refused, place):
        write(place / "images")
        (place / "p").mkdir()
        (place / "p/mine").touch()
        taken = "is not empty; name a folder that does not exist yet, or an empty one"
        refused("p", "--images", "images", message=f"{place}/p: {taken}")
        refused(
            "p/mine", "--images", "images", message=f"{place}/p/mine: is not a folder; name one that does not exist yet"
        )

    def test_among_the_images(self, refused, place):
        write(place / "images")
        message = "lies in the folder of images, which then would hold the project's own pictures"
        refused("images/p", "--images", "images", message=f"{place}/images/p: {message}")

    def test_no_git(self, refused, place, monkeypatch):
        write(place / "images")
        monkeypatch.setenv("PATH", "/nowhere")
        message = "git: not found; install it, since DVC keeps a project's history with it"
        refused("p", "--images", "images", message=message)

    def test_a_name_that_yaml_cannot_hold(self, refused, place):
        name = os.fsdecode(b"\xff")
        full = os.fsencode(place / name)
        refused("p", "--images", name, message=f"{full!r}: name is not UTF-8, which params.yaml cannot hold")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_no_permission(self, refused, place):
        write(place / "images")
        place.chmod(0o555)
        refused("p", "--images", "images", message=f"{place}: cannot be written to; name another place for the project")


class TestInterrupted:
    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("where", ["initialise", "commit"])
    def test_nothing_half_made_stays(self, outcome, place, monkeypatch, exists, where):
        from deepcluster.projects import write as module

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        write(place / "images")
        if exists:
            (place / "p").mkdir()
        before = sorted(place.iterdir())
        monkeypatch.setattr(module, where, interrupt)
        assert outcome("new", "p", "--images", "images")[0] == 130
        assert sorted(place.iterdir()) == before
        assert not exists or not list((place / "p").iterdir())

    def test_what_git_says_is_passed_on(self, place):
        from deepcluster.projects.git import git as run_git

        with pytest.raises(UserError, match=r"^git commit: fatal: not a git repository"):
            run_git(place, "commit", "--quiet")


def test_a_project_runs_and_another_version_of_the_code_makes_its_stages_stale(outcome, place, monkeypatch):
    """Made, run and run again in this process, as a person would who then installs another deepcluster."""
    from deepcluster import fingerprints as module

    write(place / "images/a", count=8, size=(8, 8), grey=True)
    write(place / "images/b", count=8, size=(8, 8), grey=True)
    assert outcome("new", "p", "--images", "images")[0] == 0
    monkeypatch.chdir(place / "p")
    tiny = ("-S", "epochs=1", "-S", "train.epoch_size=1.0", "-S", "evaluate.restarts=1")
    assert outcome("run", *tiny, "-S", "cluster.fail_on_collapse=false")[1].endswith("8 stages ran\n")
    assert outcome("run")[1].endswith("everything is up to date\n")
    assert json.loads(Path("data/evaluation/metrics.json").read_text())["epoch"] == 1
    changed = dict(fingerprints()) | {"evaluate": "0" * 16}
    monkeypatch.setattr(module, "fingerprints", lambda: changed)
    output = outcome("run")[1]
    assert "] evaluate" in output
    assert "] pca@1" not in output
    assert "evaluate: '0000000000000000'" in Path("dvc.lock").read_text()


@pytest.mark.slow
def test_from_a_wheel_outside_of_the_source_tree(tmp_path):
    """Built, unpacked as pip would, and used with the dependencies that are installed here."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(CHECKOUT)], check=True, capture_output=True)
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), tmp_path / "site", "zip")
    write(tmp_path / "images/a", size=(10, 9))
    write(tmp_path / "images/b", size=(10, 9))
    environment = command_environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*command: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    program = (sys.executable, "-m", "deepcluster")
    run(*program, "new", "my project", "--images", "images")
    project = tmp_path / "my project"
    assert (project / "stages/code.yaml").read_text() == code_text()
    assert [path.name for path in sorted((project / "recipes").iterdir())] == sorted(
        path.name for path in shipped("recipes").glob("*.yaml")
    )
    where = "import deepcluster, stages; print(deepcluster.__file__, stages.__file__)"
    assert run(sys.executable, "-c", where, folder=project).count(str(tmp_path / "site")) == 2
    tiny = ("-S", "epochs=1", "-S", "cluster.fail_on_collapse=false", "-S", "train.epoch_size=1.0")
    assert run(*program, "run", *tiny, folder=project).endswith("8 stages ran\n")
    assert "Running stage" not in run("dvc", "repro", folder=project)
    assert "Data and pipelines are up to date." in run("dvc", "status", folder=project)
    assert "paper-alexnet" in run(*program, "recipe", folder=project)
