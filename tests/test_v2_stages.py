"""DeepCluster-v2 through the stages: the bank handed over, several clusterings, what is published and refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHECKOUT, IMAGES, digests, edit_params, write_images
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from deepcluster import artifacts, layout, training_v2
from deepcluster.checkpoint import load_checkpoint
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.warm_start import means_of_clusters
from deepcluster.errors import ArtifactError, UserError
from deepcluster.evaluation.epochs import read_results
from deepcluster.params import load_params
from deepcluster.plan import plan
from deepcluster.seeding import derive_seed
from stages.cluster import cluster
from stages.evaluate import evaluate
from stages.extract import extract
from stages.initialise import initialise
from stages.pca import pca
from stages.prepare import prepare
from stages.report import report
from stages.train import train

pytestmark = pytest.mark.xdist_group("v2 stages")
K, OUTPUTS, CLUSTERINGS = 4, 8, 3
PARAMS: dict[str, Any] = {
    "epochs": 2,
    "data": {"name": "folder", "root": "images", "image_size": 8, "grayscale": True},
    "pca": {"enabled": False},
    "cluster": {"k": K, "spherical": True, "clusterings": CLUSTERINGS, "fail_on_collapse": False},
    "train": {
        "method": "deepcluster_v2",
        "batch_size": 16,
        "v2": {"hidden": 16, "outputs": OUTPUTS, "small_crops": 1, "small_scale": [0.4, 0.9]},
        "optimizer": {"name": "lars", "lr": 1.0},
    },
    "augment": {"crop": False, "flip": False, "rotation": 10.0, "translate": 0.1},
    "evaluate": {"restarts": 1},
}


def epoch(number: int) -> None:
    for stage in (extract, pca, cluster, train):
        stage(number)


@pytest.fixture(scope="module")
def finished_v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of two epochs, evaluated; to be read only."""
    root = tmp_path_factory.mktemp("v2") / "a run"
    root.mkdir()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DEEPCLUSTER_DEVICE", "cpu")
        patch.delenv("DVC_STAGE", raising=False)
        write_images(Path("images"))
        with Path("params.yaml").open("w") as file:
            YAML(typ="safe").dump(PARAMS, file)
        plan()
        prepare()
        initialise()
        epoch(1)
        epoch(2)
        evaluate()
        report()
    yield root
    torch.set_num_threads(before)


@pytest.fixture
def run(finished_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run as current folder, to change at will."""
    root = tmp_path / "a copy"
    shutil.copytree(finished_v2, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return root


def set_params(**changes: Any) -> None:
    edit_params(Path("params.yaml"), {key.replace("__", "."): value for key, value in changes.items()})


def array(path: Path, schema: str, name: str) -> np.ndarray:
    return artifacts.open_store(path, schema, made_by="").read(name)


def clusters(number: int, name: str) -> np.ndarray:
    return array(layout.clusters(number), "clusters", name)


def error_of(command: Callable[[], None], kind: type[UserError] = UserError) -> str:
    with pytest.raises(kind) as caught:
        command()
    return str(caught.value)


class TestHandOver:
    def test_features_of_the_second_epoch_are_the_bank_to_the_byte(self, run):
        bank = load_file(layout.checkpoint(1) / "bank.safetensors")["bank"]
        features = array(layout.features(2), "features", "features")
        assert bank.dtype == features.dtype == np.float32
        assert bank.shape == (IMAGES, OUTPUTS)
        np.testing.assert_array_equal(features, bank)
        np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(array(layout.pca(2), "pca", "reduced"), bank, atol=1e-6)

    def test_features_of_the_first_epoch_are_the_projections_of_the_untrained_network(self, run):
        checkpoint = load_checkpoint(layout.checkpoint(0), made_by="", ids=None, epoch=0)
        images = artifacts.open_store(layout.IMAGES, "images", made_by="")
        mean, std = (np.array(images.attributes[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        inputs = torch.from_numpy((images.read("images") / 255 - mean) / std).float()
        with torch.no_grad():
            expected = checkpoint.projector.eval()(checkpoint.backbone.eval()(inputs)).numpy()
        np.testing.assert_allclose(array(layout.features(1), "features", "features"), expected, atol=1e-5)
        assert artifacts.read_bank(layout.checkpoint(0)) is None

    def test_a_damaged_bank_is_an_error_that_only_its_reader_meets(self, run):
        path = layout.checkpoint(1) / "bank.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        remedy = "delete it and run `dvc checkout` or `dvc repro`; if it comes back damaged, "
        remedy += "`deepcluster check --repair` first"
        expected = f"{path}: damaged (checksum differs); {remedy}"
        assert error_of(lambda: extract(2), ArtifactError) == expected
        train(2)
        path.unlink()
        assert "bank.safetensors" in error_of(lambda: extract(2), ArtifactError)


class TestClusterings:
    def test_the_first_one_stands_where_it_always_does(self, run):
        labels_HN, centroids_HKP = clusters(2, "labels_all"), clusters(2, "centroids_all")
        assert (labels_HN.shape, labels_HN.dtype) == ((CLUSTERINGS, IMAGES), np.int32)
        assert centroids_HKP.shape == (CLUSTERINGS, K, OUTPUTS)
        np.testing.assert_array_equal(labels_HN[0], clusters(2, "labels"))
        np.testing.assert_array_equal(centroids_HKP[0], clusters(2, "centroids"))

    def test_each_is_a_spherical_k_means_with_a_seed_of_its_own(self, run):
        rows = array(layout.pca(2), "pca", "reduced")
        seeds = [derive_seed(1, "kmeans", 2)]
        seeds += [derive_seed(seeds[0], "clustering", number) for number in (1, 2)]
        assert len(set(seeds)) == 3
        for number, seed in enumerate(seeds):
            found = kmeans(rows, k=K, backend="faiss", seed=seed, spherical=True)
            np.testing.assert_array_equal(clusters(2, "labels_all")[number], found.labels_N)
            np.testing.assert_array_equal(clusters(2, "centroids_all")[number], found.centroids_Kd)

    def test_one_alone_leaves_no_further_arrays_and_is_the_first_of_several(self, run):
        before = clusters(2, "labels")
        set_params(cluster__clusterings=1)
        cluster(2)
        store = artifacts.open_store(layout.clusters(2), "clusters", made_by="")
        assert not store.has("labels_all")
        assert not store.has("centroids_all")
        np.testing.assert_array_equal(store.read("labels"), before)
        train(2)

    def test_each_starts_from_its_own_clusters_of_the_epoch_before_and_takes_their_numbers(self, run):
        rows, before_HN = array(layout.pca(2), "pca", "reduced"), clusters(1, "labels_all")
        set_params(cluster__warm_start=True, cluster__match_labels=True, cluster__clusterings=4)
        cluster(2)
        for number in range(CLUSTERINGS):
            start = means_of_clusters(rows, before_HN[number], k=K)
            found = kmeans(
                rows, k=K, backend="faiss", seed=1, spherical=True, initial_centroids_Kd=start
            )  # the seed is not used
            again = clusters(2, "labels_all")[number]
            assert len({*zip(found.labels_N.tolist(), again.tolist(), strict=True)}) == K  # the same but for numbers
            kept = (again == before_HN[number]).mean()
            assert kept >= (found.labels_N == before_HN[number]).mean()
        assert clusters(2, "labels_all").shape[0] == 4  # the fourth has none before it

    def test_a_collapsed_one_is_named_and_nothing_is_published(self, run):
        before = digests(run)
        set_params(cluster__fail_on_collapse=True, cluster__collapse={"min_feature_rank": 100.0})
        message = error_of(lambda: cluster(2))
        assert message.startswith("cluster@2, clustering 1: collapse: ")
        assert digests(run) == before


class TestTraining:
    def test_prototypes_are_the_centroids_and_stand_still(self, run, monkeypatch):
        given: dict[str, Any] = {}
        original = training_v2.train_epoch_v2

        def spy(backbone, projector, images, labels_NH, prototypes_HKP, bank_NP, **settings):
            given.update(settings, labels=labels_NH, prototypes=prototypes_HKP, before=prototypes_HKP.clone())
            return original(backbone, projector, images, labels_NH, prototypes_HKP, bank_NP, **settings)

        monkeypatch.setattr(training_v2, "train_epoch_v2", spy)
        train(2)
        centroids = clusters(2, "centroids_all").astype(np.float64)
        expected = centroids / np.linalg.norm(centroids, axis=2, keepdims=True)
        np.testing.assert_allclose(given["before"].numpy(), expected, atol=1e-6)
        assert torch.equal(given["prototypes"], given["before"])
        np.testing.assert_array_equal(given["labels"], clusters(2, "labels_all").T)
        assert sorted(given["indices"].tolist()) == list(range(IMAGES))
        assert given["temperature"] == 0.1
        assert (given["crops"].global_crops, given["crops"].small_crops, given["crops"].small_size) == (2, 1, None)
        for optimizer in given["optimizers"]:
            assert type(optimizer).__name__ == "LARS"
            assert optimizer.param_groups[0]["lr"] == 1.0

    def test_the_checkpoint_holds_all_that_goes_on(self, run):
        folder = layout.checkpoint(2)
        names = ["bank", "heads", "model", "optimizer"]
        expected = ["checkpoint.json"] + [f"{name}.safetensors" for name in names]
        assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
        description = json.loads((folder / "checkpoint.json").read_text())
        assert description["projector"] == {"hidden": 16, "outputs": OUTPUTS}
        assert sorted(description["sha256"]) == [f"{name}.safetensors" for name in names]
        checkpoint = load_checkpoint(folder, made_by="", ids=None, epoch=2)
        assert checkpoint.heads == {}
        assert checkpoint.optimizer.name == checkpoint.head_optimizer.name == "LARS"
        assert "layers.0.weight.momentum_buffer" in checkpoint.head_optimizer.tensors
        heads = [load_file(layout.checkpoint(number) / "heads.safetensors") for number in (0, 1, 2)]
        weights = [each["weights.layers.0.weight"] for each in heads]
        assert not np.array_equal(weights[0], weights[1])
        assert not np.array_equal(weights[1], weights[2])

    def test_the_same_run_again_is_the_same_to_the_byte(self, run):
        before = digests(run)
        for number in (1, 2):
            epoch(number)
        assert digests(run) == before

    def test_an_epoch_from_a_checkpoint_is_one_that_was_not_interrupted(self, run, monkeypatch):
        """Epoch 2 with the networks and optimizers that epoch 1 left in memory, beside those read from its files."""
        live: list[Any] = []
        original = training_v2.train_epoch_v2

        def spy(backbone, projector, *arguments, optimizers, **settings):
            if not live:
                live.extend([backbone, projector, optimizers])
            return original(live[0], live[1], *arguments, optimizers=live[2], **settings)

        expected = load_checkpoint(layout.checkpoint(2), made_by="", ids=None, epoch=2)
        bank = artifacts.read_bank(layout.checkpoint(2))
        monkeypatch.setattr(training_v2, "train_epoch_v2", spy)
        train(1)
        train(2)
        for part, wanted in zip(live, (expected.backbone, expected.projector), strict=False):
            assert all(torch.equal(tensor, part.state_dict()[name]) for name, tensor in wanted.state_dict().items())
        np.testing.assert_array_equal(artifacts.read_bank(layout.checkpoint(2)), bank)

    def test_a_frozen_backbone_trains_its_projector_alone(self, run):
        set_params(train__freeze=["body"])
        train(1)
        before, after = (load_file(layout.checkpoint(number) / "model.safetensors") for number in (0, 1))
        assert all(np.array_equal(before[name], after[name]) for name in before)
        assert load_file(layout.checkpoint(1) / "optimizer.safetensors") == {}
        extract(2)

    def test_several_passes_see_every_image_as_often(self, run):
        set_params(train__epoch_size=2.0)
        train(1)
        assert json.loads(layout.train_summary(1).read_text())["images"] == 2 * IMAGES


class TestWhatFollows:
    def test_evaluation_is_of_the_backbones_features(self, run):
        epochs, metrics = read_results()
        assert len(epochs) == 2
        assert metrics["final"]["accuracy"] > 0.5
        centroids = array(layout.EVALUATION / "clusters.zarr", "final_clusters", "centroids")
        assert centroids.shape == (2, 256)
        assert layout.REPORT.stat().st_size > 1000

    def test_the_backbone_is_exported_and_taken_as_weights(self, run, outcome):
        status, _, err = outcome("export", "--epoch", "2", "--format", "safetensors", "--out", "b.safetensors")
        assert status == 0, err
        exported = load_file("b.safetensors")
        own = load_file(layout.checkpoint(2) / "model.safetensors")
        assert exported.keys() >= {name for name in own if name.endswith("weight")} or len(exported) == len(own)
        shutil.copytree(layout.checkpoint(2), "kept")
        set_params(model={"weights": "kept"})
        initialise()
        again = load_file(layout.checkpoint(0) / "model.safetensors")
        assert all(np.array_equal(own[name], again[name]) for name in own)

    def test_its_result_is_bundled_and_its_pseudo_labels_are_not(self, run, outcome):
        status, out, err = outcome("bundle")
        assert status == 0, err
        assert f"check: all {IMAGES} training images get the cluster that they have in the artifact\n" in out
        message = (
            "error: --labels pseudo: the clusters of epoch 2 were made by DeepCluster-v2, of projections that training "
            "computed on its way, of augmented images, so no other image has such; bundle --labels final\n"
        )
        assert outcome("bundle", "--labels", "pseudo", "--epoch", "2", "--out", "p") == (2, "", message)

    def test_trust_is_of_the_backbones_features_in_every_epoch(self, run, outcome):
        """features.zarr of epoch 2 holds projections: no features of epoch 1's backbone."""
        status, _, err = outcome("trust", "--epochs", "1,2")
        assert status == 0, err
        with_bank = Path("data/trust/trust.json").read_text()
        shutil.rmtree(layout.features(2))
        assert outcome("trust", "--epochs", "1,2")[0] == 0
        assert Path("data/trust/trust.json").read_text() == with_bank

    def test_a_summary_is_printed(self, run, outcome):
        status, out, err = outcome("summary")
        assert (status, err) == (0, "")
        assert "final clustering" in out


class TestRefusals:
    def test_a_checkpoint_of_the_other_method(self, run):
        way_out = "run `dvc repro initialise` and the stages after it (`dvc repro` does)"
        set_params(train__v2__hidden=32)
        assert error_of(lambda: train(2), ArtifactError) == (
            f"{layout.checkpoint(1)}: train.method deepcluster_v2 expects a projector of 32 and 8 outputs, got a "
            f"projector of 16 and 8 outputs; {way_out}"
        )
        set_params(train__method="deepcluster", cluster__clusterings=1)
        assert error_of(lambda: train(2), ArtifactError) == (
            f"{layout.checkpoint(1)}: train.method deepcluster expects no projector, got a projector of 16 and 8 "
            f"outputs; {way_out}"
        )
        initialise()
        set_params(train__method="deepcluster_v2")
        assert "expects a projector of 32 and 8 outputs, got no projector; " in error_of(lambda: train(1))

    def test_centroids_of_other_rows(self, run):
        set_params(train__v2__outputs=4)
        initialise()
        assert error_of(lambda: train(1), ArtifactError) == (
            f"{layout.clusters(1)}: expected centroids of 4 values, as projections have, got 8; run the stages before "
            "it (`dvc repro` does)"
        )

    def test_small_crops_that_the_architecture_does_not_take(self, run):
        before = digests(run)
        set_params(train__v2={**PARAMS["train"]["v2"], "small_size": 1})
        expected = "train.v2.small_size: must be >= 2 for convnet and images of 8 pixels; got 1"
        assert error_of(initialise) == expected
        assert error_of(lambda: train(1)) == expected
        assert digests(run) == before
        set_params(train__v2={**PARAMS["train"]["v2"], "small_size": 1, "small_crops": 0})
        initialise()


def test_initialise_draws_the_backbone_that_deepcluster_has(run):
    own = load_file(layout.checkpoint(0) / "model.safetensors")
    set_params(train__method="deepcluster", cluster__clusterings=1)
    initialise()
    plain = load_file(layout.checkpoint(0) / "model.safetensors")
    assert all(np.array_equal(own[name], plain[name]) for name in own)
    assert not (layout.checkpoint(0) / "heads.safetensors").exists()


@pytest.mark.slow
def test_dvc_runs_the_recipe_and_again_only_what_a_change_touches(unstarted, tmp_path):
    project = unstarted.clone(tmp_path / "a project")
    shutil.copytree(CHECKOUT / "recipes", project.root / "recipes")
    write_images(tmp_path / "images")
    small = {
        "data.root": tmp_path / "images", "data.image_size": 16, "cluster.k": 4, "epochs": 2, "evaluate.restarts": 1,
        "train.batch_size": 16, "train.v2.hidden": 16, "train.v2.outputs": 8, "train.precision": "fp32",
        "train.v2.small_crops": 1, "train.v2.small_size": "null", "cluster.fail_on_collapse": "false",
    }  # fmt: skip
    project.run("deepcluster", "recipe", "deepcluster-v2", *(f"-S{key}={value}" for key, value in small.items()))
    project.commit("The recipe")
    assert "initialise" in project.repro()
    project.set_params(train__v2__temperature=0.2)
    ran = project.repro()
    assert "initialise" not in ran
    assert ran[0] == "train@1"
    project.dvc("exp", "run", "-S", "cluster.k=3")
    assert load_params(project.root / "params.yaml").cluster.k == 3
    assert (project.root / "data/epochs/2/checkpoint/bank.safetensors").exists()
