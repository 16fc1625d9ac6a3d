"""Features come in data set order, do not depend on the batch, and are finite or an error."""

import numpy as np
import pytest
import torch
from torch import nn

from deepcluster.errors import NumericsError, UserError
from deepcluster.features import extract_features
from deepcluster.models.build import Backbone, build_backbone

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are too small for more: threads that wait spin, and a busy machine makes the tests crawl."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Brightness(nn.Module):
    """Two features: the mean of the image, and the square of it."""

    def forward(self, images_NCHW):
        mean_N = images_NCHW.mean(dim=(1, 2, 3))
        return torch.stack([mean_N, mean_N**2], dim=1)


def brightness(body=None) -> Backbone:
    return Backbone(nn.Identity(), body or Brightness(), feature_dim=2, head_activation=nn.Identity())


def numbered_images(count=101):
    """Image i has the value i everywhere."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, 8, 8))


def extract(backbone, images, batch_size=16, **settings):
    settings = {"mean": [0.0], "std": [1.0], "device": CPU, **settings}
    return np.concatenate(list(extract_features(backbone, images, batch_size=batch_size, **settings)))


@pytest.mark.parametrize("batch_size", [1, 16, 100, 101, 500])
def test_row_i_belongs_to_image_i(batch_size):
    features_ND = extract(brightness(), numbered_images(), batch_size)
    assert features_ND.shape == (101, 2)
    assert features_ND.dtype == np.float32
    np.testing.assert_allclose(features_ND[:, 0] * 255, np.arange(101), atol=1e-3)


def test_images_are_scaled_then_normalised():
    features_ND = extract(brightness(), numbered_images(52), mean=[0.1], std=[0.25])
    assert features_ND[51, 0] == pytest.approx((51 / 255 - 0.1) / 0.25)


def convnet(count=75):
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return build_backbone("convnet", channels=1, image_size=8, sobel=False, grayscale=False), images


def test_the_batch_size_does_not_matter():
    backbone, images = convnet()
    whole = extract(backbone, images, batch_size=75)
    for batch_size in (1, 7, 64):
        np.testing.assert_allclose(extract(backbone, images, batch_size), whole, atol=1e-5, rtol=0)


def test_extraction_repeats_to_the_bit_and_leaves_the_backbone_alone():
    backbone, images = convnet()
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert extract(backbone, images).tobytes() == extract(backbone, images).tobytes()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_rows_of_the_last_batch_do_not_depend_on_how_many_follow():
    backbone, images = convnet()
    assert extract(backbone, images[:65], 32).tobytes() == extract(backbone, images, 32)[:65].tobytes()


def test_bfloat16_gives_nearly_the_same_float32_rows():
    backbone, images = convnet()
    exact, rounded = extract(backbone, images), extract(backbone, images, precision="bf16")
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("size", [28, 64])
def test_bfloat16_directions_agree_with_float32(size):
    """What clustering sees: the cosine between both rows of an image."""
    torch.manual_seed(0)
    backbone = build_backbone("convnet", channels=1, image_size=size, sobel=False, grayscale=False)
    images = np.random.default_rng(0).integers(0, 256, (20, 1, size, size), dtype=np.uint8)
    exact, rounded = extract(backbone, images), extract(backbone, images, precision="bf16")
    cosine_N = np.einsum("nd,nd->n", exact, rounded) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert 0.999 < cosine_N.min() <= cosine_N.max() < 1.0


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_features_to_float32_rounding():
    backbone, images = convnet()
    np.testing.assert_allclose(extract(backbone, images, compile=True), extract(backbone, images), atol=1e-5, rtol=0)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    backbone, images = convnet()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^compile: torch needs a C\+\+ compiler, and none is found"):
        extract(backbone, images, compile=True)


def test_the_callers_code_between_batches_can_compute_gradients():
    weight = torch.ones(1, requires_grad=True)
    for _ in extract_features(brightness(), numbered_images(4), batch_size=2, mean=[0.0], std=[1.0], device=CPU):
        (weight * 3).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 6


def test_images_are_read_by_slices_of_rows():
    class OnDisk:
        shape = (10, 1, 8, 8)
        slices = []  # noqa: RUF012

        def __getitem__(self, rows):
            self.slices.append((rows.start, rows.stop))
            return numbered_images(10)[rows]

    images = OnDisk()
    np.testing.assert_array_equal(extract(brightness(), images, 4), extract(brightness(), numbered_images(10), 4))
    assert images.slices == [(0, 4), (4, 8), (8, 10)]


class Diverged(nn.Module):
    """NaN for images of some brightness, infinity for another."""

    def forward(self, images_NCHW):
        features_ND = Brightness()(images_NCHW) * 255
        index_N = features_ND[:, :1].round()
        features_ND = torch.where((index_N >= 18) & (index_N < 25), torch.nan, features_ND)
        return torch.where(index_N == 17, torch.inf, features_ND)


def test_features_that_are_not_finite_name_their_rows():
    with pytest.raises(NumericsError) as error:
        extract(brightness(Diverged()), numbered_images(), 16)
    assert str(error.value) == (
        "features of 8 images in one batch are NaN or infinite (rows 17, 18, 19, 20, 21, ...): "
        "the training before them diverged; lower train.optimizer.lr and train again"
    )
