"""DeepCluster as scikit-learn's users expect it. That it finds the pipeline's labels: tests/test_same_labels.py."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from deepcluster import DeepCluster
from deepcluster.augment import Augmentation
from deepcluster.datasets.decoding import decode
from deepcluster.errors import CollapseError, NumericsError, UserError
from deepcluster.using import inmemory
from deepcluster.using.arrays import as_images
from deepcluster.using.bundle import read_bundle

QUICK = {"k": 3, "clusters": 5, "epochs": 1, "epoch_size": 1.0, "components": 4, "restarts": 2, "device": "cpu"}
FORMS = "uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3, or a list of PIL images or of paths"


def kinds(count: int = 60, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey images uint8 [count, 8, 8], bright above, on the left or in the middle; and which of the three."""
    rng = np.random.default_rng(seed)
    images, kind = rng.integers(0, 60, (count, 8, 8)), np.arange(count) % 3
    images[kind == 0, :4] += 150
    images[kind == 1, :, :4] += 150
    images[kind == 2, 2:6, 2:6] += 150
    return images.astype(np.uint8), kind


@pytest.fixture(scope="module")
def fitted() -> DeepCluster:
    return DeepCluster(**QUICK).fit(kinds()[0])


class TestManners:
    def test_parameters_come_back_and_are_cloned(self):
        settings = {**QUICK, "augmentation": Augmentation(flip=True), "arch": "resnet18", "lr": 0.01, "seed": 7}
        model = DeepCluster(**settings)
        assert settings.items() <= model.get_params().items()
        copy = clone(model)
        assert copy is not model
        assert copy.get_params() == model.get_params()
        assert copy.set_params(k=9, schedule="constant") is copy
        assert (copy.k, copy.schedule, model.k) == (9, "constant", 3)
        with pytest.raises(ValueError, match="Invalid parameter 'sed'"):
            copy.set_params(sed=3)

    def test_a_clone_is_not_fitted(self, fitted):
        check_is_fitted(fitted)
        images = kinds()[0]
        for call in (clone(fitted).predict, clone(fitted).transform, clone(fitted).place):
            with pytest.raises(NotFittedError, match="This DeepCluster instance is not fitted yet"):
                call(images)
        with pytest.raises(NotFittedError):
            clone(fitted).write_bundle("never")

    def test_what_fit_leaves(self, fitted):
        assert (fitted.labels_.shape, fitted.labels_.dtype) == ((60,), np.int32)
        assert (fitted.cluster_centers_.shape, fitted.cluster_centers_.dtype) == ((3, 256), np.float32)
        assert set(fitted.pseudo_labels_.tolist()) == set(range(5))
        assert fitted.n_features_in_ == 64
        assert [set(row) for row in fitted.history_] == [{"epoch", "loss", "accuracy"}]
        assert fitted.bundle_.name == "a clustering fitted in Python, after epoch 1 (k = 3)"

    def test_labels_are_the_nearest_centres_of_transform(self, fitted):
        images = kinds()[0]
        features_ND = fitted.transform(images)
        assert features_ND.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(features_ND, axis=1), 1, rtol=1e-6)
        squared_NK = ((features_ND[:, None].astype(float) - fitted.cluster_centers_) ** 2).sum(axis=2)
        np.testing.assert_array_equal(fitted.labels_, squared_NK.argmin(axis=1))
        assert fitted.inertia_ == pytest.approx(squared_NK.min(axis=1).sum(), rel=1e-6)
        np.testing.assert_array_equal(fitted.predict(images), fitted.labels_)
        np.testing.assert_array_equal(fitted.predict(images[7:20]), fitted.labels_[7:20])
        np.testing.assert_allclose(fitted.place(images).distances_N ** 2, squared_NK.min(axis=1), rtol=1e-4, atol=1e-9)

    def test_it_learns_the_kinds(self):
        images, kind = kinds(120)
        model = DeepCluster(**QUICK | {"epochs": 3, "restarts": 5})
        found = model.fit_predict(images, y=np.zeros(120))
        table = np.zeros((3, 3), int)
        np.add.at(table, (found, kind), 1)
        assert sorted(table.max(axis=0)) == [40, 40, 40]

    def test_in_pipelines(self):
        images, kind = kinds()
        pipeline = make_pipeline(DeepCluster(**QUICK), LogisticRegression())
        assert pipeline.fit(images, kind).score(images, kind) == 1.0
        assert list(pipeline[:-1].get_feature_names_out()[:2]) == ["deepcluster0", "deepcluster1"]
        assert pipeline.set_params(deepcluster__k=2)[0].k == 2

    def test_the_same_seed_gives_the_same_and_another_another(self, fitted):
        images = kinds()[0]
        again, other = clone(fitted).fit(images), clone(fitted).set_params(seed=2).fit(images)
        np.testing.assert_array_equal(again.transform(images), fitted.transform(images))
        np.testing.assert_array_equal(again.labels_, fitted.labels_)
        assert not np.array_equal(other.transform(images), fitted.transform(images))

    def test_torchs_random_numbers_are_left_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        DeepCluster(**QUICK).fit(kinds()[0])
        assert torch.equal(torch.rand(3), expected)

    def test_a_line_an_epoch_if_asked(self, fitted, capsys):
        clone(fitted).fit(kinds()[0])
        assert capsys.readouterr() == ("", "")
        clone(fitted).set_params(verbose=True, epochs=2).fit(kinds()[0])
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2"]

    @pytest.mark.slow
    def test_it_is_imported_when_it_is_asked_for(self):
        code = "import sys, deepcluster; assert 'torch' not in sys.modules; deepcluster.DeepCluster(k=4)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
        import deepcluster

        with pytest.raises(AttributeError, match="module 'deepcluster' has no attribute 'DeepCluter'"):
            _ = deepcluster.DeepCluter


class TestBundle:
    def test_the_command_takes_it(self, fitted, tmp_path, outcome, monkeypatch):
        monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
        monkeypatch.chdir(tmp_path)
        fitted.write_bundle("b")
        assert read_bundle(Path("b")).about["provenance"]["params"]["clusters"] == 5
        Path("new").mkdir()
        images = kinds(12, seed=4)[0]
        for index, image in enumerate(images):
            Image.fromarray(image).save(f"new/{index:02}.png")
        assert outcome("assign", "new", "--bundle", "b", "--out", "t.csv")[0] == 0
        with open("t.csv", newline="") as file:
            found = [int(row["cluster"]) for row in csv.DictReader(file)]
        np.testing.assert_array_equal(found, fitted.predict(images))

    def test_it_is_not_overwritten(self, fitted, tmp_path):
        fitted.write_bundle(tmp_path / "b")
        with pytest.raises(UserError, match="exists; --force replaces it"):
            fitted.write_bundle(str(tmp_path / "b"))
        fitted.write_bundle(tmp_path / "b", force=True)


def test_later_epochs_train_on_k_clusters():
    model = DeepCluster(**QUICK | {"epochs": 2, "k": 3, "clusters": 6, "refine": 0.5}).fit(kinds()[0])
    assert len(np.unique(model.pseudo_labels_)) == 3
    model = DeepCluster(**QUICK | {"epochs": 2, "k": 3, "clusters": 6, "refine": None}).fit(kinds()[0])
    assert len(np.unique(model.pseudo_labels_)) > 3


class TestRefused:
    def refusal(self, images: object, **settings: object) -> str:
        with pytest.raises((ValueError, TypeError)) as error:
            DeepCluster(**QUICK | settings).fit(images)
        return str(error.value)

    def test_parameters_all_at_once(self):
        wrong = {"k": 1, "clusters": 2.5, "epochs": True, "arch": "lenet", "lr": 0, "schedule": "step", "image_size": 0}
        wrong |= {"method": "pic"}
        assert self.refusal(kinds()[0], **wrong).splitlines() == [
            "k: must be an int >= 2; got 1",
            "clusters: must be an int >= 2; got 2.5",
            "epochs: must be an int >= 1; got True",
            "image_size: must be an int >= 1; got 0",
            "lr: must be a number > 0; got 0",
            "arch: must be one of convnet, feedforward, alexnet, vgg16, resnet18, resnet34, resnet50, resnet101, "
            "resnet152; got 'lenet'",
            "schedule: must be one of constant, cosine; got 'step'",
            "method: must be one of kmeans, spectral; got 'pic'",
        ]

    def test_fewer_images_than_clusters(self):
        assert self.refusal(kinds(4)[0]) == "clusters: must be <= N = 4 images; got 5"
        assert self.refusal(kinds(2)[0]) == "k: must be <= N = 2 images; got 3"

    def test_none_means_what_suits(self):
        model = DeepCluster(**QUICK | {"clusters": None, "components": None})
        assert len(set(model.fit(kinds(30)[0]).pseudo_labels_.tolist())) == 9
        assert model.bundle_.k == 3

    def test_spectral_clusters_of_fewer_images_than_it_takes_neighbours(self):
        model = DeepCluster(**QUICK | {"method": "spectral", "clusters": None, "refine": None})
        assert len(set(model.fit(kinds(10)[0]).pseudo_labels_.tolist())) == 9

    def test_copies_that_spectral_clustering_cannot_tell_apart(self):
        copies = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8), 12, axis=0)
        with pytest.raises(NumericsError, match="the graph of neighbours falls into 20 parts, more than its 8 vectors"):
            DeepCluster(**QUICK | {"method": "spectral"}).fit(copies)

    @pytest.mark.parametrize(("refined", "key"), [(False, "pca.whiten"), (True, "refine.whiten")])
    def test_a_collapse_names_the_settings_of_its_epoch(self, refined, key):
        alike = np.ones((20, 8), np.float32)
        with pytest.raises(CollapseError, match=f"with {key}$"):
            inmemory.pseudo_labels(alike, epoch=1, seed=1, k=3, components=4, refined=refined)

    def test_images_that_are_all_alike(self):
        with pytest.raises(CollapseError, match=r"^epoch 1: collapse: the features vary along 0\.00 directions"):
            DeepCluster(**QUICK).fit(np.full((20, 8, 8), 7, np.uint8))

    def test_images_of_another_shape_than_in_fit(self, fitted):
        with pytest.raises(ValueError) as error:
            fitted.predict(np.zeros((2, 3, 8, 8), np.uint8))
        assert str(error.value) == "images must be [1, 8, 8] each, as in fit; got [3, 8, 8]"

    def test_floats(self):
        assert self.refusal(np.zeros((20, 64))) == (
            f"images must be {FORMS}; got an array of float64 [20, 64]. Of values in [0, 1] make "
            "(255 * images).round().astype('uint8')"
        )

    @pytest.mark.parametrize("shape", [(20, 64), (20, 2, 8, 8), (20, 3, 8, 3), (20, 8, 8, 4), (8,)])
    def test_shapes_that_tell_no_channels(self, shape):
        found = self.refusal(np.zeros(shape, np.uint8))
        assert found == f"images must be {FORMS}; got an array of shape {list(shape)}"

    def test_no_images(self):
        assert self.refusal([]) == self.refusal(np.zeros((0, 8, 8), np.uint8)) == "images: there are none"

    def test_lists_without_a_size_and_other_things_in_them(self, tmp_path):
        path = tmp_path / "bad.png"
        path.touch()
        expected = "image_size: must be given for a list of images, since each may have another size"
        assert self.refusal([path]) == expected
        assert self.refusal([3], image_size=8) == f"images must be {FORMS}; item 0 is a int"
        good = Image.new("L", (8, 8))
        assert self.refusal([good, path], image_size=8).startswith(
            "images: item 1 cannot be read: cannot identify image"
        )
        assert "No such file" in self.refusal([str(tmp_path / "none.png")], image_size=8)

    def test_oblong_arrays_without_a_size(self):
        expected = "images must be square; got 8x6: set image_size, and their centre is taken"
        assert self.refusal(np.zeros((9, 8, 6), np.uint8)) == expected


class TestForms:
    def test_channels_first_last_and_none(self):
        grey = kinds(6)[0]
        colour = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)
        np.testing.assert_array_equal(as_images(grey, image_size=None), grey[:, None])
        np.testing.assert_array_equal(as_images(grey[:, None], image_size=None), grey[:, None])
        np.testing.assert_array_equal(as_images(grey[..., None], image_size=None), grey[:, None])
        np.testing.assert_array_equal(as_images(colour, image_size=None), colour)
        np.testing.assert_array_equal(as_images(colour.transpose(0, 2, 3, 1), image_size=None), colour)

    def test_oblong_arrays_are_cut_and_scaled_as_files_are(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 32, 3)).astype(np.uint8)
        found = as_images(pixels, image_size=10)
        for index in range(2):
            Image.fromarray(pixels[index]).save(tmp_path / "a.png")
            np.testing.assert_array_equal(found[index], decode(tmp_path / "a.png", 10, 3))

    def test_lists_are_decoded_as_a_folder_is(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 4)).astype(np.uint8)
        image, path = Image.fromarray(pixels, "RGBA"), tmp_path / "a.png"
        image.save(path)
        for grayscale in (False, True):
            expected = decode(path, 10, 1 if grayscale else 3)
            found = as_images([path, str(path), image], image_size=10, grayscale=grayscale)
            for row in found:
                np.testing.assert_array_equal(row, expected)

    def test_fitted_on_paths(self, tmp_path):
        images = kinds(30)[0]
        paths = [tmp_path / f"{index}.png" for index in range(30)]
        for image, path in zip(images, paths, strict=True):
            Image.fromarray(image).save(path)
        model = DeepCluster(**QUICK, image_size=8, grayscale=True).fit(paths)
        np.testing.assert_array_equal(model.labels_, DeepCluster(**QUICK).fit(images).labels_)
        np.testing.assert_array_equal(model.predict(images), model.labels_)
        np.testing.assert_array_equal(model.predict([Image.open(path) for path in paths]), model.labels_)
