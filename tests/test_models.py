"""Backbones, heads and the fixed front end."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from deepcluster.errors import UserError
from deepcluster.models.alexnet import build_alexnet
from deepcluster.models.build import Backbone, build_backbone, build_head
from deepcluster.models.frontend import Grayscale, Sobel


def backbone(arch, *, channels=1, image_size=8, sobel=False, grayscale=False) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(arch, channels=channels, image_size=image_size, sobel=sobel, grayscale=grayscale).eval()


@pytest.mark.parametrize(
    ("arch", "size"),
    [("convnet", size) for size in (8, 28, 32, 64)]
    + [("resnet18", size) for size in (8, 32, 65)]
    + [("alexnet", size) for size in (20, 28, 32, 63, 64, 127, 128)],
)
def test_every_supported_size_gives_one_finite_feature_row_an_image(arch, size):
    model = backbone(arch, channels=3, image_size=size)
    features_ND = model(torch.randn(2, 3, size, size))
    assert features_ND.shape == (2, model.feature_dim)
    assert features_ND.isfinite().all()
    assert features_ND[0].sub(features_ND[1]).abs().max() > 1e-6


@pytest.mark.parametrize("arch", ["convnet", "alexnet", "resnet18"])
@pytest.mark.parametrize(("channels", "sobel", "grayscale"), [(1, False, False), (1, True, True), (3, True, False)])
def test_channels_and_front_end(arch, channels, sobel, grayscale):
    model = backbone(arch, channels=channels, image_size=32, sobel=sobel, grayscale=grayscale)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, model.feature_dim)


def test_convnet_features_are_the_maxima_of_the_last_map():
    model = backbone("convnet", image_size=28)
    images_NCHW = torch.randn(3, 1, 28, 28)
    seen = []
    last_relu = [layer for layer in model.body if isinstance(layer, nn.ReLU)][-1]
    last_relu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features_ND = model(images_NCHW)
    assert seen[0].shape == (3, 256, 7, 7)
    assert torch.equal(features_ND, seen[0].flatten(2).max(dim=2).values)


def test_alexnet_features_precede_the_relu_and_the_head_follows_it():
    model = backbone("alexnet", image_size=32)
    features_ND = model(torch.randn(4, 1, 32, 32))
    kept = features_ND.clone()
    activated = model.head_activation(features_ND)
    assert (features_ND < 0).any()
    assert torch.equal(features_ND, kept), "the activation must not change the features in place"
    assert torch.equal(activated, kept.clamp(min=0))


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


def test_resnet18_state_dict_loads_into_torchvision_above_64_pixels():
    from torchvision.models import resnet18

    model = backbone("resnet18", channels=3, image_size=96)
    theirs = resnet18(weights=None)
    keys = theirs.load_state_dict(model.body.state_dict(), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"]
    assert keys.unexpected_keys == []
    theirs.fc = nn.Identity()
    images_NCHW = torch.randn(2, 3, 96, 96)
    assert torch.equal(theirs.eval()(images_NCHW), model(images_NCHW))


def test_resnet18_keeps_the_resolution_of_small_images():
    seen = []
    model = backbone("resnet18", channels=3, image_size=32)
    model.body.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    model(torch.randn(1, 3, 32, 32))
    assert seen == [32]


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        (
            "convnet",
            7,
            "convnet takes images of 8 to 64 pixels; got 7: resize the images or choose alexnet or resnet18",
        ),
        (
            "convnet",
            65,
            "convnet takes images of 8 to 64 pixels; got 65: resize the images or choose alexnet or resnet18",
        ),
        ("alexnet", 19, "alexnet takes images of 20 pixels and more; got 19: resize the images or choose convnet"),
        ("resnet18", 7, "resnet18 takes images of 8 pixels and more; got 7: resize the images"),
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
