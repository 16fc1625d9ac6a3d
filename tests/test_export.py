"""`deepcluster export`: each format read back by the program that it is for."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from deepcluster import artifacts, layout
from deepcluster.checkpoint import BackboneDescription, load_weights, save_checkpoint
from deepcluster.errors import UserError
from deepcluster.export import export
from deepcluster.features import extract_features
from deepcluster.interop import read_foreign_weights
from deepcluster.models.build import Backbone

MEAN, STD = [0.2, 0.4, 0.6], [0.3, 0.25, 0.5]
LAST = Path("backbone.out")


def describe(arch: str, size: int, *, channels: int = 3, sobel: bool = False, grayscale: bool = False):
    return BackboneDescription(arch, channels, size, sobel, grayscale)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes a project with images and the checkpoint of an epoch as current folder; the backbone in it."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").touch()

    def make(description: BackboneDescription, *, epoch: int = 0) -> Backbone:
        torch.manual_seed(0)
        shape = (4, description.channels, description.image_size, description.image_size)
        images_NCHW = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        facts = {"mean": MEAN[: description.channels], "std": STD[: description.channels]}
        with artifacts.write_store(layout.IMAGES, "images", artifacts.Provenance(4, "f" * 64), **facts) as store:
            store.array("images", images_NCHW, ("sample", "channel", "height", "width"))
        backbone = description.build()
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):  # as after training
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
        save_checkpoint(layout.checkpoint(epoch), description, backbone, artifacts.Provenance(4, "f" * 64, epoch, 1))
        return backbone.eval()

    return make


def features_of(backbone: Backbone, images_NCHW: np.ndarray) -> np.ndarray:
    """As the pipeline computes them from uint8 images."""
    channels = images_NCHW.shape[1]
    device = torch.device("cpu")
    blocks = extract_features(
        backbone, images_NCHW, batch_size=2, mean=MEAN[:channels], std=STD[:channels], device=device
    )
    return np.concatenate(list(blocks))


class TestTorchvision:
    @pytest.mark.parametrize(
        ("description", "missing"),
        [
            (describe("resnet18", 96), "fc"),
            (describe("resnet18", 96, channels=1), "fc"),
            (describe("resnet34", 32, sobel=True), "fc"),
            pytest.param(describe("resnet50", 65, grayscale=True), "fc", marks=pytest.mark.slow),
            pytest.param(describe("vgg16", 32, channels=1), "classifier.6", marks=pytest.mark.slow),
            pytest.param(describe("vgg16", 96, sobel=True), "classifier.6", marks=pytest.mark.slow),
        ],
    )
    def test_the_printed_lines_load_it_into_torchvisions_model(self, run, description, missing):
        backbone = run(description)
        lines = export(0, "torchvision", LAST)
        assert lines[0] == f"{LAST}: {description.arch} of epoch 0, {backbone.feature_dim} features"
        code = [line for line in lines[1:] if not line.startswith("#")]
        code[-1] = f"keys = {code[-1]}"
        names: dict = {}
        exec("\n".join(code), names)
        assert names["keys"].missing_keys == [f"{missing}.weight", f"{missing}.bias"]
        assert names["keys"].unexpected_keys == []
        theirs = names["model"].eval()
        if missing == "fc":
            theirs.fc = nn.Identity()
        else:
            theirs.classifier = theirs.classifier[:4]
        entering = torch.randn(2, description.body_channels, description.image_size, description.image_size)
        with torch.no_grad():
            assert torch.equal(theirs(entering), backbone.body(entering))

    def test_names_are_torchvisions_where_nothing_needs_to_change(self, run):
        from torchvision.models import resnet18

        run(describe("resnet18", 96))
        assert export(0, "torchvision", LAST)[1:] == [
            "import torch, torchvision",
            "model = torchvision.models.resnet18()",
            "model.load_state_dict(torch.load('backbone.out'), strict=False)  # all but fc",
            "# images in [0, 1] are normalised by mean [0.2000, 0.4000, 0.6000] and std [0.3000, 0.2500, 0.5000]",
        ]
        names = resnet18().state_dict().keys()
        assert list(torch.load(LAST, weights_only=True)) == [name for name in names if not name.startswith("fc.")]

    def test_filters_in_front_are_named(self, run):
        run(describe("resnet18", 32, sobel=True))
        filters = "channels=3, sobel=True, grayscale=False"
        expected = f"# then filtered by deepcluster.models.frontend.build_front_end({filters})[0]"
        assert export(0, "torchvision", LAST)[-1] == expected

    @pytest.mark.parametrize(
        ("arch", "size", "words"),
        [
            ("convnet", 8, "convnet"),
            ("feedforward", 8, "feedforward"),
            ("alexnet", 20, "alexnet of this kind (torchvision's is without batch norm)"),
        ],
    )
    def test_architectures_that_torchvision_does_not_have(self, run, arch, size, words):
        run(describe(arch, size))
        with pytest.raises(UserError) as error:
            export(0, "torchvision", LAST)
        assert str(error.value) == f"--format torchvision: torchvision has no {words}; use safetensors or onnx"
        assert not LAST.exists()

    def test_model_weights_takes_it(self, run):
        description = describe("resnet18", 32)
        backbone = run(description)
        export(0, "torchvision", LAST)
        found = read_foreign_weights(LAST, description, description.build())
        assert all(np.array_equal(found[name], value) for name, value in backbone.state_dict().items())


class TestSafetensors:
    def test_header_and_weights(self, run):
        backbone = run(describe("convnet", 8, sobel=True), epoch=3)
        export(3, "safetensors", LAST)
        with safe_open(LAST, framework="np") as file:
            header = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert header.pop("format") == "pt"
        assert header.pop("arch") == "convnet"
        assert {name: json.loads(text) for name, text in header.items()} == {
            "channels": 3,
            "image_size": 8,
            "sobel": True,
            "grayscale": False,
            "mean": MEAN,
            "std": STD,
            "epoch": 3,
        }
        assert weights.keys() == backbone.state_dict().keys()
        assert all(np.array_equal(weights[name], value) for name, value in backbone.state_dict().items())

    @pytest.mark.parametrize("name", ["backbone.safetensors", "backbone"])
    def test_model_weights_takes_it(self, run, name):
        description = describe("convnet", 8, grayscale=True)
        backbone = run(description)
        export(0, "safetensors", Path(name))
        fresh = description.build()
        load_weights(fresh, read_foreign_weights(Path(name), description, fresh), Path(name))
        assert all(torch.equal(fresh.state_dict()[key], value) for key, value in backbone.state_dict().items())

    def test_model_weights_reads_the_header(self, run):
        run(describe("convnet", 8, sobel=True))
        export(0, "safetensors", LAST)
        ours = describe("convnet", 8)
        with pytest.raises(UserError) as error:
            read_foreign_weights(LAST, ours, ours.build())
        assert str(error.value).startswith(f"{LAST}: made for convnet on 2 channel(s) with Sobel filters, but this run")


class TestOnnx:
    @pytest.mark.parametrize(
        "description",
        [
            describe("convnet", 8, channels=1),
            describe("feedforward", 8),
            describe("convnet", 28, grayscale=True),
            describe("alexnet", 20, channels=1, sobel=True),
            describe("resnet18", 32),
            # slow: seconds each for the same layers as above
            pytest.param(describe("resnet18", 65), marks=pytest.mark.slow),
            pytest.param(describe("alexnet", 32, sobel=True), marks=pytest.mark.slow),
            pytest.param(describe("vgg16", 32, channels=1), marks=pytest.mark.slow),
            pytest.param(describe("vgg16", 96), marks=pytest.mark.slow),
            pytest.param(describe("alexnet", 240, sobel=True), marks=pytest.mark.slow),
        ],
        ids=lambda description: "-".join(map(str, vars(description).values())),
    )
    def test_onnxruntime_computes_the_features_of_the_pipeline(self, run, description):
        import onnxruntime

        backbone = run(description)
        side = description.image_size
        lines = export(0, "onnx", LAST)
        sizes = f"[N, {description.channels}, {side}, {side}]"
        assert lines[1:] == [f"images: float32 {sizes} in [0, 1]; features: float32 [N, D]"]
        session = onnxruntime.InferenceSession(LAST, providers=["CPUExecutionProvider"])
        (entering,), (leaving,) = session.get_inputs(), session.get_outputs()
        assert (entering.name, entering.type, entering.shape[1:]) == (
            "images",
            "tensor(float)",
            [description.channels, side, side],
        )
        assert (leaving.name, leaving.type, leaving.shape[1]) == ("features", "tensor(float)", backbone.feature_dim)
        shape = (5, description.channels, side, side)
        images_NCHW = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
        expected_ND = features_of(backbone, images_NCHW)
        assert expected_ND.std(axis=0).max() > 1e-3, "the images must matter"
        for count in (1, 2, 5):
            floats = images_NCHW[:count].astype(np.float32) / 255
            (found_ND,) = session.run(["features"], {"images": floats})
            np.testing.assert_allclose(found_ND, expected_ND[:count], atol=1e-4, rtol=1e-4)

    def test_one_file_that_says_what_it_is(self, run):
        import onnx

        run(describe("convnet", 8, sobel=True), epoch=2)
        before = set(Path().rglob("*"))
        export(2, "onnx", LAST)
        assert set(Path().rglob("*")) - before == {LAST}
        model = onnx.load(LAST)
        onnx.checker.check_model(model)
        facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        assert facts["arch"] == "convnet"
        assert (facts["epoch"], facts["sobel"], facts["mean"]) == (2, True, MEAN)

    @pytest.mark.parametrize("missing", [["onnx"], ["onnxscript"], ["onnx", "onnxscript"]])
    def test_without_its_packages(self, run, monkeypatch, missing):
        run(describe("convnet", 8))
        for name in missing:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError) as error:
            export(0, "onnx", LAST)
        needed = " and ".join(missing)
        assert str(error.value) == f"--format onnx: needs {needed}: pip install 'deepcluster[onnx]'"
        assert not LAST.exists()


@pytest.mark.parametrize("format", ["torchvision", "safetensors"])
def test_the_same_backbone_gives_the_same_bytes(run, format):
    run(describe("resnet18", 8))
    export(0, format, LAST)
    export(0, format, Path("again.out"))
    assert LAST.read_bytes() == Path("again.out").read_bytes()


class TestCommand:
    """`deepcluster export` on a run of two epochs."""

    def refused(self, outcome, *arguments: str) -> str:
        status, out, err = outcome("export", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").rstrip("\n")

    @pytest.mark.parametrize("epoch", ["0", "2"])
    def test_writes_and_says_what(self, workspace, outcome, epoch):
        before = workspace.digests()
        status, out, err = outcome("export", "--epoch", epoch, "--format", "safetensors", "--out", "b.safetensors")
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            f"b.safetensors: convnet of epoch {epoch}, 256 features",
            "arch, channels, image size, filters, mean and std are in the header; model.weights takes the file",
        ]
        weights = artifacts.read_weight_file(Path("b.safetensors")).content
        checkpoint = artifacts.read_checkpoint(layout.checkpoint(int(epoch)), made_by="")
        assert all(np.array_equal(weights[name], value) for name, value in checkpoint.weights.items())
        assert workspace.digests() == before
        assert list(Path().rglob("*.partial")) == []

    def test_onnx(self, workspace, outcome):
        status, out, err = outcome("export", "-e", "1", "--format", "onnx", "--out", "b.onnx")
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            "b.onnx: convnet of epoch 1, 256 features",
            "images: float32 [N, 1, 8, 8] in [0, 1]; features: float32 [N, D]",
        ]

    @pytest.mark.parametrize("epoch", ["3", "-1"])
    def test_an_epoch_that_was_not_run(self, workspace, outcome, epoch):
        found = self.refused(outcome, "--epoch", epoch, "--format", "safetensors", "--out", "b")
        assert found == f"--epoch: must be one that was run (0 to 2; 0 is the untrained backbone); got {epoch}"

    def test_epochs_with_a_gap_are_listed(self, workspace, outcome):
        artifacts.remove(layout.checkpoint(1))
        found = self.refused(outcome, "--epoch", "1", "--format", "safetensors", "--out", "b")
        assert found == "--epoch: must be one that was run (0, 2; 0 is the untrained backbone); got 1"

    def test_no_epoch_at_all(self, workspace, outcome):
        artifacts.remove(layout.epoch_folder(0).parent)
        found = self.refused(outcome, "--epoch", "1", "--format", "safetensors", "--out", "b")
        assert found == "no epoch has checkpoint yet; `deepcluster run` makes them"

    def test_an_existing_file_is_kept_unless_forced(self, workspace, outcome):
        Path("b").write_text("mine")
        arguments = ("--epoch", "1", "--format", "safetensors", "--out", "b")
        assert self.refused(outcome, *arguments) == "--out: b exists; --force overwrites it"
        assert Path("b").read_text() == "mine"
        assert outcome("export", *arguments, "--force")[0] == 0
        assert artifacts.read_weight_file(Path("b")).metadata["epoch"] == 1

    @pytest.mark.parametrize(
        ("out", "message"),
        [("data", "data is a folder; name a file"), ("nowhere/b.onnx", "nowhere: no such folder")],
    )
    def test_no_place_for_a_file(self, workspace, outcome, out, message):
        found = self.refused(outcome, "--epoch", "1", "--format", "onnx", "--out", out)
        assert found == f"--out: {message}"
        assert not Path("nowhere").exists()

    def test_a_damaged_checkpoint(self, workspace, outcome):
        path = layout.checkpoint(1) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
        found = self.refused(outcome, "--epoch", "1", "--format", "safetensors", "--out", "b")
        assert found.startswith(f"{path}: damaged (checksum differs)")

    def test_an_unknown_format_lists_the_three(self, workspace, outcome):
        status, _, err = outcome("export", "--epoch", "1", "--format", "keras", "--out", "b")
        assert status == 2
        assert "'torchvision', 'onnx', 'safetensors'" in " ".join(err.split())

    def test_help_imports_no_torch(self, workspace):
        program = "import sys; import deepcluster.cli; sys.exit('torch' in sys.modules)"
        workspace.run("python", "-c", program)
