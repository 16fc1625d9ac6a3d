"""The linear probe against scikit-learn, and each backbone's blocks against their layers run by hand."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from deepcluster.evaluation import probe
from deepcluster.evaluation.held_out import Examples, held_out
from deepcluster.evaluation.probe import linear_probe, steps_of
from deepcluster.models.blocks import MOST_VALUES, blocks, cut_off, pooled
from deepcluster.models.build import build_backbone

CPU = torch.device("cpu")


def split(rows: np.ndarray, targets: np.ndarray) -> Examples:
    return held_out(targets.astype(np.int64), None, seed=0).examples(rows.astype(np.float32), None)


def reference(examples: Examples) -> float:
    """scikit-learn's, on rows standardised alike."""
    mean, std = examples.learn_LD.mean(axis=0), examples.learn_LD.std(axis=0) + 1e-6
    found = LogisticRegression(max_iter=3000).fit((examples.learn_LD - mean) / std, examples.learn_targets_L)
    return found.score((examples.score_SD - mean) / std, examples.score_targets_S)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_blobs_within_a_point_of_scikit_learn(scale):
    rows, targets = make_blobs(2000, n_features=12, centers=6, cluster_std=9.0, random_state=0)
    examples = split((rows * scale) * np.geomspace(0.01, 100, 12) + 3 * scale, targets)
    expected = reference(examples)
    assert 0.7 < expected < 0.98
    assert linear_probe(examples, classes=6, seed=0, device=CPU).accuracy == pytest.approx(expected, abs=0.01)


def test_digits_pixels_within_a_point_of_scikit_learn():
    examples = split(*load_digits(return_X_y=True))
    found = linear_probe(examples, classes=10, seed=1, device=CPU)
    assert found.accuracy == pytest.approx(reference(examples), abs=0.01)


def test_one_step_is_the_gradient_that_autograd_finds():
    """From zero weights: one step of Nesterov momentum is -(1 + momentum) x rate x gradient."""
    rng = np.random.default_rng(0)
    rows, targets = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 3, 20)
    found = probe._untrained(rows, np.arange(20), 3, 2, CPU)
    steps = probe._fit(found, rows, targets, np.arange(20), rates=(0.5, 2.0), seed=0)
    assert next(steps) == 1
    inputs = torch.tensor((rows - rows.mean(axis=0)) / rows.std(axis=0) / 2, dtype=torch.float64)
    weights, biases = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (3,)))
    F.cross_entropy(inputs @ weights + biases, torch.tensor(targets)).backward()
    for place, rate in enumerate((0.5, 2.0)):
        np.testing.assert_allclose(found.weights_DRC[:, place], -1.9 * rate * weights.grad, atol=1e-6)
        np.testing.assert_allclose(found.biases_RC[place], -1.9 * rate * biases.grad, atol=1e-6)


def test_the_rate_is_picked_by_validation_and_never_by_what_is_scored(monkeypatch):
    rows, targets = make_blobs(400, n_features=6, centers=4, cluster_std=4.0, random_state=1)
    examples = split(rows, targets)
    monkeypatch.setattr(probe, "LEARNING_RATES", (1e-9, 3.0))  # the first one leaves all weights near zero
    monkeypatch.setattr(probe, "FEWEST_STEPS", 200)
    found = linear_probe(examples, classes=4, seed=0, device=CPU)
    shuffled = np.random.default_rng(0).permutation(examples.score_targets_S)
    other = linear_probe(
        Examples(examples.learn_LD, examples.learn_targets_L, examples.score_SD, shuffled),
        classes=4,
        seed=0,
        device=CPU,
    )
    assert found.learning_rate == other.learning_rate == 3.0
    assert found.accuracy > other.accuracy + 0.2


def test_repeats_and_tells_its_progress(monkeypatch):
    monkeypatch.setattr(probe, "FEWEST_STEPS", 50)
    examples = split(*make_blobs(200, n_features=3, centers=3, cluster_std=3.0, random_state=0))
    told: list[tuple[int, int]] = []
    runs = [
        linear_probe(examples, classes=3, seed=4, device=CPU, progress=lambda *given: told.append(given))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert told[:100] == [(done, 100) for done in range(1, 101)]


def test_features_that_do_not_vary_do_no_harm(monkeypatch):
    monkeypatch.setattr(probe, "FEWEST_STEPS", 100)
    rows, targets = make_blobs(300, n_features=3, centers=3, cluster_std=0.5, random_state=0)
    examples = split(np.hstack([rows, np.full((300, 2), 7.0)]), targets)
    assert linear_probe(examples, classes=3, seed=0, device=CPU).accuracy == 1.0


def test_steps_grow_with_the_rows():
    assert (steps_of(100), steps_of(25_600), steps_of(60_000)) == (1000, 1000, 2344)


NAMES = {
    "convnet": ["conv1", "conv2", "conv3", "conv4"],
    "feedforward": ["hidden1", "hidden2", "hidden3"],
    "alexnet": ["conv1", "conv2", "conv3", "conv4", "conv5"],
    "vgg16": ["block1", "block2", "block3", "block4", "block5"],
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
}
WIDTHS = {  # values of each block for one channel of 32x32 pixels: channels x side x side after pooling
    "convnet": [32 * 17**2, 64 * 12**2, 128 * 8**2, 256 * 4**2],
    "feedforward": [128, 128, 64],
    "alexnet": [96 * 10**2, 256 * 6**2, 384 * 5**2, 384 * 5**2, 256 * 6**2],
    "vgg16": [64 * 12**2, 128 * 8**2, 256 * 6**2, 512 * 4**2, 512 * 4**2],
    "resnet18": [64 * 12**2, 64 * 12**2, 128 * 8**2, 256 * 6**2, 512 * 4**2],
}


class TestBlocks:
    @pytest.mark.parametrize("arch", ["convnet", "feedforward", "alexnet", "resnet18"])
    def test_names_and_widths(self, arch):
        backbone = build_backbone(arch, channels=1, image_size=32, sobel=False, grayscale=False)
        found = blocks(arch, backbone.body)
        assert list(found) == NAMES[arch]
        widths = [cut_off(backbone, end, channels=1, image_size=32).feature_dim for end in found.values()]
        assert widths == WIDTHS[arch]
        assert max(widths) <= MOST_VALUES

    @pytest.mark.slow
    def test_names_and_widths_of_vgg16(self):
        self.test_names_and_widths("vgg16")

    def test_the_paper_s_pooling(self):
        """9,600, 9,216, 9,600, 9,600 and 9,216 values of AlexNet at 224 pixels."""
        maps = [
            torch.zeros(1, width, side, side) for width, side in ((96, 55), (256, 27), (384, 13), (384, 13), (256, 13))
        ]
        assert [pooled(each).shape[1] for each in maps] == [9600, 9216, 9600, 9600, 9216]

    def test_outputs_are_those_of_the_layers_run_one_by_one(self):
        torch.manual_seed(0)
        backbone = build_backbone("convnet", channels=3, image_size=16, sobel=True, grayscale=False).eval()
        images = torch.rand(4, 3, 16, 16)
        maps, expected = backbone.front_end(images), []
        for layer in backbone.body:
            maps = layer(maps)
            if isinstance(layer, torch.nn.ReLU):
                side = int((9600 / maps.shape[1]) ** 0.5)
                expected.append((F.adaptive_avg_pool2d(maps, side) if maps.shape[2] > side else maps).flatten(1))
        ends = blocks("convnet", backbone.body).values()
        found = [cut_off(backbone, end, channels=3, image_size=16)(images) for end in ends]
        assert len(found) == len(expected) == 4
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert not any(module._forward_hooks for module in backbone.modules())

    def test_what_works_in_place_afterwards_changes_nothing(self):
        torch.manual_seed(0)
        backbone = build_backbone("resnet18", channels=1, image_size=16, sobel=False, grayscale=False).eval()
        images, body = torch.rand(2, 1, 16, 16), backbone.body
        found = cut_off(backbone, body.layer1, channels=1, image_size=16)(images)
        expected = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images)))))
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(expected, 12).flatten(1))

    def test_the_weights_are_shared_and_no_part_is_added(self):
        backbone = build_backbone("convnet", channels=1, image_size=8, sobel=False, grayscale=False)
        cut = cut_off(backbone, blocks("convnet", backbone.body)["conv2"], channels=1, image_size=8)
        assert cut.state_dict().keys() == backbone.state_dict().keys()
        assert next(cut.parameters()) is next(backbone.parameters())
