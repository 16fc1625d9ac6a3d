"""recipes/: complete and valid files, put in the place of params.yaml without losing it; the paper's, at work."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT
from dataset_files import cifar_batch, write_idx
from PIL import Image
from ruamel.yaml import YAML

from deepcluster import artifacts, layout
from deepcluster.params import load_params
from deepcluster.params.edit import leaves
from deepcluster.plan import scheduled_epochs

RECIPES = sorted((CHECKOUT / "recipes").glob("*.yaml"), key=lambda path: path.stem)
NAMES = ", ".join(path.stem for path in RECIPES)
PAPER, V2 = CHECKOUT / "recipes/paper-alexnet.yaml", CHECKOUT / "recipes/deepcluster-v2.yaml"
IMAGES = 36
SMALL = {
    "cluster.k": 4, "data.image_size": 20, "pca.components": 6, "epochs": 1, "evaluate.restarts": 1,
    "pca.backend": "sklearn",  # streaming takes the eigenvectors of 4096 x 4096, many seconds, for these 36 images
}  # fmt: skip
SET = [argument for key, value in SMALL.items() for argument in ("-S", f"{key}={value}")]


def write_photographs(folder: Path, *, count: int = IMAGES) -> None:
    """Three class folders of colour images, 30 pixels wide and 24 high: stripes across, stripes down, noise."""
    rng = np.random.default_rng(0)
    for index in range(count):
        name = ("across", "down", "noise")[index % 3]
        pixels = rng.integers(0, 90, (24, 30, 3)).astype(np.uint8)
        if name != "noise":
            lit = (slice(None, None, 4), slice(None)) if name == "across" else (slice(None), slice(None, None, 4))
            pixels[lit] += rng.integers(60, 150, 3).astype(np.uint8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{index:03}.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder without DVC, as current folder, with the shipped params.yaml and recipes."""
    root = tmp_path / "a folder"
    (root / "stages").mkdir(parents=True)
    shutil.copyfile(CHECKOUT / "params.yaml", root / "params.yaml")
    shutil.copytree(CHECKOUT / "recipes", root / "recipes")
    monkeypatch.chdir(root)
    for name in ("DVC_STAGE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    return root


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestEveryRecipe:
    def test_is_valid_and_names_every_key_in_the_schemas_order(self, path):
        def keys(tree: Any, prefix: str = "") -> list[str]:
            nested = [keys(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"] for k, v in tree.items()]
            return [key for group in nested for key in group]

        assert sorted(keys(YAML(typ="safe").load(path))) == sorted(leaves())
        load_params(path)

    def test_begins_with_a_line_on_what_it_is(self, path):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        assert len(first) <= 120


def test_digits_is_the_params_file_that_the_project_comes_with():
    """Line by line, comments too, below a header of its own."""
    shipped, recipe = ((CHECKOUT / name).read_text() for name in ("params.yaml", "recipes/digits.yaml"))
    assert recipe[recipe.index("\nseed:") :] == shipped[shipped.index("\nseed:") :]


def test_the_page_on_recipes_names_each():
    text = (CHECKOUT / "docs/recipes.md").read_text(encoding="utf-8")
    assert [name for name in NAMES.split(", ") if f"| `{name}` |" not in text] == []


def test_the_papers_setting():
    expected = {
        "epochs": 500,
        "data": {"image_size": 224, "grayscale": False},
        "model": {"arch": "alexnet", "sobel": True, "weights": None},
        "pca": {"enabled": True, "components": 256, "whiten": True, "normalize": True},
        "cluster": {
            "method": "kmeans",
            "k": 10_000,
            "iterations": 20,
            "restarts": 1,
            "init": "random",
            "points_per_centroid": None,
            "warm_start": False,
            "match_labels": False,
        },
        "train": {"batch_size": 256, "epoch_size": 1.0, "loss": "cross_entropy", "freeze": [], "clip_norm": None},
        "augment": {
            "crop": True,
            "crop_scale": [0.08, 1.0],
            "flip": True,
            "vertical_flip": False,
            "rotation": 0.0,
            "brightness": 0.0,
            "autocontrast": 0.0,
        },
    }
    found = load_params(PAPER).model_dump(mode="json")
    for section, values in expected.items():
        assert values == ({key: found[section][key] for key in values} if isinstance(values, dict) else found[section])
    sgd = {"name": "sgd", "lr": 0.05, "weight_decay": 1e-5}
    assert sgd | {"momentum": 0.9} == {key: found["train"]["optimizer"][key] for key in (*sgd, "momentum")}
    head = sgd | {"momentum": 0.0, "reset": True, "carry_optimizer": False}
    assert head == {key: found["train"]["head"][key] for key in head}
    assert found["train"]["schedule"]["name"] == "constant"
    assert found["train"]["contrastive"]["strategy"] == "none"


def test_deepcluster_v2_as_published_or_scaled():
    found = load_params(V2).model_dump(mode="json")
    train, v2 = found["train"], found["train"]["v2"]
    assert train["method"] == "deepcluster_v2"
    assert (v2["hidden"], v2["outputs"], v2["temperature"], v2["global_crops"]) == (2048, 128, 0.1, 2)
    assert (found["cluster"]["clusterings"], found["cluster"]["spherical"], found["cluster"]["iterations"]) == (
        3,
        True,
        10,
    )
    sgd = {"name": "lars", "momentum": 0.9, "weight_decay": 1e-6}
    assert sgd == {key: train["optimizer"][key] for key in sgd}
    assert train["optimizer"]["lr"] / train["batch_size"] == pytest.approx(4.8 / 4096)
    schedule = {"name": "cosine", "warmup": 10.0, "epochs": found["epochs"], "floor": 0.001}
    assert schedule == {key: train["schedule"][key] for key in schedule}


def test_one_epoch_of_deepcluster_v2_scaled_down(outcome, folder, tmp_path):
    """Through the real stages, small crops of 16 pixels beside images of 20."""
    write_photographs(tmp_path / "photos")
    small = {
        "data.name": "folder", "data.root": tmp_path / "photos", "data.image_size": 20, "epochs": 1, "cluster.k": 4,
        "evaluate.restarts": 1, "model.arch": "convnet", "train.v2.hidden": 16, "cluster.fail_on_collapse": "false",
    }  # fmt: skip
    overrides = [argument for key, value in small.items() for argument in ("-S", f"{key}={value}")]
    assert outcome("recipe", "deepcluster-v2", *overrides)[0] == 0
    for stage in ("prepare", "initialise", "extract@1", "pca@1", "cluster@1", "train@1", "evaluate"):
        name, _, number = stage.partition("@")
        status, _, err = outcome(name, *(("--epoch", number) if number else ()))
        assert status == 0, err
    assert artifacts.read_bank(layout.checkpoint(1)).shape == (IMAGES, 128)
    clusters = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
    assert clusters.shape("labels_all") == (3, IMAGES)
    summary = json.loads(layout.train_summary(1).read_text())
    assert (summary["images"], summary["steps"]) == (IMAGES, 1)
    assert 0.5 * np.log(4) < summary["loss"] < 6  # cosines of random projections over a temperature of 0.1


class TestCommand:
    def test_without_a_name_lists_them_with_their_first_line(self, outcome, folder):
        (folder / "recipes/another.yaml").write_text("#   What it is\nseed: 1\n")
        status, out, _ = outcome("recipe")
        lines = out.splitlines()
        assert status == 0
        assert [line.partition(": ")[0] for line in lines] == sorted(["another", *(path.stem for path in RECIPES)])
        assert lines[0] == "another: What it is"
        first = PAPER.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"paper-alexnet: {first}" in lines

    def test_replaces_params_keeps_the_old_file_and_plans(self, outcome, folder):
        before = Path("params.yaml").read_bytes()
        status, out, err = outcome("recipe", "paper-alexnet", "-S", "data.root=/photos", "-S", "epochs=3")
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            "recipes/paper-alexnet.yaml: data.root: /path/to/photographs -> /photos",
            "recipes/paper-alexnet.yaml: epochs: 500 -> 3",
            "params.yaml: recipe paper-alexnet, 3 epochs; the file before is params.before-recipe.yaml",
        ]
        assert Path("params.before-recipe.yaml").read_bytes() == before
        assert scheduled_epochs() == [1, 2, 3]
        now = Path("params.yaml").read_text().splitlines()
        recipe = PAPER.read_text().splitlines()
        assert [line for line in now if line not in recipe] == [
            "epochs: 3               # the paper's; the code's default is 200",
            "  root: /photos",
        ]
        assert Path("recipes/paper-alexnet.yaml").read_bytes() == PAPER.read_bytes()

    def test_never_loses_a_file(self, outcome, folder):
        contents = []
        for seed in (5, 6, 7):
            text = (CHECKOUT / "params.yaml").read_text().replace("seed: 1 ", f"seed: {seed} ")
            Path("params.yaml").write_text(text)
            contents.append(text)
            outcome("recipe", "paper-alexnet")
        kept = [Path(f"params.before-recipe{end}.yaml").read_text() for end in ("", "-2", "-3")]
        assert kept == contents
        Path("params.yaml").write_text(contents[1])  # kept already
        assert "the file before is params.before-recipe-2.yaml" in outcome("recipe", "paper-alexnet")[1]
        assert len(list(Path().glob("params.before-recipe*"))) == 3

    def test_keeps_nothing_where_nothing_changes(self, outcome, folder):
        Path("params.yaml").write_bytes(PAPER.read_bytes())
        assert outcome("recipe", "paper-alexnet")[1] == "params.yaml: recipe paper-alexnet, 500 epochs\n"
        assert not list(Path().glob("params.before-recipe*"))

    def test_does_not_keep_a_recipe_as_it_stands(self, outcome, folder):
        outcome("recipe", "paper-alexnet")
        Path("params.before-recipe.yaml").unlink()
        expected = "params.yaml: recipe digits, 20 epochs\n"
        assert outcome("recipe", "digits") == (0, expected, "")
        assert not list(Path().glob("params.before-recipe*"))
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 1 ", "seed: 2 "))
        assert "the file before is params.before-recipe.yaml" in outcome("recipe", "paper-alexnet")[1]

    def test_does_not_need_the_old_file_nor_read_it(self, outcome, folder):
        Path("params.yaml").write_bytes(b"\xff not yaml: [")
        assert outcome("recipe", "paper-alexnet")[0] == 0
        assert Path("params.before-recipe.yaml").read_bytes() == b"\xff not yaml: ["
        Path("params.yaml").unlink()
        assert outcome("recipe", "paper-alexnet")[0] == 0
        assert load_params() == load_params(PAPER)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("papr-alexnet",), f"papr-alexnet: no such recipe; did you mean 'paper-alexnet'?; there are {NAMES}"),
            (("../params",), f"../params: no such recipe; there are {NAMES}"),
            (("paper-alexnet", "-S", "cluster.k=1"), "recipes/paper-alexnet.yaml: cluster.k: must be >= 2; got 1"),
            (("-S", "cluster.k=3"), "recipe: -S needs the name of a recipe to set keys in"),
        ],
    )
    def test_a_mistake_changes_nothing(self, outcome, folder, arguments, message):
        assert outcome("recipe", *arguments) == (2, "", f"error: {message}\n")
        assert Path("params.yaml").read_bytes() == (CHECKOUT / "params.yaml").read_bytes()
        assert not layout.SCHEDULE.exists()
        assert not list(Path().glob("params.before-recipe*"))

    def test_a_folder_in_the_place_of_params(self, outcome, folder):
        Path("params.yaml").unlink()
        Path("params.yaml").mkdir()
        message = "error: params.yaml: cannot be read: Is a directory\n"
        assert outcome("recipe", "paper-alexnet") == (2, "", message)

    def test_no_recipes(self, outcome, folder):
        shutil.rmtree("recipes")
        message = "recipes: no such folder; run this in the project's folder, the one with dvc.yaml"
        assert outcome("recipe") == (2, "", f"error: {message}\n")
        assert outcome("recipe", "x")[2] == "error: x: no such recipe; recipes holds none\n"


class TestRunWithARecipe:
    """What `deepcluster run --recipe` hands to the runner, whose own tests have the rest."""

    @pytest.fixture
    def ran(self, monkeypatch):
        """The settings, schedule and targets of each run, which does nothing."""
        from deepcluster import runner

        found = []

        def run(targets, *, pull):
            found.append((load_params(), scheduled_epochs(), list(targets)))
            return runner.Done(0, 0)

        monkeypatch.setattr(runner, "run", run)
        return found

    def test_is_recipe_and_run(self, outcome, folder, ran):
        before = Path("params.yaml").read_bytes()
        overrides = ("-S", "data.root=/photos", "-S", "epochs=3")
        status, out, err = outcome("run", "--recipe", "paper-alexnet", *overrides, "train@2")
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            "recipes/paper-alexnet.yaml: data.root: /path/to/photographs -> /photos",
            "recipes/paper-alexnet.yaml: epochs: 500 -> 3",
            "params.yaml: recipe paper-alexnet, 3 epochs; the file before is params.before-recipe.yaml",
            "everything is up to date",
        ]
        assert Path("params.before-recipe.yaml").read_bytes() == before
        ((params, schedule, targets),) = ran
        assert (params.model.arch, params.data.root, params.epochs) == ("alexnet", "/photos", 3)
        assert (schedule, targets) == ([1, 2, 3], ["train@2"])

    def test_again_replaces_and_keeps_nothing_more(self, outcome, folder, ran):
        for _ in range(3):
            outcome("run", "--recipe", "paper-alexnet", "-S", "epochs=3")
        assert [schedule for _, schedule, _ in ran] == [[1, 2, 3]] * 3
        assert [path.name for path in Path().glob("params.before-recipe*")] == ["params.before-recipe.yaml"]

    def test_own_changes_give_way_and_are_kept_once(self, outcome, folder, ran):
        for _ in range(3):
            outcome("run", "--recipe", "digits")
            outcome("set", "cluster.k=7")
        outcome("run", "--recipe", "digits")
        assert ran[-1][0] == load_params(CHECKOUT / "params.yaml")
        kept = [load_params(path).cluster.k for path in sorted(Path().glob("params.before-recipe*"))]
        assert sorted(kept) == [7, 30]  # 30: the file that the project comes with

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--recipe", "digit"), f"digit: no such recipe; did you mean 'digits'?; there are {NAMES}"),
            (("--recipe", "digits", "-S", "cluster.k=1"), "recipes/digits.yaml: cluster.k: must be >= 2; got 1"),
        ],
    )
    def test_a_mistake_runs_and_changes_nothing(self, outcome, folder, ran, arguments, message):
        assert outcome("run", *arguments) == (2, "", f"error: {message}\n")
        assert Path("params.yaml").read_bytes() == (CHECKOUT / "params.yaml").read_bytes()
        assert ran == []
        assert not layout.SCHEDULE.exists()


SCALED = {"epochs": 1, "train.epoch_size": 0.5, "pca.components": 6, "cluster.k": 4, "evaluate.restarts": 1}
STAGES = ("prepare", "initialise", "extract@1", "pca@1", "cluster@1", "train@1", "evaluate", "report")


def write_data(name: str, root: Path) -> None:
    """A few images where a recipe's data set is looked for."""
    rng = np.random.default_rng(0)
    labels_N = np.arange(IMAGES) % 3
    match name:
        case "mnist":
            for split in ("train", "test"):
                images_NHW = rng.integers(0, 256, (IMAGES, 28, 28)).astype(np.uint8)
                write_idx(root / "MNIST/raw", split, images_NHW, labels_N.astype(np.uint8))
        case "cifar10":
            folder = root / "cifar-10-batches-py"
            folder.mkdir(parents=True)
            for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
                rows_ND = rng.integers(0, 256, (IMAGES // 5, 3072)).astype(np.uint8)
                (folder / batch).write_bytes(cifar_batch(rows_ND, labels_N[: IMAGES // 5].tolist()))
        case "folder":
            write_photographs(root)
        case "digits":
            pass
        case _:
            raise AssertionError(f"{name}: no images for it here")


@pytest.mark.parametrize(
    "path",
    [
        # slow: mnist differs from mnist-cpu in numbers alone, digits is what other tests run, cifar10 trains long
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.slow] if path.stem in ("mnist", "digits", "cifar10") else []
        )
        for path in RECIPES
        if path not in (PAPER, V2)
    ],
)
def test_every_recipe_runs_through_all_stages_scaled_down(outcome, folder, tmp_path, path):
    name = load_params(path).data.name
    write_data(name, tmp_path / "some data")
    scaled = SCALED | ({"data.image_size": 20} if name == "folder" else {})
    overrides = [argument for key, value in scaled.items() for argument in ("-S", f"{key}={value}")]
    assert outcome("recipe", path.stem, *overrides, "-S", f"data.root={tmp_path / 'some data'}")[0] == 0
    for stage in STAGES:
        name, _, number = stage.partition("@")
        status, _, err = outcome(name, *(("--epoch", number) if number else ()))
        assert status == 0, err
    metrics = json.loads((layout.EVALUATION / "metrics.json").read_text())
    assert metrics["epoch"] == 1
    assert 0 <= metrics["final"]["nmi"] <= 1
    assert layout.REPORT.stat().st_size > 10_000


def test_one_epoch_of_the_papers_setting_scaled_down(outcome, folder, tmp_path, monkeypatch):
    """Through the real stages; the artifacts, and what the train stage hands to training, show the setting."""
    from deepcluster import training

    given: dict[str, Any] = {}
    original = training.train_epoch

    def spy(backbone: Any, heads: Any, images: Any, labels_N: Any, **settings: Any) -> Any:
        given.update(settings, labels=labels_N, head=heads.classifier.weight.detach().numpy().copy())
        return original(backbone, heads, images, labels_N, **settings)

    monkeypatch.setattr(training, "train_epoch", spy)
    write_photographs(tmp_path / "photos")
    assert outcome("recipe", "paper-alexnet", "-S", f"data.root={tmp_path / 'photos'}", *SET)[0] == 0
    for stage in ("prepare", "initialise", "extract@1", "pca@1", "cluster@1", "train@1"):  # evaluate: slow, below
        name, _, number = stage.partition("@")
        status, _, err = outcome(name, *(("--epoch", number) if number else ()))
        assert status == 0, err
    check_backbone()
    check_reduction_and_clusters()
    check_training(given)


def check_backbone() -> None:
    checkpoint = artifacts.read_checkpoint(layout.checkpoint(1), made_by="", ids=None, epoch=1)
    convolutions = sorted(array.shape[:2] for array in checkpoint.weights.values() if array.ndim == 4)
    assert convolutions == [(96, 2), (256, 96), (256, 384), (384, 256), (384, 384)]  # 2: Sobel's channels
    assert checkpoint.description["feature_dim"] == 4096
    assert checkpoint.description["optimizer"] == "SGD"
    assert any(np.any(state) for state in checkpoint.optimizer.values())  # momentum, kept for the next epoch


def check_reduction_and_clusters() -> None:
    assert artifacts.open_store(layout.IMAGES, "images", made_by="").shape("images") == (IMAGES, 3, 20, 20)
    features_ND = artifacts.open_store(layout.features(1), "features", made_by="").read("features")
    assert features_ND.shape == (IMAGES, 4096)
    assert (features_ND < 0).any()  # before the last ReLU
    reduced_Nd = artifacts.open_store(layout.pca(1), "pca", made_by="").read("reduced").astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(reduced_Nd, axis=1), 1, atol=1e-5)

    centred_ND = features_ND - features_ND.mean(axis=0, dtype=np.float64)
    left_NN, _, _ = np.linalg.svd(centred_ND, full_matrices=False)  # whitened: unit variance on every axis
    white_Nd = left_NN[:, :6] / np.linalg.norm(left_NN[:, :6], axis=1, keepdims=True)
    signs_d = np.sign(np.sum(white_Nd * reduced_Nd, axis=0))
    np.testing.assert_allclose(reduced_Nd, white_Nd * signs_d, atol=1e-3)

    clusters = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
    assert clusters.shape("centroids") == (4, 6)
    assert clusters.read("sizes").sum() == IMAGES
    assert clusters.attributes["trained_on"] == IMAGES


def check_training(given: dict[str, Any]) -> None:
    assert given["head"].shape == (4, 4096)
    assert given["head"].std() == pytest.approx(0.01, rel=0.05)  # new: N(0, 0.01)
    for optimizer, momentum in zip(given["optimizers"], (0.9, 0.0), strict=True):  # backbone's, head's
        (group,) = optimizer.param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, momentum, 1e-5)
    drawn_K = np.bincount(given["labels"][given["indices"]], minlength=4)
    assert drawn_K.tolist() == [IMAGES / 4] * 4  # uniform over the clusters, however large they are
    assert np.bincount(given["labels"]).tolist() != [IMAGES / 4] * 4
    assert (given["augmentation"].crop, given["augmentation"].flip) == (True, True)
    assert given["batch_size"] == 256
    summary = json.loads(layout.train_summary(1).read_text())
    assert (summary["images"], summary["steps"]) == (IMAGES, 1)


@pytest.mark.slow
class TestAsAnExperiment:
    """As docs/recipes.md shows it, nothing committed in between."""

    @pytest.fixture
    def with_recipes(self, unstarted, tmp_path):
        project = unstarted.clone(tmp_path / "a project")
        shutil.copytree(CHECKOUT / "recipes", project.root / "recipes")
        project.commit("Recipes")
        write_photographs(tmp_path / "photos")
        project.run("deepcluster", "recipe", "paper-alexnet", "-S", f"data.root={tmp_path / 'photos'}", *SET)
        return project

    def test_a_recipe_is_run_under_a_name_and_varied(self, with_recipes):
        project = with_recipes
        project.dvc("exp", "run", "--name", "paper")
        project.dvc("exp", "run", "--name", "fewer", "--set-param", "cluster.k=3")
        shown = json.loads(project.dvc("exp", "show", "--json").stdout)
        found = {
            each["name"]: each["revs"][0]["data"]["params"]["params.yaml"]["data"]["cluster"]["k"]
            for revision in shown
            for each in revision.get("experiments") or []
        }
        assert found == {"paper": 4, "fewer": 3}
        metrics = json.loads((project.root / "data/evaluation/metrics.json").read_text())
        assert metrics["epoch"] == 1

    def test_after_a_commit_too(self, with_recipes):
        project = with_recipes
        project.commit("The paper's setting")
        project.dvc("exp", "run", "-S", "cluster.k=3")
        assert load_params(project.root / "params.yaml").cluster.k == 3
        assert (project.root / "params.yaml").read_text() != PAPER.read_text()
