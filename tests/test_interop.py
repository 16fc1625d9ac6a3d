"""Weights made elsewhere: files as torchvision, the original DeepCluster and other runs write them."""

import hashlib
import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_params
from safetensors.torch import save_file
from torch import nn

from deepcluster import artifacts, layout
from deepcluster.artifacts.provenance import digest_of
from deepcluster.checkpoint import BackboneDescription, load_checkpoint, load_weights, save_checkpoint
from deepcluster.errors import ArtifactError
from deepcluster.interop import read_foreign_weights
from deepcluster.models.build import Backbone


@pytest.fixture
def folder(tmp_path):
    """A folder for large files, which do not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def describe(arch="resnet18", *, channels=3, size=32, sobel=False, grayscale=False) -> BackboneDescription:
    return BackboneDescription(arch, channels, size, sobel, grayscale)


def loaded(path: Path, description: BackboneDescription) -> Backbone:
    backbone = description.build()
    load_weights(backbone, read_foreign_weights(path, description, backbone), path)
    return backbone.eval()


def refusal(path: Path, description: BackboneDescription | None = None) -> str:
    """The one line that refuses the file, without its path."""
    with pytest.raises(ArtifactError) as error:
        loaded(path, description or describe())
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def draw_statistics(model: nn.Module) -> None:
    """Weights and statistics of batch norm that are not ones and zeros, as after training."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight.data, layer.running_var):
                values.uniform_(0.5, 2)
            for values in (layer.bias.data, layer.running_mean):
                values.normal_(0, 0.5)
            layer.num_batches_tracked.fill_(7)


def test_metadata_of_weights_nested_beyond_reading_are_text(tmp_path):
    nested = "[" * 200_000
    artifacts.write_weight_file(tmp_path / "w.safetensors", {"w": np.ones(1, np.float32)}, {"nested": nested})
    assert artifacts.read_weight_file(tmp_path / "w.safetensors").metadata["nested"] == nested


class Original(nn.Module):
    """A network laid out as in the original DeepCluster's files, whose convolutions run under DataParallel."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, *, sobel: bool) -> None:
        super().__init__()
        self.features = nn.DataParallel(features)
        self.classifier = classifier
        self.top_layer = nn.Linear(4096, 20)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        if sobel:
            self.sobel = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1))
            nn.init.constant_(self.sobel[0].weight, 1 / 3)
            horizontal = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
            self.sobel[1].weight.data = torch.stack([horizontal, horizontal.T]).unsqueeze(1)
            for layer in self.sobel:
                nn.init.zeros_(layer.bias)
        draw_statistics(self)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        filtered = self.sobel(images) if hasattr(self, "sobel") else images
        return self.classifier(self.features.module(filtered).flatten(1))


def alexnet_file(*, channels: int, stem: tuple[int, int, int], map_size: int, sobel: bool) -> Original:
    """Layer by layer, by the indices of its file: conv 0, 4, 8, 11, 14, batch norm behind each."""
    convolutions: list[nn.Module] = []
    for outputs, kernel, stride, padding, pooled in [
        (96, *stem, True),
        (256, 5, 1, 2, True),
        (384, 3, 1, 1, False),
        (384, 3, 1, 1, False),
        (256, 3, 1, 1, True),
    ]:
        convolutions += [nn.Conv2d(channels, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU()]
        convolutions += [nn.MaxPool2d(3, 2)] if pooled else []
        channels = outputs
    hidden = [nn.Linear(256 * map_size**2, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096)]
    return Original(nn.Sequential(*convolutions), nn.Sequential(nn.Dropout(), *hidden), sobel=sobel)


def vgg_file(*, channels: int, map_size: int, first_pooling: bool, sobel: bool) -> Original:
    layers: list[nn.Module] = []
    for group, (outputs, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for _ in range(count):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2) if group or first_pooling else nn.Identity())
    hidden = [nn.Linear(512 * map_size**2, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096)]
    return Original(nn.Sequential(*layers), nn.Sequential(*hidden), sobel=sobel)


def save_original(path: Path, model: Original, arch: str, **kept: object) -> Path:
    """As the original's training program saves a checkpoint."""
    optimizer = torch.optim.SGD(model.top_layer.parameters(), 0.05, momentum=0.9).state_dict()
    torch.save({"epoch": 3, "arch": arch, "state_dict": model.state_dict(), "optimizer": optimizer} | kept, path)
    return path


def assert_same_features(backbone: Backbone, theirs: nn.Module, description: BackboneDescription) -> None:
    size = description.image_size
    images_NCHW = torch.randn(2, description.channels, size, size)
    with torch.no_grad():
        expected_ND = theirs(images_NCHW)
        assert expected_ND.std(dim=0).max() > 1e-4, "the images must matter"
        torch.testing.assert_close(backbone(images_NCHW), expected_ND, rtol=1e-4, atol=1e-5)


class TestOriginalDeepCluster:
    @pytest.mark.slow
    def test_alexnet_with_sobel_at_the_papers_size(self, folder):
        theirs = alexnet_file(channels=2, stem=(11, 4, 2), map_size=6, sobel=True)
        path = save_original(folder / "checkpoint.pth.tar", theirs, "alexnet")
        names = torch.load(path, weights_only=True)["state_dict"].keys()
        assert {"features.module.0.weight", "classifier.4.bias", "top_layer.weight", "sobel.1.weight"} <= set(names)
        description = describe("alexnet", size=224, sobel=True)
        assert_same_features(loaded(path, description), theirs, description)

    def test_alexnet_in_the_old_file_format_without_counters_of_batches(self, folder):
        theirs = alexnet_file(channels=3, stem=(3, 1, 1), map_size=3, sobel=False)
        state = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}
        path = folder / "checkpoint.pth.tar"
        torch.save({"arch": "alexnet", "state_dict": state}, path, _use_new_zipfile_serialization=False)
        description = describe("alexnet")
        backbone = loaded(path, description)
        assert_same_features(backbone, theirs, description)
        assert int(backbone.body[0][1].num_batches_tracked) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(("size", "map_size", "sobel"), [(32, 2, False), (224, 7, True)])
    def test_vgg16(self, folder, size, map_size, sobel):
        theirs = vgg_file(channels=2 if sobel else 3, map_size=map_size, first_pooling=size > 64, sobel=sobel)
        path = save_original(folder / "checkpoint.pth.tar", theirs, "vgg16")
        description = describe("vgg16", size=size, sobel=sobel)
        backbone = loaded(path, description)
        assert_same_features(backbone, theirs, description)
        assert int(backbone.body.features[1].num_batches_tracked) == 7

    def test_another_architecture(self, folder):
        path = folder / "checkpoint.pth.tar"
        torch.save({"arch": "alexnet", "state_dict": {"features.module.0.bias": torch.ones(96)}}, path)
        assert refusal(path, describe("vgg16")) == "holds 'alexnet', but model.arch is 'vgg16'"

    @pytest.mark.parametrize(
        ("file_sobel", "our_sobel", "message"),
        [
            (True, False, "trained on the two channels of Sobel filters: set model.sobel: true"),
            (
                False,
                True,
                "trained without Sobel filters (its first convolution takes 3 channels): set model.sobel: false",
            ),
        ],
    )
    def test_sobel_must_agree(self, folder, file_sobel, our_sobel, message):
        theirs = alexnet_file(channels=2 if file_sobel else 3, stem=(3, 1, 1), map_size=3, sobel=file_sobel)
        path = save_original(folder / "checkpoint.pth.tar", theirs, "alexnet")
        assert refusal(path, describe("alexnet", sobel=our_sobel)) == message

    def test_images_too_small_for_it(self, folder):
        theirs = alexnet_file(channels=3, stem=(11, 4, 2), map_size=6, sobel=False)
        path = save_original(folder / "checkpoint.pth.tar", theirs, "alexnet")
        assert refusal(path, describe("alexnet", size=32)) == (
            "made for images of another size, not of 32 (torchvision's and the original's files suit more than 64, "
            "alexnet 223 and more): body.0.0.weight: expected (96, 3, 3, 3), got (96, 3, 11, 11); see data.image_size"
        )


class TestTorchvision:
    def resnet18(self) -> nn.Module:
        from torchvision.models import resnet18

        theirs = resnet18(weights=None)
        draw_statistics(theirs)
        return theirs.eval()

    @pytest.mark.parametrize("wrapping", ["plain", "without fc", "DataParallel", "state_dict", "OrderedDict", "legacy"])
    def test_resnet18(self, folder, wrapping):
        theirs, path = self.resnet18(), folder / "resnet18.pth"
        state = dict(theirs.state_dict())
        match wrapping:
            case "without fc":
                state = {name: value for name, value in state.items() if not name.startswith("fc.")}
            case "DataParallel":
                state = dict(nn.DataParallel(theirs).state_dict())
                assert "module.layer1.0.conv1.weight" in state
            case "state_dict":
                state = {"arch": "resnet18", "state_dict": state, "best_acc1": torch.tensor(0.7)}
            case "OrderedDict":
                state = OrderedDict(state)
        torch.save(state, path, _use_new_zipfile_serialization=wrapping != "legacy")
        theirs.fc = nn.Identity()
        description = describe(size=96)
        assert_same_features(loaded(path, description), theirs, description)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("kind", ["pth", "safetensors"])
    def test_other_precisions_are_converted(self, folder, dtype, kind):
        theirs, path = self.resnet18().to(dtype), folder / f"resnet18.{kind}"
        (torch.save if kind == "pth" else save_file)(theirs.state_dict(), path)
        theirs.float().fc = nn.Identity()
        description = describe(size=96)
        assert_same_features(loaded(path, description), theirs, description)

    def test_vgg16_less_its_last_layer(self, folder):
        theirs = vgg_file(channels=3, map_size=1, first_pooling=False, sobel=False)
        state = {name.replace("module.", ""): value for name, value in theirs.state_dict().items() if "top" not in name}
        state |= {"classifier.6.weight": torch.zeros(1000, 4096), "classifier.6.bias": torch.zeros(1000)}
        torch.save(state, folder / "vgg16_bn.pth")
        description = describe("vgg16", size=28)
        assert_same_features(loaded(folder / "vgg16_bn.pth", description), theirs, description)

    @pytest.mark.slow
    def test_vgg16_bn_as_it_is(self, folder):
        from torchvision.models import vgg16_bn

        theirs = vgg16_bn(weights=None).eval()
        draw_statistics(theirs)
        torch.save(theirs.state_dict(), folder / "vgg16_bn.pth")
        theirs.classifier = theirs.classifier[:4]
        description = describe("vgg16", size=96)
        assert_same_features(loaded(folder / "vgg16_bn.pth", description), theirs, description)

    def test_small_images_need_another_stem(self, folder):
        torch.save(self.resnet18().state_dict(), folder / "resnet18.pth")
        assert refusal(folder / "resnet18.pth", describe(size=64)) == (
            "made for images of another size, not of 64 (torchvision's and the original's files suit more than 64, "
            "alexnet 223 and more): body.conv1.weight: expected (64, 3, 3, 3), got (64, 3, 7, 7); see data.image_size"
        )

    def test_channels_must_agree(self, folder):
        torch.save(self.resnet18().state_dict(), folder / "resnet18.pth")
        expected = "images enter with 1: see data.grayscale and model.grayscale"
        for description in (describe(channels=1, size=96), describe(grayscale=True, size=96)):
            assert (
                refusal(folder / "resnet18.pth", description)
                == f"its first convolution takes 3 channels, but {expected}"
            )

    def test_another_architecture_names_a_tensor(self, folder):
        # 8 blocks more of 2 convolutions and 2 batch norms, with 4 tensors each, and a counter that may be missing
        torch.save(self.resnet18().state_dict(), folder / "resnet18.pth")
        assert refusal(folder / "resnet18.pth", describe("resnet34", size=96)) == (
            "not weights of this backbone: 80 tensors differ, first body.layer1.2.bn1.bias: expected (64,), got nothing"
        )

    def test_a_network_that_differs_in_many_shapes_is_not_taken_for_one_of_another_size(self, folder):
        state = {name: torch.zeros([*value.shape, 1]) for name, value in self.resnet18().state_dict().items()}
        torch.save(state, folder / "wide.pth")
        assert refusal(folder / "wide.pth").startswith("not weights of this backbone: 120 tensors differ, first ")


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint folder of ours; the backbone in it."""

    def write(description: BackboneDescription) -> tuple[Path, Backbone]:
        backbone = description.build()
        draw_statistics(backbone)
        provenance = artifacts.Provenance(4, "f" * 64, 9, 1)
        save_checkpoint(tmp_path / "checkpoint", description, backbone, provenance)
        return tmp_path / "checkpoint", backbone.eval()

    return write


class TestOurs:
    @pytest.mark.parametrize("name", ["", "model.safetensors"])
    @pytest.mark.parametrize("description", [describe("convnet", sobel=True), describe("feedforward", channels=1)])
    def test_a_checkpoint_or_the_file_inside(self, checkpoint, name, description):
        path, backbone = checkpoint(description)
        assert_same_features(loaded(path / name, description), backbone, description)

    def test_of_a_checkpoint_with_averaged_weights_those(self, tmp_path):
        """What extract, evaluate and export take of it."""
        description = describe("convnet")
        trained, average = description.build(), description.build()
        draw_statistics(average)
        provenance = artifacts.Provenance(4, "f" * 64, 9, 1)
        save_checkpoint(tmp_path / "checkpoint", description, trained, provenance, average=average)
        assert_same_features(loaded(tmp_path / "checkpoint", description), average.eval(), description)

    def test_images_may_have_another_size_where_the_weights_do_not_depend_on_it(self, checkpoint):
        path, backbone = checkpoint(describe("convnet", size=64))
        found = loaded(path, describe("convnet", size=32)).state_dict()
        assert all(torch.equal(found[name], value) for name, value in backbone.state_dict().items())

    def test_sobel_filters_of_colour_and_of_grey_images_feed_the_same_backbone(self, checkpoint):
        path, _ = checkpoint(describe("convnet", sobel=True))
        loaded(path, describe("convnet", channels=1, sobel=True))

    @pytest.mark.parametrize(
        ("theirs", "ours", "words"),
        [
            (
                describe("convnet", channels=1),
                describe("resnet18"),
                "convnet on 1 channel(s) without Sobel filters, but this run has resnet18 on 3 channel(s) without",
            ),
            (
                describe("convnet", sobel=True),
                describe("convnet"),
                "convnet on 2 channel(s) with Sobel filters, but this run has convnet on 3 channel(s) without",
            ),
            (
                describe("convnet", grayscale=True),
                describe("convnet"),
                "convnet on 1 channel(s) without Sobel filters, but this run has convnet on 3 channel(s) without",
            ),
        ],
    )
    def test_another_backbone_is_refused_and_both_are_named(self, checkpoint, theirs, ours, words):
        path, _ = checkpoint(theirs)
        remedy = "set model.arch, model.sobel and model.grayscale alike"
        assert refusal(path, ours) == f"made for {words} Sobel filters; {remedy}"

    @pytest.mark.parametrize(
        ("arch", "tensor"),
        [
            ("feedforward", "body.1.weight: expected (128, 3072), got (128, 2352)"),
            # a pooling less, so that layers have other numbers behind it
            ("convnet", "body.12.weight: expected (256, 128, 3, 3), got (256,)"),
        ],
    )
    def test_images_of_another_size_where_it_matters(self, checkpoint, arch, tensor):
        path, _ = checkpoint(describe(arch, size=28))
        expected = f"made for images of 28 pixels, not of 32: {tensor}; see data.image_size"
        assert refusal(path, describe(arch, size=32)) == expected

    def test_from_before_grayscale_was_recorded(self, checkpoint):
        path, backbone = checkpoint(describe("convnet"))
        description = json.loads((path / "checkpoint.json").read_text())
        assert description["backbone"].pop("grayscale") is False
        description["digest"] = digest_of(description)
        (path / "checkpoint.json").write_text(json.dumps(description))
        assert_same_features(loaded(path, describe("convnet")), backbone, describe("convnet"))
        found = load_checkpoint(path, made_by="train@9", ids=None, epoch=9)
        assert found.description == describe("convnet")

    def test_damaged(self, checkpoint):
        path, _ = checkpoint(describe("convnet"))
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(ArtifactError, match="checksum differs"):
            loaded(path, describe("convnet"))

    def test_a_folder_of_something_else(self, tmp_path):
        expected = "not a checkpoint: there is no checkpoint.json (model.weights in params.yaml)"
        assert refusal(tmp_path) == expected


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class TestUnsuitableFiles:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_planted_command_does_not_run(self, tmp_path, zipped):
        path, trace = tmp_path / "checkpoint.pth.tar", tmp_path / "it ran"
        content = {"arch": "resnet18", "state_dict": {"conv1.weight": torch.ones(1)}, "x": Bomb(f"touch '{trace}'")}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        found = refusal(path)
        assert not trace.exists()
        assert found == (
            "refused, since loading it could run code: it names posix.system. Only if you trust its origin, convert it "
            "with `torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)` and name the new file"
        )
        torch.load(path, weights_only=False)  # the trap is a real one
        assert trace.exists()

    @pytest.mark.parametrize("protocol", range(6))
    def test_nor_in_a_plain_pickle(self, tmp_path, protocol):
        path, trace = tmp_path / "weights.pkl", tmp_path / "it ran"
        path.write_bytes(pickle.dumps(Bomb(f"touch '{trace}'"), protocol))
        refusal(path)
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("extra", "name"),
        [(np.float64(0.5), "numpy._core.multiarray.scalar"), (nn.Linear(1, 1), "torch.nn.modules.linear.Linear")],
    )
    def test_python_objects_beside_the_weights_are_refused_by_name(self, tmp_path, extra, name):
        theirs = {"arch": "resnet18", "state_dict": {"conv1.weight": torch.ones(1)}, "optimizer": {"lr": extra}}
        torch.save(theirs, tmp_path / "checkpoint.pth.tar")
        found = refusal(tmp_path / "checkpoint.pth.tar")
        assert found.startswith(f"refused, since loading it could run code: it names {name}. Only if")

    def test_the_conversion_that_the_message_names_works(self, folder):
        theirs = alexnet_file(channels=2, stem=(3, 1, 1), map_size=3, sobel=True)
        path = save_original(folder / "checkpoint.pth.tar", theirs, "alexnet", best=np.float64(0.5))
        description = describe("alexnet", sobel=True)
        command = refusal(path, description).split("`")[1]
        names = {"torch": torch, "FILE": path, "NEW_FILE": folder / "new.pth"}
        exec(command, names)
        assert_same_features(loaded(folder / "new.pth", description), theirs, description)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "empty (model.weights in params.yaml)"),
            (
                b"model weights, yours truly\n",
                "not a file of weights; expected .safetensors, a file that torch.save wrote, or a checkpoint folder "
                "(model.weights in params.yaml)",
            ),
        ],
    )
    @pytest.mark.parametrize("name", ["weights.pth", "weights"])
    def test_empty_and_text(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name) == message

    def test_missing(self, tmp_path):
        assert refusal(tmp_path / "none.pth") == "not found (model.weights in params.yaml)"

    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_cut_short_anywhere(self, tmp_path, kind):
        path, tensors = (
            tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth"),
            {"a.weight": torch.ones(300)},
        )
        if kind == "safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        for length in [*range(1, 40), *range(40, len(whole), 37), len(whole) - 1]:
            path.write_bytes(whole[:length])
            found = refusal(path, describe("feedforward", size=1))
            assert found.startswith(("damaged", "not a file of weights", "refused, since")), (length, found)

    @pytest.mark.parametrize(
        "content",
        [[torch.ones(1)], {}, {"state_dict": {}}, {"epoch": 3}, {"w": torch.eye(2).to_sparse()}, torch.ones(3)],
        ids=["list", "empty", "empty state dict", "no tensors", "sparse", "one tensor"],
    )
    def test_no_state_dict(self, tmp_path, content):
        torch.save(content, tmp_path / "w.pth")
        assert refusal(tmp_path / "w.pth") == "holds no state dict, alone or under the key 'state_dict'"

    def test_nan(self, tmp_path):
        description = describe("feedforward", size=2)
        state = description.build().state_dict()
        state["body.3.bias"][5] = torch.nan
        torch.save(state, tmp_path / "w.pth")
        assert refusal(tmp_path / "w.pth", description) == "body.3.bias holds NaN or infinity"


class TestInitialise:
    """The stage, with `model.weights`: epoch 0 starts from the file's weights."""

    def started_from(self, outcome, weights, **model: object) -> Backbone:
        changes = {f"model.{key}": value for key, value in ({"weights": str(weights)} | model).items()}
        edit_params(Path("params.yaml"), changes)
        status, out, err = outcome("initialise")
        assert (status, err) == (0, "")
        assert out.splitlines()[-1].endswith(" features")
        return load_checkpoint(layout.checkpoint(0), made_by="initialise", ids=None, epoch=0).backbone.eval()

    @pytest.mark.parametrize("name", ["", "model.safetensors"])
    def test_checkpoint(self, workspace, outcome, name):
        shutil.copytree(layout.checkpoint(2), "copied")
        backbone = self.started_from(outcome, Path("copied", name))
        weights = [(layout.checkpoint(epoch) / "model.safetensors").read_bytes() for epoch in (0, 2)]
        assert weights[0] == weights[1]
        assert backbone.feature_dim == 256
        used = json.loads((layout.checkpoint(0) / "checkpoint.json").read_text())["params"]
        source = Path("copied", name or "checkpoint.json").read_bytes()
        assert used["weights_sha256"] == hashlib.sha256(source).hexdigest()

    def test_a_checkpoint_that_the_run_itself_writes_is_refused(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"model.weights": str(layout.checkpoint(2))})
        before = workspace.digests()
        message = "model.weights: data/epochs/2/checkpoint lies in data/epochs, where this run writes; copy it away"
        assert outcome("initialise") == (2, "", f"error: {message}\n")
        assert workspace.digests() == before

    def test_torchvision(self, workspace, outcome):
        description = describe("resnet18", channels=1, size=8)
        theirs = description.build().eval()
        draw_statistics(theirs)
        torch.save({name[5:]: value for name, value in theirs.state_dict().items()}, "resnet18.pth")
        assert_same_features(self.started_from(outcome, "resnet18.pth", arch="resnet18"), theirs, description)

    @pytest.mark.slow
    def test_original(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"data.image_size": 224, "data.grayscale": False})
        status, _, err = outcome("prepare")
        assert status == 0, err
        theirs = alexnet_file(channels=2, stem=(11, 4, 2), map_size=6, sobel=True)
        path = save_original(Path("checkpoint.pth.tar"), theirs, "alexnet")
        backbone = self.started_from(outcome, path, arch="alexnet", sobel=True)
        assert_same_features(backbone, theirs, describe("alexnet", size=224, sobel=True))

    def test_grayscale_reaches_the_backbone(self, workspace, outcome):
        edit_params(Path("params.yaml"), {"data.grayscale": False})
        status, _, err = outcome("prepare")
        assert status == 0, err
        shutil.copytree(layout.checkpoint(2), "copied")
        backbone = self.started_from(outcome, "copied", grayscale=True)
        assert backbone.body[0].in_channels == 1
        assert backbone.front_end(torch.ones(1, 3, 8, 8)).shape == (1, 1, 8, 8)

    def test_a_refused_file_changes_nothing(self, workspace, outcome):
        torch.save({"x": Bomb("touch 'it ran'")}, "bomb.pth")
        edit_params(Path("params.yaml"), {"model.weights": "bomb.pth"})
        before = workspace.digests()
        status, out, err = outcome("initialise")
        assert (status, out) == (2, "")
        assert err.startswith("error: bomb.pth: refused, since loading it could run code: it names posix.system. ")
        assert err.count("\n") == 1
        assert not Path("it ran").exists()
        assert workspace.digests() == before


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.full((10,), 2.0).to(torch.float8_e4m3fn), None),
        (torch.complex(torch.zeros(10), torch.full((10,), -2.0)).conj().imag, None),
        (torch.full((10,), 2.0, dtype=torch.float64), None),
        (torch.ones(10, dtype=torch.complex64), "body.bias. holds complex numbers"),
        (torch.full((10,), 1e300, dtype=torch.float64), "body.bias. holds NaN or infinity"),
        (torch.full((10,), float("nan")).to(torch.float8_e4m3fn), "body.bias. holds NaN or infinity"),
    ],
)
def test_numbers_of_any_kind_are_taken_or_named(tmp_path, tensor, expected):
    from types import SimpleNamespace

    torch.save({"state_dict": {"bias": tensor}}, tmp_path / "x.pth")
    stand_in = SimpleNamespace(state_dict=lambda: {"body.bias.": torch.zeros(10)})
    if expected is None:
        (array,) = read_foreign_weights(tmp_path / "x.pth", describe(), stand_in).values()
        assert array.tolist() == [2.0] * 10
        return
    with pytest.raises(ArtifactError) as caught:
        read_foreign_weights(tmp_path / "x.pth", describe(), stand_in)
    assert str(caught.value) == f"{tmp_path / 'x.pth'}: {expected}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_tensor_of_a_name_of_its_own_is_read_whatever_its_numbers_so_that_its_name_is_said(tmp_path, dtype):
    from types import SimpleNamespace

    torch.save({"state_dict": {"bias": torch.zeros(10), "more": torch.ones(3, dtype=dtype)}}, tmp_path / "x.pth")
    stand_in = SimpleNamespace(state_dict=lambda: {"body.bias.": torch.zeros(10)})
    found = read_foreign_weights(tmp_path / "x.pth", describe(), stand_in)
    assert {name: array.tolist() for name, array in found.items()}["body.more."] == [1.0] * 3
