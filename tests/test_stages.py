"""Every stage by its real command: one line of help for each mistake, nothing lost, one command under two names."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, IMAGES, edit_params, write_images
from PIL import Image
from ruamel.yaml import YAML

from deepcluster import artifacts, layout

STAGES = ("prepare", "initialise", "extract", "pca", "cluster", "train", "evaluate", "report")
ARCHS = "'convnet', 'feedforward', 'alexnet', 'vgg16', 'resnet18', 'resnet34', 'resnet50', 'resnet101' or 'resnet152'"
REMEDY = "delete it and run `dvc checkout` or `dvc repro`; if it comes back damaged, `deepcluster check --repair` first"


@pytest.fixture
def refused(workspace, outcome):
    """Runs `deepcluster ARGUMENTS`, which must fail as a user's mistake and lose nothing; the lines it says."""

    def run(*arguments: str) -> list[str]:
        before = workspace.digests()
        status, out, err = outcome(*arguments)
        assert status == 2
        assert out == ""
        lines = err.splitlines()
        assert [line for line in lines if not line.startswith("error: ")] == []
        assert workspace.digests() == before
        assert list(Path().rglob("*.partial")) == []
        return [line.removeprefix("error: ") for line in lines]

    return run


def set_params(**changes: object) -> None:
    edit_params(Path("params.yaml"), {key.replace("__", "."): value for key, value in changes.items()})


def shard(store: Path, array: str) -> Path:
    """The one shard file of an array of a tiny store."""
    (found,) = [path for path in (store / array / "c").rglob("*") if path.is_file()]
    return found


class TestParams:
    def test_unknown_architecture_lists_the_choices(self, refused):
        set_params(model__arch="resnet20")
        expected = f"must be one of {ARCHS}; did you mean 'resnet50'?; got 'resnet20'"
        assert refused("initialise") == [f"params.yaml: model.arch: {expected}"]

    def test_unknown_data_set_lists_the_choices(self, refused):
        set_params(data__name="mnst")
        (line,) = refused("prepare")
        assert line.startswith("params.yaml: data.name: must be one of 'digits', 'mnist', 'fashionmnist', ")
        assert line.endswith(" or 'folder'; did you mean 'mnist'?; got 'mnst'")

    def test_missing(self, refused):
        Path("params.yaml").unlink()
        expected = ["params.yaml: not found; run this in the project's folder, the one with dvc.yaml"]
        assert refused("prepare") == expected
        assert refused("plan") == expected

    def test_empty(self, refused):
        Path("params.yaml").write_text("")
        assert refused("pca", "--epoch", "1") == ["params.yaml: empty; expected sections such as data, model, cluster"]

    def test_a_list_instead_of_sections(self, refused):
        Path("params.yaml").write_text("- 1\n- 2\n")
        assert refused("evaluate") == ["params.yaml: expected sections such as data, model, cluster; got a list"]

    def test_not_yaml(self, refused):
        Path("params.yaml").write_text("seed: [1\n")
        (line,) = refused("plan", "--epochs", "3")
        assert line.startswith("params.yaml: not YAML: ")

    def test_wrong_type_and_misspelt_key_are_said_at_once(self, refused):
        set_params(cluster__k="ten", epochs=2.5, train__batchsize=3, clusters={"k": 3})
        assert sorted(refused("cluster", "--epoch", "1")) == [
            "params.yaml: cluster.k: must be a whole number; got 'ten'",
            "params.yaml: clusters: unknown key; did you mean 'cluster'?",
            "params.yaml: epochs: must be a whole number; got 2.5",
            "params.yaml: train.batchsize: unknown key; did you mean 'batch_size'?",
        ]


class TestSettingsThatDoNotFitTheData:
    def test_the_first_stage_that_can_tell_says_all_of_them(self, refused):
        set_params(cluster__k=IMAGES + 1, pca__components=IMAGES + 2)
        assert refused("initialise") == [
            f"pca.components: must be <= min(N, D) = min({IMAGES}, 256); got {IMAGES + 2}",
            f"cluster.k: must be <= N = {IMAGES} images; got {IMAGES + 1}",
        ]

    def test_parts_that_are_not_there(self, refused):
        set_params(train__freeze=["body.conv1"])
        (line,) = refused("initialise")
        assert line.startswith("train.freeze: no part 'body.conv1' in this backbone; it has body, body.0, ")

    def test_more_clusters_than_images(self, refused):
        set_params(cluster__k=IMAGES + 1)
        expected = [f"cluster.k: must be <= N = {IMAGES} images; got {IMAGES + 1}"]
        assert refused("cluster", "--epoch", "1") == expected

    @pytest.mark.parametrize("backend", ["sklearn", "faiss", "streaming"])
    def test_more_components_than_images_or_features(self, refused, backend):
        set_params(pca__components=IMAGES + 1, pca__backend=backend)
        expected = [f"pca.components: must be <= min(N, D) = min({IMAGES}, 256); got {IMAGES + 1}"]
        assert refused("pca", "--epoch", "1") == expected

    @pytest.mark.parametrize("command", ["extract", "pca", "cluster", "train"])
    def test_epoch_0(self, refused, command):
        expected = "--epoch: must be >= 1 (epoch 0 is the untrained backbone of `initialise`); got 0"
        assert refused(command, "--epoch", "0") == [expected]

    @pytest.mark.parametrize("backend", ["sklearn", "faiss", "streaming"])
    def test_features_with_nan(self, refused, backend):
        set_params(pca__backend=backend)
        store = artifacts.open_store(layout.features(1), "features", made_by="extract@1")
        features_ND = store.read("features")
        features_ND[7, 3] = np.nan
        provenance = artifacts.Provenance(store.samples, store.ids, 1, 1)
        with artifacts.write_store(layout.features(1), "features", provenance) as writer:
            writer.array("features", features_ND, ("sample", "feature"))
        (line,) = refused("pca", "--epoch", "1")
        assert line == "features: must be finite; got NaN or infinity in row 7"

    def test_no_such_device(self, refused, monkeypatch):
        monkeypatch.setenv("DEEPCLUSTER_DEVICE", "abacus")
        (line,) = refused("extract", "--epoch", "1")
        assert line.startswith("DEEPCLUSTER_DEVICE=abacus: not usable here: ")

    def test_weights_of_another_architecture(self, refused):
        shutil.copyfile("data/epochs/2/checkpoint/model.safetensors", "w.safetensors")
        set_params(model__arch="resnet18", model__weights="w.safetensors")
        (line,) = refused("initialise")
        start = "w.safetensors: not weights of this backbone: "
        assert re.fullmatch(rf"{re.escape(start)}\d+ tensors differ, first \S+: expected .*, got .*", line)

    def test_weights_that_are_not_there(self, refused):
        set_params(model__weights="nowhere.safetensors")
        assert refused("initialise") == ["nowhere.safetensors: not found (model.weights in params.yaml)"]


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path):
        """A folder of images of its own that params.yaml names; to be asked for after `refused`."""
        folder = tmp_path / "some images"
        folder.mkdir()
        set_params(data__root=str(folder))
        return folder

    def test_no_folder(self, refused, folder):
        folder.rmdir()
        assert refused("prepare") == [f"{folder}: no such folder"]

    def test_empty_folder(self, refused, folder):
        (line,) = refused("prepare")
        assert line.startswith(f"{folder}: holds no images (.")

    def test_text_named_jpg(self, refused, folder):
        write_images(folder, count=4)
        (folder / "left/note.jpg").write_text("not an image\n")
        first, second = refused("prepare")
        assert first == f"{folder}: 1 of 5 images cannot be read (max_unreadable is 0):"
        assert second.startswith("  left/note.jpg: ")

    def test_truncated_image(self, refused, folder):
        write_images(folder, count=4)
        rng = np.random.default_rng(0)
        path = folder / "left/whole.png"
        Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        first, second = refused("prepare")
        assert first == f"{folder}: 1 of 5 images cannot be read (max_unreadable is 0):"
        assert second.startswith("  left/whole.png: ")


class TestArtifacts:
    def test_of_another_data_set(self, outcome, refused, tmp_path):
        write_images(tmp_path / "others", count=20)
        set_params(data__root=str(tmp_path / "others"))
        assert outcome("prepare")[0] == 0
        other = "belongs to another data set or sample order"
        expected = {
            ("extract", "--epoch", "1"): f"data/epochs/0/checkpoint: {other}; run `dvc repro initialise`",
            ("train", "--epoch", "2"): f"data/epochs/1/checkpoint: {other}; run `dvc repro train@1`",
            ("evaluate",): f"data/history/1/clusters.zarr: {other}; run `dvc repro cluster@1`",
            ("report",): f"data/evaluation/clusters.zarr: {other}; run `dvc repro evaluate`",
        }
        assert {command: refused(*command) for command in expected} == {k: [v] for k, v in expected.items()}

    def test_of_another_epoch(self, refused):
        shutil.rmtree(layout.features(2))
        shutil.copytree(layout.features(1), layout.features(2))
        expected = "data/epochs/2/features.zarr: epoch: expected 2, got 1; run `dvc repro extract@2`"
        assert refused("pca", "--epoch", "2") == [expected]

    @pytest.mark.parametrize(
        ("artifact", "command", "remedy"),
        [
            ("data/dataset/images.zarr", "initialise", "deepcluster run"),
            ("data/dataset/targets.zarr", "evaluate", "dvc repro prepare"),
            ("data/dataset/test.zarr", "evaluate", "dvc repro prepare"),
            ("data/dataset/test_targets.zarr", "evaluate", "dvc repro prepare"),
            ("data/epochs/0/checkpoint", "extract --epoch 1", "dvc repro initialise"),
            ("data/epochs/1/checkpoint", "extract --epoch 2", "dvc repro train@1"),
            ("data/epochs/1/checkpoint", "train --epoch 2", "dvc repro train@1"),
            ("data/epochs/2/features.zarr", "pca --epoch 2", "dvc repro extract@2"),
            ("data/epochs/2/pca.zarr", "cluster --epoch 2", "dvc repro pca@2"),
            ("data/history/2/clusters.zarr", "train --epoch 2", "dvc repro cluster@2"),
            ("data/history/1/clusters.zarr", "evaluate", "dvc repro cluster@1"),
            ("data/history/2/train.json", "evaluate", "dvc repro train@2"),
            ("data/evaluation/clusters.zarr", "report", "dvc repro evaluate"),
            ("data/evaluation/metrics.json", "report", "dvc repro evaluate"),
            ("data/evaluation/epochs.csv", "report", "dvc repro evaluate"),
        ],
    )
    def test_missing(self, refused, artifact, command, remedy):
        artifacts.remove(Path(artifact))
        assert refused(*command.split()) == [f"{artifact}: not found; run `{remedy}`"]

    @pytest.mark.parametrize("command", ["extract", "pca", "cluster", "train"])
    def test_an_epoch_that_is_not_scheduled(self, refused, command):
        before = Path("params.yaml").read_text()
        expected = "--epoch: must be one that is scheduled (1 to 2); got 7; `deepcluster plan --epochs 7` schedules it"
        assert refused(command, "--epoch", "7", "-S", "cluster.k=3") == [expected]
        assert Path("params.yaml").read_text() == before

    def test_cut_short(self, refused):
        path = shard(layout.features(1), "features")
        path.write_bytes(path.read_bytes()[:-100])
        (line,) = refused("pca", "--epoch", "1")
        assert line == f"{path}: damaged (missing, cut short or altered); {REMEDY}"

    def test_one_bit_changed(self, refused):
        path = shard(layout.features(1), "features")
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
        (line,) = refused("pca", "--epoch", "1")
        assert line.startswith("data/epochs/1/features.zarr/features: damaged (")
        assert "checksum" in line

    def test_shard_deleted(self, refused):
        path = shard(layout.IMAGES, "images")
        path.unlink()
        assert refused("extract", "--epoch", "1") == [f"{path}: damaged (missing, cut short or altered); {REMEDY}"]

    def test_array_deleted(self, refused):
        shutil.rmtree(layout.pca(1) / "reduced")
        (line,) = refused("cluster", "--epoch", "1")
        assert line.startswith("data/epochs/1/pca.zarr")
        assert line.endswith(REMEDY)

    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
    def test_checkpoint_damaged(self, refused, name):
        path = layout.checkpoint(1) / name
        path.write_bytes(path.read_bytes()[:-4])
        assert refused("train", "--epoch", "2") == [f"{path}: damaged (checksum differs); {REMEDY}"]

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"loss": 1.0}'])
    def test_training_summary_damaged(self, refused, text):
        layout.train_summary(1).write_text(text)
        (line,) = refused("evaluate")
        assert line.startswith("data/history/1/train.json: damaged (")
        assert line.endswith(REMEDY)

    @pytest.mark.parametrize("name", ["metrics.json", "epochs.csv"])
    @pytest.mark.parametrize("command", ["report", "summary"])
    def test_evaluation_damaged(self, refused, command, name):
        path = layout.EVALUATION / name
        path.write_text(path.read_text()[:-9].replace("1", "x"))
        (line,) = refused(command)
        assert line.startswith(f"{path}: damaged (")


class TestSummary:
    def test_before_the_first_run(self, refused):
        shutil.rmtree("data")
        Path("data").mkdir()
        assert refused("summary") == ["data/evaluation/epochs.csv: not found; run `deepcluster run`"]

    def test_outside_a_project(self, tmp_path, monkeypatch, outcome):
        monkeypatch.chdir(tmp_path)
        message = "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n"
        assert outcome("summary") == (2, "", message)


class TestFromOutside:
    """The same as processes: exit code 2, one line, no traceback."""

    @pytest.mark.parametrize(
        "command", [["python", "-m", "stages.pca", "--epoch", "1"], ["deepcluster", "pca", "-e", "1"]]
    )
    def test_damaged_artifact(self, workspace, command):
        path = shard(layout.features(1), "features")
        path.write_bytes(path.read_bytes()[:-100])
        before = workspace.digests()
        found = workspace.run(*command, status=2)
        assert found.stdout == ""
        assert re.fullmatch(
            r"error: data/epochs/1/features\.zarr/features/.*: damaged \(.*\); delete it .*\n", found.stderr
        )
        assert workspace.digests() == before

    def test_mistake_in_params(self, workspace):
        set_params(model__arch="vgg")
        found = workspace.run("python", "-m", "stages.initialise", status=2)
        expected = f"must be one of {ARCHS}; did you mean 'vgg16'?; got 'vgg'"
        assert found.stderr == f"error: params.yaml: model.arch: {expected}\n"


class TestHelp:
    def by_module(self, stage: str, capsys, monkeypatch) -> str:
        """Help of `python -m stages.STAGE`, from the function that its module calls."""
        from importlib import import_module

        from stages.common import main

        monkeypatch.setattr(sys, "argv", ["stage", "--help"])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(getattr(import_module(f"stages.{stage}"), stage))
        return capsys.readouterr().out

    @pytest.mark.parametrize("stage", STAGES)
    def test_both_names_have_the_same_help(self, stage, outcome, capsys, monkeypatch):
        def body(text: str) -> str:
            assert "Usage:" in text
            return text.split("\n\n", 1)[1]

        assert body(outcome(stage, "--help")[1]) == body(self.by_module(stage, capsys, monkeypatch))

    @pytest.mark.parametrize("stage", STAGES)
    def test_help_names_what_dvc_says_the_stage_reads_and_writes(self, stage, outcome):
        def paths(definition, *kinds: str) -> list[str]:
            entries = [entry for kind in kinds for entry in definition.get(kind, [])]
            names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
            for template, word in (("${key}", "E"), ("${item}", "E-1"), ("${last}", "LAST")):
                names = [name.replace(template, word) for name in names]
            return [name for name in names if name.startswith("data/")]

        definition = YAML(typ="safe").load(CHECKOUT / "dvc.yaml")["stages"][stage]
        definition = definition.get("do", definition)
        text = "".join(outcome(stage, "--help")[1].split())  # paths may be wrapped
        text = text.replace("data/dataset/{images,targets}.zarr", "data/dataset/images.zarr,data/dataset/targets.zarr")
        text = text.replace("{test,test_targets}.zarr", "test.zarr,data/dataset/test_targets.zarr")
        reads, writes = re.fullmatch(r".*Reads(.*)Write(.*)", text).groups()  # type: ignore[union-attr]

        def named(path: str, where: str) -> bool:
            """In full, or by the folder and the file's name."""
            folder, _, name = path.rpartition("/")
            return path in where or (folder in where and name in where)

        assert [path for path in paths(definition, "deps") if not named(path, reads)] == []
        assert [path for path in paths(definition, "outs", "metrics", "plots") if not named(path, writes)] == []
        sections = [name for name in definition["params"] if isinstance(name, str) and name == stage]
        assert all(f"`{name}`" in text for name in sections)


@pytest.mark.slow
def test_a_stage_is_the_same_command_under_both_names(workspace):
    original = workspace.digests("data/epochs/1/features.zarr")
    assert original
    for command in (["python", "-m", "stages.extract", "--epoch", "1"], ["deepcluster", "extract", "--epoch", "1"]):
        shutil.rmtree(layout.features(1))
        workspace.run(*command)
        assert workspace.digests("data/epochs/1/features.zarr") == original


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "stages.pca", "--epoch", "1"],
        ["-m", "stages.cluster", "--epoch", "2"],
        ["-m", "deepcluster", "--help"],
    ],
    ids=["pca", "cluster", "help"],
)
def test_what_needs_no_torch_does_not_import_it(workspace, command):
    found = workspace.run("python", "-X", "importtime", *command)
    modules = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert "deepcluster.params" in modules
    assert {module for module in modules if module.partition(".")[0] in ("torch", "torchvision")} == set()


@pytest.mark.parametrize("content", ["missing", "damaged"])
def test_no_stage_of_an_epoch_opens_the_true_labels(workspace, outcome, content):
    original = workspace.digests("data/epochs", "data/history")
    shutil.rmtree(layout.TARGETS)
    if content == "damaged":
        layout.TARGETS.mkdir()
        (layout.TARGETS / "zarr.json").write_text("{")
    for epoch in ("1", "2"):
        for stage in ("extract", "pca", "cluster", "train"):
            status, _, err = outcome(stage, "--epoch", epoch)
            assert status == 0, err
    assert workspace.digests("data/epochs", "data/history") == original


class TestWarmStart:
    def objective(self, outcome, epoch: int, *, warm: bool) -> np.ndarray:
        set_params(cluster__warm_start=warm)
        status, _, err = outcome("cluster", "--epoch", str(epoch))
        assert status == 0, err
        return artifacts.open_store(layout.clusters(epoch), "clusters", made_by="").read("objective")

    def test_starts_from_the_means_of_the_labels_before(self, workspace, outcome):
        rows_Nd = artifacts.open_store(layout.pca(2), "pca", made_by="").read("reduced").astype(np.float64)
        labels_N = artifacts.open_store(layout.clusters(1), "clusters", made_by="").read("labels")

        def means(labels: np.ndarray) -> np.ndarray:
            return np.stack([rows_Nd[labels == label].mean(axis=0) for label in range(4)])

        def distances(centroids_Kd: np.ndarray) -> np.ndarray:
            return ((rows_Nd[:, None] - centroids_Kd) ** 2).sum(axis=2)

        after_one = means(distances(means(labels_N)).argmin(axis=1))
        warm = self.objective(outcome, 2, warm=True)
        assert warm[0] == pytest.approx(distances(after_one).min(axis=1).sum(), rel=1e-4)
        assert warm[0] != pytest.approx(self.objective(outcome, 2, warm=False)[0], rel=1e-4)

    def test_is_deterministic(self, workspace, outcome):
        self.objective(outcome, 2, warm=True)
        once = workspace.digests("data/history/2")
        self.objective(outcome, 2, warm=True)
        assert workspace.digests("data/history/2") == once

    def test_does_nothing_in_the_first_epoch(self, workspace, outcome):
        warm = self.objective(outcome, 1, warm=True)
        np.testing.assert_array_equal(warm, self.objective(outcome, 1, warm=False))

    def test_starts_cold_after_a_change_of_k(self, workspace, outcome):
        set_params(cluster__k=3)
        warm = self.objective(outcome, 2, warm=True)
        np.testing.assert_array_equal(warm, self.objective(outcome, 2, warm=False))


class TestSettingsUsed:
    """`summary` and `augmentations` say when what they show was made with other settings."""

    def test_nothing_is_said_of_the_run_that_params_describe(self, workspace, outcome):
        assert "other settings" not in outcome("summary")[1]

    @pytest.mark.parametrize(
        ("changes", "keys"),
        [
            ({"epochs": 3}, "epochs"),
            ({"model__arch": "resnet18", "data__split": "all"}, "data.split, model.arch"),
            ({"cluster__collapse__max_drift": 0.5}, "cluster.collapse.max_drift"),
            ({"train__head__lr": 0.5, "augment__zoom": [0.5, 1.0]}, "train.head.lr, augment.zoom"),
        ],
    )
    def test_summary_names_what_has_changed(self, workspace, outcome, changes, keys):
        set_params(**changes)
        status, out, _ = outcome("summary")
        assert status == 0
        last = f"Made with other settings than params.yaml has now ({keys}); `deepcluster run` follows them"
        assert out.splitlines()[-1] == last

    def test_many_are_counted(self, workspace, outcome):
        set_params(**{f"augment__{key}": 0.5 for key in ("brightness", "contrast", "saturation", "hue")}, cluster__k=3)
        set_params(augment__rotation=1.0, augment__shear=1.0)
        assert " and 2 more); " in outcome("summary")[1]

    def test_augmentations_tell_of_other_data(self, workspace, outcome):
        set_params(data__split="all", augment__flip=True)
        lines = outcome("augmentations")[1].splitlines()
        assert lines[1] == (
            "of images prepared with other settings (data.split): `deepcluster run prepare` follows params.yaml"
        )
