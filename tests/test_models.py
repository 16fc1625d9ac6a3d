"""Backbones, heads and the fixed front end."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from deepcluster.errors import UserError
from deepcluster.models.alexnet import build_alexnet
from deepcluster.models.build import Backbone, build_backbone, build_head
from deepcluster.models.frontend import Grayscale, Sobel
from deepcluster.params import Arch

ARCHS = get_args(Arch)
LARGE = ("alexnet", "vgg16", "resnet34", "resnet50")
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SIZES = (28, 32, 64, 96, 224)
FEATURE_DIMS = {"convnet": 256, "feedforward": 64, "alexnet": 4096, "vgg16": 4096, "resnet18": 512, "resnet34": 512}
FEATURE_DIMS |= dict.fromkeys(("resnet50", "resnet101", "resnet152"), 2048)

# Parameters of a backbone for 3 channels, at each of SIZES (None: the size does not apply).
#
# convnet: 9 x (3 x 32 + 32 x 64 + 64 x 128 + 128 x 256) weights without bias, and 2 x 480 of batch norm.
#
# feedforward: (3 S^2 + 1) x 128 + 129 x 128 + 129 x 64 + 65 x 64.
#
# alexnet: convolutions with bias (3 x 11 x 11 + 1) x 96 = 34,944 (3 x 3 below 64 pixels: 2,688), 614,656, 885,120,
# 1,327,488 and 884,992; batch norm 2 x (96 + 256 + 384 + 384 + 256) = 2,752; linear (256 m^2 + 1) x 4096 with a last
# map of m = 2, 3, 2, 4 and 6 pixels, and 4097 x 4096 = 16,781,312.
#
# vgg16: torchvision's vgg16_bn has 138,365,992, its last layer (4096 + 1) x 1000; up to 64 pixels the first linear
# layer has 512 m^2 inputs instead of 512 x 7^2, m = 1, 2, 4.
#
# resnets: torchvision's have 11,689,512, 21,797,672, 25,557,032, 44,549,160 and 60,192,808, their `fc` (D + 1) x 1000;
# up to 64 pixels the stem has 3 x 64 x 9 weights instead of 3 x 64 x 49.
PARAMETERS = {
    "convnet": (388_896, 388_896, 388_896, None, None),
    "feedforward": (330_112, 422_272, 1_601_920, 3_568_000, 19_296_640),
    "alexnet": (24_697_408, 29_940_288, 24_729_664, 37_312_576, 58_284_096),
    "vgg16": (33_605_696, 39_897_152, 65_062_976, 134_268_992, 134_268_992),
    "resnet18": (11_168_832, 11_168_832, 11_168_832, 11_176_512, 11_176_512),
    "resnet34": (21_276_992, 21_276_992, 21_276_992, 21_284_672, 21_284_672),
    "resnet50": (23_500_352, 23_500_352, 23_500_352, 23_508_032, 23_508_032),
    "resnet101": (42_492_480, 42_492_480, 42_492_480, 42_500_160, 42_500_160),
    "resnet152": (58_136_128, 58_136_128, 58_136_128, 58_143_808, 58_143_808),
}
TAKES_SECONDS = [("vgg16", 32), ("vgg16", 64), ("vgg16", 96), ("resnet50", 64), ("resnet50", 96), ("alexnet", 96)]
APPLICABLE = [(arch, size) for arch in ARCHS for size, count in zip(SIZES, PARAMETERS[arch], strict=True) if count]


def backbone(arch, *, channels=1, image_size=8, sobel=False, grayscale=False) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(arch, channels=channels, image_size=image_size, sobel=sobel, grayscale=grayscale).eval()


def shapes(arch, **settings) -> Backbone:
    """A backbone without values, which costs no time."""
    with torch.device("meta"):
        return backbone(arch, **settings)


def slow_if(condition: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if condition else []


@pytest.mark.parametrize(("arch", "size"), APPLICABLE)
def test_number_of_parameters(arch, size):
    model = shapes(arch, channels=3, image_size=size)
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[arch][SIZES.index(size)]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_leave_out_weights_of_the_first_layer_alone(arch, channels):
    few, rgb = (shapes(arch, channels=count, image_size=32).state_dict() for count in (channels, 3))
    assert few.keys() == rgb.keys()
    differing = [name for name in rgb if few[name].shape != rgb[name].shape]
    assert differing == [next(iter(rgb))]
    assert few[differing[0]].numel() * 3 == rgb[differing[0]].numel() * channels


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        pytest.param(
            arch,
            size,
            marks=slow_if(arch in ("resnet101", "resnet152") or size == 224 or (arch, size) in TAKES_SECONDS),
        )
        for arch, size in APPLICABLE
    ],
)
def test_forward_and_backward(arch, size):
    model = backbone(arch, channels=3, image_size=size).train()
    head = build_head(model.feature_dim, 5)
    features_ND = model(torch.randn(3, 3, size, size))
    assert features_ND.shape == (3, FEATURE_DIMS[arch])
    assert model.feature_dim == FEATURE_DIMS[arch]
    assert features_ND.isfinite().all()
    logits_NK = head(model.head_activation(features_ND))
    # features are read once more after the head, as a contrastive loss reads them
    (nn.functional.cross_entropy(logits_NK, torch.tensor([0, 1, 2])) + features_ND.square().mean()).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert next(iter(gradients.values())).abs().max() > 0


@pytest.mark.parametrize(
    ("arch", "size"),
    [("convnet", size) for size in (8, 28, 32, 64)]
    + [("feedforward", size) for size in (1, 8, 65)]
    + [pytest.param("vgg16", size, marks=slow_if(size > 32)) for size in (16, 17, 31, 32, 64, 65)]
    + [("resnet18", size) for size in (8, 32, 65)]
    + [pytest.param("alexnet", size, marks=slow_if(size > 32)) for size in (20, 28, 32, 63, 64, 127, 128)],
)
def test_every_supported_size_gives_one_finite_feature_row_an_image(arch, size):
    model = backbone(arch, channels=3, image_size=size)
    features_ND = model(torch.randn(2, 3, size, size))
    assert features_ND.shape == (2, model.feature_dim)
    assert features_ND.isfinite().all()
    assert features_ND[0].sub(features_ND[1]).abs().max() > 1e-6


FILTERS = [(1, True, False, 2), (3, True, False, 2), (3, True, True, 2), (1, False, True, 1), (3, False, True, 1)]


@pytest.mark.parametrize(
    ("arch", "channels", "sobel", "grayscale", "entering"),
    [
        # slow: each large network behind all filters, which are the same for every network
        pytest.param(arch, *filters, marks=slow_if(arch in RESNETS[3:] or (arch in LARGE and filters != FILTERS[2])))
        for arch in ARCHS
        for filters in FILTERS
    ],
)
def test_filters_in_front_of_every_backbone_are_fixed(arch, channels, sobel, grayscale, entering):
    model = backbone(arch, channels=channels, image_size=32, sobel=sobel, grayscale=grayscale)
    images_NCHW = torch.randn(2, channels, 32, 32)
    filters = {name: buffer.clone() for name, buffer in model.front_end.named_buffers()}
    filtered = model.front_end(images_NCHW)
    assert filtered.shape == (2, entering, 32, 32)
    assert torch.equal(model(images_NCHW), model.body(filtered))
    assert [name for name, _ in model.named_parameters() if not name.startswith("body.")] == []
    assert [name for name in model.state_dict() if not name.startswith("body.")] == []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    model.train()(images_NCHW).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(buffer, filters[name]) for name, buffer in model.front_end.named_buffers())
    assert len(filters) == (sobel + (channels == 3))


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=slow_if(arch in RESNETS[3:])) for arch in ARCHS])
@pytest.mark.parametrize("training", [False, True])
def test_features_survive_the_head(arch, training):
    model = backbone(arch, channels=3, image_size=32).train(training)
    features_ND = model(torch.randn(4, 3, 32, 32))
    kept = features_ND.clone()
    activated = model.head_activation(features_ND)
    assert torch.equal(features_ND, kept), "the activation must not change the features in place"
    if arch in ("feedforward", "alexnet", "vgg16"):
        assert (features_ND < 0).any(), "features are taken before the ReLU"
        assert torch.equal(activated, kept.clamp(min=0))
    else:
        assert torch.equal(activated, kept)


def test_convnet_features_are_the_maxima_of_the_last_map():
    model = backbone("convnet", image_size=28)
    images_NCHW = torch.randn(3, 1, 28, 28)
    seen = []
    last_relu = [layer for layer in model.body if isinstance(layer, nn.ReLU)][-1]
    last_relu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features_ND = model(images_NCHW)
    assert seen[0].shape == (3, 256, 7, 7)
    assert torch.equal(features_ND, seen[0].flatten(2).max(dim=2).values)


def test_alexnet_at_224_pixels_is_the_papers():
    with torch.device("meta"):
        body = build_alexnet(channels=2, image_size=224)
    widths = [layer.out_channels for layer in body.modules() if isinstance(layer, nn.Conv2d)]
    linear = [(layer.in_features, layer.out_features) for layer in body.modules() if isinstance(layer, nn.Linear)]
    assert widths == [96, 256, 384, 384, 256]
    assert linear == [(256 * 6 * 6, 4096), (4096, 4096)]
    assert body(torch.empty(1, 2, 224, 224, device="meta")).shape == (1, 4096)


@pytest.mark.parametrize("size", [20, 32, 63, 64, 127, 128, 300])
def test_alexnet_pools_only_maps_larger_than_six(size):
    with torch.device("meta"):
        body = build_alexnet(channels=1, image_size=size)
        last_map = body[0](torch.empty(1, 1, size, size))
    assert body[1].output_size == min(last_map.shape[-1], 6)


@pytest.mark.parametrize(
    ("arch", "name", "classifier"),
    [
        pytest.param("vgg16", "vgg16_bn", ["classifier.6.weight", "classifier.6.bias"], marks=pytest.mark.slow),
        *(pytest.param(arch, arch, ["fc.weight", "fc.bias"], marks=slow_if(arch in RESNETS[3:])) for arch in RESNETS),
    ],
)
def test_state_dict_loads_into_torchvisions_model_above_64_pixels(arch, name, classifier):
    from torchvision import models

    model = backbone(arch, channels=3, image_size=96)
    theirs = getattr(models, name)(weights=None)
    keys = theirs.load_state_dict(model.body.state_dict(), strict=False)
    assert keys.missing_keys == classifier
    assert keys.unexpected_keys == []
    if arch == "vgg16":
        theirs.classifier = theirs.classifier[:4]
    else:
        theirs.fc = nn.Identity()
    images_NCHW = torch.randn(2, 3, 96, 96)
    assert torch.equal(theirs.eval()(images_NCHW), model(images_NCHW))


@pytest.mark.parametrize(("arch", "name"), [("vgg16", "vgg16_bn"), *zip(RESNETS, RESNETS, strict=True)])
def test_names_at_64_pixels_are_torchvisions_and_one_shape_differs(arch, name):
    from torchvision import models

    ours = shapes(arch, channels=3, image_size=64).body.state_dict()
    with torch.device("meta"):
        theirs = getattr(models, name)(weights=None).state_dict()
    assert [key for key in ours if key not in theirs] == []
    differing = {key: (tuple(ours[key].shape), tuple(theirs[key].shape)) for key in ours}
    assert {key: pair for key, pair in differing.items() if pair[0] != pair[1]} == (
        {"classifier.0.weight": ((4096, 512 * 4 * 4), (4096, 512 * 7 * 7))}
        if arch == "vgg16"
        else {"conv1.weight": ((64, 3, 3, 3), (64, 3, 7, 7))}
    )


@pytest.mark.parametrize("arch", RESNETS)
def test_resnets_keep_the_resolution_of_small_images(arch):
    seen = []
    model = shapes(arch, channels=3, image_size=32)
    model.body.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert seen == [32]


@pytest.mark.parametrize(
    ("size", "last_map"), [(16, 1), (28, 1), (31, 1), (32, 2), (64, 4), (65, 2), (96, 3), (224, 7)]
)
def test_vgg16_pools_once_less_up_to_64_pixels(size, last_map):
    model = shapes("vgg16", channels=3, image_size=size)
    assert model.body.features(torch.empty(1, 3, size, size, device="meta")).shape == (1, 512, last_map, last_map)
    assert model.body.classifier[0].in_features == 512 * (last_map**2 if size <= 64 else 49)


def test_vgg16_weights_are_drawn_as_torchvision_draws_them():
    model = backbone("vgg16", channels=2, image_size=32).requires_grad_(False)
    for layer in model.body.modules():
        if isinstance(layer, nn.Conv2d):
            assert float(layer.weight.std()) == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.05)
        if isinstance(layer, nn.Linear):
            assert float(layer.weight.std()) == pytest.approx(0.01, rel=0.01)
        if isinstance(layer, nn.BatchNorm2d):
            assert all(torch.equal(ones, torch.ones_like(ones)) for ones in (layer.weight, layer.running_var))
            assert not layer.running_mean.any()
        if hasattr(layer, "bias") and layer.bias is not None:
            assert not layer.bias.any()


def test_feedforward_by_hand():
    model = backbone("feedforward", channels=2, image_size=3)
    weights = {name: tensor.double().numpy() for name, tensor in model.body.state_dict().items()}
    images_NCHW = torch.randn(5, 2, 3, 3)
    hidden = images_NCHW.double().numpy().reshape(5, 18)
    for index in (1, 3, 5, 7):
        hidden = np.maximum(hidden, 0) if index > 1 else hidden
        hidden = hidden @ weights[f"{index}.weight"].T + weights[f"{index}.bias"]
    assert [weights[f"{index}.bias"].size for index in (1, 3, 5, 7)] == [128, 128, 64, 64]
    np.testing.assert_allclose(model(images_NCHW).detach().numpy(), hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        (
            "convnet",
            7,
            "convnet takes images of 8 to 64 pixels; got 7: resize the images or choose another model.arch",
        ),
        (
            "convnet",
            65,
            "convnet takes images of 8 to 64 pixels; got 65: resize the images or choose another model.arch",
        ),
        ("alexnet", 19, "alexnet takes images of 20 pixels and more; got 19: resize the images or choose convnet"),
        ("vgg16", 15, "vgg16 takes images of 16 pixels and more; got 15: resize the images or choose convnet"),
        ("resnet18", 7, "resnet18 takes images of 8 pixels and more; got 7: resize the images"),
        ("resnet152", 7, "resnet152 takes images of 8 pixels and more; got 7: resize the images"),
    ],
)
def test_unsuitable_sizes_say_what_to_do(arch, size, message):
    with pytest.raises(UserError) as error:
        backbone(arch, image_size=size)
    assert str(error.value) == message


def test_sobel_of_two_channels_says_what_to_do():
    with pytest.raises(UserError) as error:
        backbone("convnet", channels=2, sobel=True)
    assert str(error.value) == "sobel and grayscale need images with 1 or 3 channels; got 2: switch both off"


def test_grayscale_is_luma():
    images_NCHW = torch.zeros(1, 3, 1, 3)
    images_NCHW[0, [0, 1, 2], 0, [0, 1, 2]] = 1
    torch.testing.assert_close(Grayscale()(images_NCHW).flatten(), torch.tensor([0.299, 0.587, 0.114]))


@pytest.mark.parametrize(
    ("channels", "grayscale", "weights"),
    [(1, False, [1.0]), (1, True, [1.0]), (3, False, [1 / 3, 1 / 3, 1 / 3]), (3, True, [0.299, 0.587, 0.114])],
)
def test_sobel_agrees_with_scipy_on_grey_and_colour(channels, grayscale, weights):
    front_end = backbone("convnet", channels=channels, sobel=True, grayscale=grayscale).front_end
    images_NCHW = torch.randn(2, channels, 9, 8, dtype=torch.float64)
    found = front_end.double()(images_NCHW).numpy()
    for image_CHW, edges_2HW in zip(images_NCHW.numpy(), found, strict=True):
        grey_HW = np.tensordot(weights, image_CHW, axes=1)
        # scipy's point the other way: right minus left, below minus above
        for axis, edges_HW in ((1, edges_2HW[0]), (0, edges_2HW[1])):
            np.testing.assert_allclose(edges_HW, -ndimage.sobel(grey_HW, axis=axis, mode="constant"), atol=1e-5)


def test_sobel_by_hand():
    # rows 0 1 3 / 0 2 6 / 0 3 9; at the centre x: (0-3) + 2(0-6) + (0-9) = -24, y: (0+2+3) - (0+6+9) = -10
    image = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 6.0], [0.0, 3.0, 9.0]])
    edges = Sobel()(image.view(1, 1, 3, 3))[0]
    assert edges[:, 1, 1].tolist() == [-24.0, -10.0]
    # the upper left corner, zeros beyond the border: x: -2*1 - 2, y: -2*0 - 2
    assert edges[:, 0, 0].tolist() == [-4.0, -2.0]


def test_the_front_end_has_no_parameters_and_adds_nothing_to_a_checkpoint():
    model = backbone("convnet", channels=3, sobel=True)
    assert list(model.front_end.parameters()) == []
    assert not [name for name in model.state_dict() if name.startswith("front_end")]
    assert model.body[0].in_channels == 2


def test_initial_weights_depend_on_the_global_seed_alone():
    first, second = backbone("convnet").state_dict(), backbone("convnet").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_head_weights_are_small_and_bias_is_zero():
    torch.manual_seed(0)
    head = build_head(256, 1000)
    assert head.weight.shape == (1000, 256)
    assert float(head.weight.detach().mean()) == pytest.approx(0, abs=1e-4)
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
    assert not head.bias.any()


def test_torchvision_is_not_imported_for_other_backbones():
    program = (
        "import sys; from deepcluster.models.build import build_backbone as b; "
        "b('convnet', channels=1, image_size=8, sobel=False, grayscale=False); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
