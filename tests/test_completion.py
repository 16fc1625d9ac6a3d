"""Shell completion, asked for as the shells' own scripts ask."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from deepcluster import completion
from deepcluster.params.edit import leaves


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with epochs 1, 2 and 10, of which the last is not complete, and two recipes."""
    monkeypatch.chdir(tmp_path)
    for epoch in (0, 1, 2):
        (tmp_path / f"data/epochs/{epoch}/checkpoint").mkdir(parents=True)
    (tmp_path / "data/epochs/10/features.zarr").mkdir(parents=True)
    (tmp_path / "data/history/1").mkdir(parents=True)
    (tmp_path / "data/history/1/train.json").touch()
    (tmp_path / "data/history/2/clusters.zarr").mkdir(parents=True)
    (tmp_path / "data/epochs/3/.checkpoint.17.partial").mkdir(parents=True)
    (tmp_path / "data/history/notes").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/digits.yaml").write_text("# The default\nseed: 1\n")
    (tmp_path / "recipes/paper-alexnet.yaml").write_text("# The paper's\n")
    return tmp_path


def offered(*words: str, shell: str = "bash") -> list[str]:
    """What `deepcluster WORDS<Tab>` offers, the last word being typed."""
    line = " ".join(["deepcluster", *words])
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words))},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = os.environ | {"_DEEPCLUSTER_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(CHECKOUT)} | asked
    program = "import sys; sys.argv = ['deepcluster']; from deepcluster.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=False)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.endswith("\n") else done.stdout.splitlines()


class TestOffers:
    def test_epochs_that_exist_in_order_with_what_they_have(self, folder):
        assert completion.epochs("") == [("1", "checkpoint, train"), ("2", "checkpoint, clusters"), ("10", "features")]
        assert [epoch for epoch, _ in completion.epochs("1")] == ["1", "10"]
        assert completion.epochs_and_untrained("") == [("0", "untrained"), ("1", "checkpoint"), ("2", "checkpoint")]

    def test_recipes(self, folder):
        assert completion.recipes("") == [("digits", "The default"), ("paper-alexnet", "The paper's")]
        assert completion.recipes("p") == [("paper-alexnet", "The paper's")]

    def test_keys_of_params_and_the_words_they_take(self):
        assert [key for key, _ in completion.settings("")] == [f"{leaf}=" for leaf in leaves()]
        assert [key for key, _ in completion.settings("cluster.k")] == ["cluster.k="]
        assert [key for key, _ in completion.settings("model.arch=resnet1")] == [
            "model.arch=resnet18", "model.arch=resnet101", "model.arch=resnet152",
        ]  # fmt: skip
        assert [key for key, _ in completion.settings("augment.crop=")] == ["augment.crop=true", "augment.crop=false"]
        assert [key for key, _ in completion.settings("augment.flip=")] == [
            "augment.flip=true", "augment.flip=false", "augment.flip=null",
        ]  # fmt: skip
        assert [key for key, _ in completion.settings("augment.padding=n")] == ["augment.padding=null"]
        assert [key for key, _ in completion.settings("augment.padding=b")] == ["augment.padding=border"]
        assert completion.settings("train.clip_norm=") == []  # null, or any number
        assert (
            completion.settings("cluster.k=") == completion.settings("no.such=") == completion.settings("model=") == []
        )

    def test_nothing_where_there_is_no_project(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert completion.epochs("") == completion.epochs_and_untrained("") == completion.recipes("") == []

    def test_a_recipe_that_cannot_be_read_is_no_error(self, folder):
        (folder / "recipes/bad.yaml").write_bytes(b"\xff")
        assert completion.recipes("") == []


class TestShells:
    def test_bash(self, folder):
        assert offered("pca", "--epoch", "") == ["1", "2", "10"]
        assert offered("recipe", "d") == ["digits"]

    @pytest.mark.parametrize(
        ("command", "epochs"),
        [
            (("show", "checkpoint", "--epoch"), ["0", "1", "2"]),
            (("show", "features", "--epoch"), ["10"]),
            (("show", "clusters", "-e"), ["2"]),
            (("filters", "--epoch"), ["0", "1", "2"]),
            (("bundle", "--labels", "pseudo", "--epoch"), ["1", "2", "10"]),
            (("sweep-k", "--epoch"), ["1", "2", "10"]),
            (("compare", "1"), ["1", "2", "10"]),
        ],
    )
    def test_epochs_wherever_a_command_takes_one(self, folder, command, epochs):
        assert offered(*command, "") == epochs

    def test_the_recipe_of_a_run(self, folder):
        assert offered("run", "--recipe", "p") == ["paper-alexnet"]

    @pytest.mark.parametrize("shell", ["zsh", "fish"])
    def test_others_show_what_it_is_as_well(self, folder, shell):
        (line,) = offered("recipe", "d", shell=shell)
        assert "digits" in line
        assert "The default" in line

    def test_settings(self, folder):
        assert offered("run", "-S", "pca.w") == ["pca.whiten="]
        assert offered("set", "seed=1", "train.clip") == ["train.clip_norm="]

    def test_the_script_to_install(self, folder):
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv = ['deepcluster', '--show-completion', 'bash']; "
             "from deepcluster.cli import main; main()"],
            env=os.environ | {"PYTHONPATH": str(CHECKOUT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert "_DEEPCLUSTER_COMPLETE=complete_bash" in done.stdout
