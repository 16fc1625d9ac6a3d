"""The folder of a bundle: what is in it, where it may be written, what is refused when it is read."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr
from bundles import noise_bundle
from conftest import edit_params
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from deepcluster import artifacts
from deepcluster.errors import ArtifactError, UserError
from deepcluster.reduction.pca import Components
from deepcluster.using.bundle import Reduction, outlier_thresholds, read_bundle, write_bundle
from deepcluster.using.project import differing, project_bundle, stored_rows


def components(d: int = 3, width: int = 256) -> Components:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((d, width), width)]
    return Components(*arrays, *(np.sort(rng.random(d).astype(np.float32))[::-1] for _ in range(2)))


def test_a_description_nested_beyond_reading_is_damage(tmp_path):
    (tmp_path / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(ArtifactError, match=r": damaged \(maximum recursion"):
        read_bundle(tmp_path)


class TestWrittenAndRead:
    @pytest.mark.parametrize(
        "reduction", [Reduction(), Reduction(components(), whiten=True, normalize=False, spherical=True, block_rows=7)]
    )
    def test_everything_comes_back(self, tmp_path, reduction):
        written = noise_bundle(reduction=reduction)
        write_bundle(tmp_path / "b", written)
        found = read_bundle(tmp_path / "b")
        assert found.description == written.description
        assert found.preprocessing == written.preprocessing
        assert found.features == written.features
        assert found.about == written.about
        assert found.name == "noise (k = 4)"
        state = written.backbone.state_dict()
        for name, tensor in found.backbone.state_dict().items():
            assert tensor.equal(state[name]), name
        for name, array in vars(written.clusters).items():
            np.testing.assert_array_equal(getattr(found.clusters, name), array)
            assert getattr(found.clusters, name).dtype == array.dtype
        settings = ("whiten", "normalize", "spherical", "block_rows")
        assert [getattr(found.reduction, name) for name in settings] == [getattr(reduction, name) for name in settings]
        assert (found.reduction.components is None) == (reduction.components is None)
        if found.reduction.components is not None:
            for name, array in vars(reduction.components).items():
                np.testing.assert_array_equal(getattr(found.reduction.components, name), array)

    def test_safetensors_json_and_text_only(self, tmp_path):
        write_bundle(tmp_path / "plain", noise_bundle())
        write_bundle(tmp_path / "pca", noise_bundle(reduction=Reduction(components())))
        names = ["README.txt", "backbone.safetensors", "bundle.json", "clusters.safetensors"]
        assert sorted(os.listdir(tmp_path / "plain")) == names
        assert sorted(os.listdir(tmp_path / "pca")) == [*names, "reduction.safetensors"]
        assert sorted(load_file(tmp_path / "plain/clusters.safetensors")) == ["centroids", "sizes", "thresholds"]
        assert "reduction.safetensors" not in (tmp_path / "plain/README.txt").read_text()
        assert "reduction.safetensors" in (tmp_path / "pca/README.txt").read_text()

    def test_the_same_bytes_again(self, tmp_path):
        for name in "ab":
            write_bundle(tmp_path / name, noise_bundle())
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


class TestReadmeInTheFolder:
    def test_it_names_what_an_image_goes_through(self, tmp_path):
        write_bundle(tmp_path / "b", noise_bundle())
        text = (tmp_path / "b/README.txt").read_text()
        assert text.startswith("A DeepCluster bundle: noise (k = 4).\n")
        assert "made grey; the centre square is scaled\nto 8x8 pixels" in text


def rewrite(path: Path, **changes: object) -> None:
    """Change bundle.json as somebody might who gets the checksum right."""
    from deepcluster.artifacts.provenance import digest_of

    about = json.loads((path / "bundle.json").read_text()) | changes
    about["digest"] = digest_of(about)
    (path / "bundle.json").write_text(json.dumps(about))


class TestRefusedWhenRead:
    @pytest.fixture
    def written(self, tmp_path):
        write_bundle(tmp_path / "b", noise_bundle())
        return tmp_path / "b"

    def refusal(self, path: Path) -> str:
        with pytest.raises(ArtifactError) as error:
            read_bundle(path)
        return str(error.value).replace(str(path), "B")

    def test_no_folder_and_no_bundle(self, tmp_path):
        expected = "B: no such bundle; `deepcluster bundle` writes one, in a project's folder"
        assert self.refusal(tmp_path / "none") == expected
        expected = "B: not a bundle (it has no bundle.json); `deepcluster bundle` writes one"
        assert self.refusal(tmp_path) == expected

    def test_another_version(self, written):
        rewrite(written, version=2)
        assert self.refusal(written) == (
            "B: version: expected 1, got 2; write it again with `deepcluster bundle` of this version, in the project "
            "that it comes from"
        )

    def test_another_format(self, written):
        rewrite(written, format="else")
        assert self.refusal(written) == "B: not a bundle of deepcluster: its format is 'else'"

    def test_altered_weights(self, written):
        content = bytearray((written / "backbone.safetensors").read_bytes())
        content[-1] ^= 1
        (written / "backbone.safetensors").write_bytes(content)
        expected = "B/backbone.safetensors: damaged (checksum differs); copy it again, or write it again"
        assert self.refusal(written) == expected

    def test_a_missing_file(self, written):
        (written / "clusters.safetensors").unlink()
        assert re.fullmatch(r"B: damaged \(.*No such file.*\); copy it again, or write it again", self.refusal(written))

    def test_an_altered_description(self, written):
        text = (written / "bundle.json").read_text()
        (written / "bundle.json").write_text(text.replace('"crop": true', '"crop": false'))
        expected = "B/bundle.json: damaged (altered); copy it again, or write it again"
        assert self.refusal(written) == expected

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 3}', "\0"])
    def test_no_description(self, written, content):
        (written / "bundle.json").write_text(content)
        assert "copy it again" in self.refusal(written) or "its format is 3" in self.refusal(written)

    def test_a_description_that_fits_no_code(self, written):
        rewrite(written, features={"size": 3})
        assert self.refusal(written).startswith("B: damaged (description: ")


class TestRefusedTargets:
    def refusal(self, target: Path, *, force: bool = False) -> str:
        with pytest.raises(UserError) as error:
            artifacts.refuse_bundle_target(target, force=force)
        return str(error.value)

    def test_places_for_a_bundle(self, tmp_path):
        artifacts.refuse_bundle_target(tmp_path / "new", force=False)
        (tmp_path / "empty").mkdir()
        artifacts.refuse_bundle_target(tmp_path / "empty", force=False)
        write_bundle(tmp_path / "old", noise_bundle())
        artifacts.refuse_bundle_target(tmp_path / "old", force=True)

    def test_a_bundle_that_is_there(self, tmp_path):
        write_bundle(tmp_path / "old", noise_bundle())
        assert self.refusal(tmp_path / "old") == f"--out: {tmp_path / 'old'} exists; --force replaces it"

    def test_a_folder_with_anything_else_is_never_replaced(self, tmp_path):
        write_bundle(tmp_path / "old", noise_bundle())
        (tmp_path / "old/thesis.txt").touch()
        rest = "holds what is no part of a bundle, such as 'thesis.txt'; name a new folder"
        assert self.refusal(tmp_path / "old", force=True) == f"--out: {tmp_path / 'old'} {rest}"
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/README.txt").touch()
        rest = "is not empty and no bundle; name a new folder"
        assert self.refusal(tmp_path / "mine", force=True) == f"--out: {tmp_path / 'mine'} {rest}"

    def test_files_and_folders_that_are_not_there(self, tmp_path):
        (tmp_path / "file").touch()
        assert self.refusal(tmp_path / "file") == f"--out: {tmp_path / 'file'} is a file; name a folder"
        assert self.refusal(tmp_path / "a/b") == f"--out: {tmp_path / 'a'}: no such folder"

    def test_the_current_folder(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        rest = "is the current folder, or holds it; name a new folder"
        assert self.refusal(Path(), force=True) == f"--out: . {rest}"
        assert self.refusal(tmp_path, force=True) == f"--out: {tmp_path} {rest}"


def test_thresholds_by_hand():
    labels_N = np.repeat(np.array([0, 1, 2], np.int32), [200, 19, 1])
    distances_N = np.concatenate([np.arange(200), 1000 + np.arange(19), [0]]).astype(float)
    found = outlier_thresholds(distances_N, labels_N, np.array([200, 19, 1, 0]))
    # of 0..199 two (1 %) are beyond 198's place: position 0.99 x 199 = 197.01, the next higher is 198
    assert found[0] == 198
    # 19 and fewer images: of all 220 the one at position 0.99 x 219 = 216.81, 217 in order, 1000 + 16
    assert found[1:].tolist() == [1016, 1016, 1016]


@pytest.mark.parametrize(("count", "width"), [(700, 1000), (5, 1000), (5000, 70), (300, 9000)])
@pytest.mark.parametrize("wanted", [1, 300, 4096])
def test_rows_are_reduced_in_the_blocks_of_a_store(tmp_path, count, width, wanted):
    rows_ND = np.zeros((count, width), np.float32)
    with artifacts.write_store(tmp_path / "f.zarr", "features", artifacts.Provenance(count, "f" * 64)) as store:
        store.rows("features", [rows_ND], total=count, dimensions=("sample", "feature"))
    opened = artifacts.open_store(tmp_path / "f.zarr", "features", made_by="extract@1")
    assert min(count, stored_rows(count, width, wanted)) == len(next(opened.blocks("features", wanted)))


class TestOfAProject:
    def test_the_final_clustering(self, workspace):
        found = project_bundle("final", None)
        images, clusters = (
            zarr.open_group(f"data/{name}", mode="r") for name in ("dataset/images.zarr", "evaluation/clusters.zarr")
        )
        assert found.name == "the final clustering of epoch 2 (k = 2)"
        assert (found.about["epoch"], found.about["backbone_epoch"]) == (2, 2)
        assert (found.preprocessing.image_size, found.preprocessing.channels, found.preprocessing.crop) == (8, 1, True)
        assert list(found.preprocessing.mean) == images.attrs["mean"]
        assert list(found.preprocessing.std) == images.attrs["std"]
        assert found.features.batch_size == 48  # as many as there are images, fewer than params.yaml's 512
        assert found.reduction == Reduction()
        np.testing.assert_array_equal(found.clusters.centroids_Kd, clusters["centroids"][:])
        weights = load_file("data/epochs/2/checkpoint/model.safetensors")
        for name, tensor in found.backbone.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), weights[name])
        params = found.about["provenance"]["params"]
        assert params["data"]["root"] == "images"  # not the whole path
        assert params["train"]["batch_size"] == 16
        assert params["evaluate"]["restarts"] == 1

    def test_pseudo_labels_have_the_backbone_before_and_their_pca(self, workspace):
        found = project_bundle("pseudo", 2)
        pca = zarr.open_group("data/epochs/2/pca.zarr", mode="r")
        assert found.name == "the pseudo-labels of epoch 2 (k = 4)"
        assert (found.about["epoch"], found.about["backbone_epoch"]) == (2, 1)
        np.testing.assert_array_equal(found.reduction.components.components_dD, pca["components"][:])
        assert (found.reduction.whiten, found.reduction.normalize, found.reduction.spherical) == (True, True, False)
        weights = load_file("data/epochs/1/checkpoint/model.safetensors")
        for name, tensor in found.backbone.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), weights[name])

    def test_images_of_the_untrained_backbone(self, workspace):
        assert project_bundle("pseudo", 1).about["backbone_epoch"] == 0

    def test_it_reads_neither_params_nor_features_that_were_deleted(self, workspace):
        expected = project_bundle("pseudo", 2).features
        edit_params(Path("params.yaml"), {"extract.batch_size": 7})
        assert project_bundle("pseudo", 2).features == expected
        shutil.rmtree("data/epochs/2/features.zarr")
        assert project_bundle("pseudo", 2).features.batch_size == 7

    def test_images_that_move_are_counted(self, workspace):
        found = project_bundle("final", None)
        device = next(found.backbone.parameters()).device
        assert differing(found, "final", device) == (0, 48)
        found.clusters.centroids_Kd[:] = found.clusters.centroids_Kd[::-1].copy()
        assert differing(found, "final", device) == (48, 48)

    def test_the_command_says_so(self, workspace, outcome, monkeypatch):
        monkeypatch.setattr("deepcluster.using.project.differing", lambda *_: (3, 4000))
        status, out, _ = outcome("bundle")
        assert status == 0
        assert out == (
            "warning: 3 of 4,000 training images get another cluster than they have in the artifact, which was made on "
            "another device, with other settings or by other versions\n"
            "bundle: the final clustering of epoch 2 (k = 2); `deepcluster assign --bundle bundle IMAGES --out "
            "labels.csv` uses it\n"
        )
        assert read_bundle(Path("bundle")).k == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--labels", "pseudo", "--epoch", "3"], "--epoch: must be one that was run (1, 2); got 3"),
            (["--labels", "pseudo", "--epoch", "0"], "--epoch: must be one that was run (1, 2); got 0"),
            (["--labels", "pseudo"], "--epoch: --labels pseudo needs one of the epochs that were run (1, 2)"),
            (
                ["--epoch", "1"],
                "--epoch: the final clustering is of epoch 2; got 1, of which --labels pseudo has pseudo-labels",
            ),
        ],
    )
    def test_epochs_that_it_cannot_take(self, workspace, outcome, arguments, message):
        assert outcome("bundle", *arguments) == (2, "", f"error: {message}\n")
        assert not Path("bundle").exists()

    def test_outside_a_project(self, tmp_path, monkeypatch, outcome):
        monkeypatch.chdir(tmp_path)
        message = "error: data/dataset/images.zarr: not found; run this in the folder of a project that has run\n"
        assert outcome("bundle") == (2, "", message)

    def test_before_evaluate(self, workspace, outcome):
        shutil.rmtree("data/evaluation")
        message = "error: data/evaluation/clusters.zarr: not found; run `dvc repro evaluate`\n"
        assert outcome("bundle") == (2, "", message)

    def test_pic_has_no_centroids_to_go_by(self, workspace, outcome):
        store = artifacts.open_store(Path("data/history/1/clusters.zarr"), "clusters", made_by="cluster@1")
        used = store.attributes["params"] | {"method": "pic"}
        arrays = {name: store.read(name) for name in ("labels", "distances", "centroids", "sizes")}
        provenance = artifacts.Provenance(48, store.ids, 1, 1, used)
        with artifacts.write_store(Path("data/history/1/clusters.zarr"), "clusters", provenance) as new:
            for name, array in arrays.items():
                new.array(name, array, [str(axis) for axis in range(array.ndim)])
        message = (
            "error: --labels pseudo: the clusters of epoch 1 were made by method pic, which joins images along "
            "their neighbours, so no centroid tells where another image belongs; bundle --labels final\n"
        )
        assert outcome("bundle", "--labels", "pseudo", "--epoch", "1") == (2, "", message)

    def test_commit_and_hashes_of_a_project_under_dvc(self, finished, monkeypatch):
        monkeypatch.chdir(finished.root)
        origin = project_bundle("pseudo", 2).about["provenance"]
        command = ["git", "rev-parse", "HEAD"]
        assert origin["commit"] == subprocess.run(command, capture_output=True, text=True).stdout.strip()
        stages = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
        outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
        names = ["dataset/images.zarr", "epochs/1/checkpoint", "epochs/2/pca.zarr", "history/2/clusters.zarr"]
        assert origin["dvc_lock"] == {path: outs[path] for path in (f"data/{name}" for name in names)}
