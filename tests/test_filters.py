"""`deepcluster filters`: first-layer filters, and what excites channels."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from deepcluster import artifacts, layout
from deepcluster.activations import exciting_images, first_filters, layers, responses
from deepcluster.checkpoint import load_checkpoint
from deepcluster.inspection.filters import excitement_pictures, filter_pictures
from deepcluster.models.build import Backbone, build_backbone

CPU = torch.device("cpu")
SCALE = {"mean": [0.25], "std": [0.5], "device": CPU}


def backbone(arch="convnet", *, channels=1, sobel=False) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(arch, channels=channels, image_size=8, sobel=sobel, grayscale=False)


class TestPictures:
    def test_zero_is_grey_and_the_largest_weight_black_or_white(self):
        weights = np.array([[[[0, 2], [-1, 1]]], [[[0, 0.5], [-0.5, 0]]], [[[0, 0], [0, 0]]]], np.float32)
        found = filter_pictures(weights, a_row=2)
        assert found.shape == (2, 2, 1, 2, 2)
        assert found[0].tolist() == [[[[128, 255], [64, 192]]], [[[128, 255], [1, 128]]]]
        assert (found[1] == 128).all()

    def test_three_channels_are_colour_and_two_are_two_pictures(self):
        rng = np.random.default_rng(0)
        assert filter_pictures(rng.normal(size=(20, 3, 5, 5)).astype(np.float32)).shape == (2, 16, 3, 5, 5)
        two = rng.normal(size=(3, 2, 4, 4)).astype(np.float32)
        found = filter_pictures(two, a_row=3)
        assert found.shape == (3, 2, 1, 4, 4)  # a filter a row, since two filters would not fit whole
        expected = 128 + 127 * two[1, 1] / np.abs(two[1]).max()
        np.testing.assert_allclose(found[1, 1, 0], expected, atol=0.51)

    def test_the_made_image_comes_first(self):
        made, images = np.zeros((2, 1, 4, 4), np.uint8), np.ones((2, 3, 1, 4, 4), np.uint8)
        assert excitement_pictures(made, images)[:, :, 0, 0, 0].tolist() == [[0, 1, 1, 1]] * 2


class TestActivations:
    def test_layers_are_those_that_are_trained(self):
        assert list(layers(backbone())) == ["body.0", "body.4", "body.7", "body.10"]
        assert all(name.startswith("body.") for name in layers(backbone(sobel=True)))

    def test_filters_are_the_first_layer_s_weights(self):
        net = backbone()
        np.testing.assert_array_equal(first_filters(net, channels=1, size=8), net.state_dict()["body.0.weight"])
        dense = backbone("feedforward")
        weight = next(value for name, value in dense.state_dict().items() if name.endswith("weight"))
        found = first_filters(dense, channels=1, size=8)
        assert found.shape[1:] == (1, 8, 8)
        np.testing.assert_array_equal(found.reshape(len(found), -1), weight)

    def test_responses_are_the_maxima_of_the_layer_before_its_relu(self):
        net, images = backbone(), np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
        found = np.concatenate(list(responses(net, "body.0", images, batch_size=2, **SCALE)))
        scaled = (torch.from_numpy(images).double() / 255 - 0.25) / 0.5
        weight = net.state_dict()["body.0.weight"].double()
        expected = functional.conv2d(scaled, weight, padding=1).amax(dim=(2, 3))
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize(("arch", "sobel"), [("convnet", False), ("convnet", True), ("feedforward", False)])
    def test_a_made_image_excites_its_channel_above_the_others(self, arch, sobel):
        net = backbone(arch, sobel=sobel)
        layer, channels = list(layers(net))[-1], [3, 0, 7]
        settings = {"shape": (1, 8, 8), "steps": 25, **SCALE}

        def made():
            return list(exciting_images(net, layer, channels, generator=torch.Generator().manual_seed(1), **settings))

        found = made()
        assert len(found) == 25
        assert (found[0].dtype, found[0].shape) == (np.uint8, (3, 1, 8, 8))
        np.testing.assert_array_equal(made()[-1], found[-1])

        def share(images):
            outputs = []
            hook = layers(net)[layer].register_forward_hook(lambda *given: outputs.append(given[2]))
            net((torch.from_numpy(images).float() / 255 - 0.25) / 0.5)
            hook.remove()
            mean = outputs[0].mean(dim=(2, 3)) if outputs[0].ndim == 4 else outputs[0]
            return functional.log_softmax(mean, dim=1)[torch.arange(3), channels]

        assert (share(found[-1]) > share(found[0])).all()


class TestCommand:
    def test_pictures_and_names(self, workspace, outcome):
        status, out, err = outcome("filters", "--layer", "body.4", "--channels", "2", "--steps", "3")
        assert status == 0, err
        folder = layout.filters(2)
        assert out.splitlines() == [
            "data/filters/2/first-layer.png: 32 filters",
            "data/filters/2/body.4.png: channels 0, 63",
        ]
        assert Image.open(folder / "first-layer.png").size == (16 * 96 + 15 * 2, 2 * 96 + 2)
        assert Image.open(folder / "body.4.png").size == (10 * 96 + 8 + 8 * 2, 2 * 96 + 2)
        images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
        net = load_checkpoint(layout.checkpoint(2), made_by="", ids=images.ids, epoch=2).backbone
        scale = {"mean": images.attributes["mean"], "std": images.attributes["std"], "device": CPU}
        found = np.concatenate(list(responses(net, "body.4", images.read("images"), batch_size=64, **scale)))
        rows = list(csv.DictReader((folder / "body.4.csv").open()))
        first = [(row["channel"], row["sample"]) for row in rows if row["rank"] == "1"]
        names = images.strings("sample_ids")
        assert first == [(str(channel), names[found[:, channel].argmax()]) for channel in (0, 63)]
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert outcome("filters", "--layer", "body.4", "--channels", "2", "--steps", "3")[0] == 0
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--layer", "body.1"), "--layer: must be one of body.0, body.4, body.7, body.10; got 'body.1'"),
            (("--channels", "65"), "--channels: must be from 1 to 64; got 65"),
            (("--steps", "0"), "--steps: must be from 1 to 10,000; got 0"),
            (
                ("--epoch", "-1"),
                "--epoch: must be one that was run (0 to 2; 0 is the untrained backbone); got -1",
            ),
            (("--epoch", "7"), "--epoch: must be one that was run (0 to 2; 0 is the untrained backbone); got 7"),
        ],
    )
    def test_what_is_refused(self, workspace, outcome, words, message):
        status, out, err = outcome("filters", *words)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {message}")
        assert not layout.filters(2).exists()

    def test_not_in_a_project(self, tmp_path, monkeypatch, outcome):
        monkeypatch.chdir(tmp_path)
        message = "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n"
        assert outcome("filters") == (2, "", message)
