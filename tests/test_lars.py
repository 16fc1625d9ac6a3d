"""LARS: its formula in float64, what it leaves out, and its state in a checkpoint."""

import copy

import numpy as np
import pytest
import torch
from test_training import HEAD_SGD, _one_thread, data, models, train  # noqa: F401
from torch import nn

from deepcluster.artifacts import Provenance
from deepcluster.checkpoint import BackboneDescription, load_checkpoint, restore_optimizer, save_checkpoint
from deepcluster.lars import LARS
from deepcluster.training import OptimizerSettings, build_optimizer

SETTINGS = OptimizerSettings(name="lars", lr=1.0, momentum=0.9, weight_decay=0.1)
SHAPES = [(4, 3, 2, 2), (5, 3), (5,), ()]


def weights_and_gradients(steps: int) -> tuple[list[nn.Parameter], list[list[torch.Tensor]]]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    return weights, [[10 * torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


def by_the_formula(weight, gradients, *, rates, momentum, decay, trust):
    """You et al. 2017, a layer with decay and ratio; or neither. In float64."""
    weight, velocity = weight.astype(np.float64), 0.0
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient.astype(np.float64)
        if weight.ndim > 1:
            length, slope = np.sqrt((weight**2).sum()), np.sqrt((gradient**2).sum())
            gradient = trust * length / (slope + decay * length) * (gradient + decay * weight)
        velocity = momentum * velocity + gradient
        weight = weight - rate * velocity
    return weight


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_several_steps_with_a_changing_rate_are_the_formula(momentum, decay):
    weights, gradients = weights_and_gradients(5)
    before = [weight.detach().numpy().copy() for weight in weights]
    optimizer = LARS(weights, lr=1.0, momentum=momentum, weight_decay=decay, trust=0.02)
    rates = [0.5, 1.0, 2.0, 1.0, 0.25]
    for rate, step in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    for index, weight in enumerate(weights):
        own = [step[index].numpy() for step in gradients]
        expected = by_the_formula(before[index], own, rates=rates, momentum=momentum, decay=decay, trust=0.02)
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_trust_ratio_is_a_thousandth():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    weight.grad = torch.tensor([[0.0, 200.0]])
    LARS([weight], lr=1.0, momentum=0.0).step()
    np.testing.assert_allclose(weight.detach().numpy(), [[3.0, 4.0 - 0.001 * 5]], rtol=1e-6)  # |w| = 5


def test_the_step_of_a_layer_does_not_depend_on_the_size_of_its_gradient_that_of_a_bias_does():
    moved = {}
    for factor in (1.0, 1000.0):
        weights, (gradients,) = weights_and_gradients(1)
        before = [weight.detach().clone() for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = factor * gradient
        LARS(weights, lr=0.1, momentum=0.0).step()
        moved[factor] = [(old - new).norm().item() for old, new in zip(before, weights, strict=True)]
    assert moved[1000.0][:2] == pytest.approx(moved[1.0][:2], rel=1e-3)
    assert moved[1000.0][2:] == pytest.approx([1000 * one for one in moved[1.0][2:]], rel=1e-3)


def test_zeros_and_missing_gradients_stay_finite():
    zero, still, unused = (nn.Parameter(values) for values in (torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2)))
    zero.grad, still.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    optimizer = LARS([zero, still, unused], lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    np.testing.assert_allclose(zero.detach().numpy(), np.full((2, 2), -0.05), rtol=1e-6)  # ratio 1
    np.testing.assert_allclose(still.detach().numpy(), np.full((2, 2), 0.99), rtol=1e-6)  # ratio 1, decay alone
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_a_closure_is_called_with_gradients():
    weight = nn.Parameter(torch.ones(1))
    optimizer = LARS([weight], lr=0.5, momentum=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (3 * weight).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert weight.item() == pytest.approx(1 - 0.5 * 3)


def test_it_learns_labels_that_follow_from_the_images():
    backbone, head = models()
    images, labels_N = data()
    fast = OptimizerSettings(name="lars", lr=1.0, momentum=0.9, weight_decay=1e-4)
    optimizers = build_optimizer(backbone.parameters(), fast), build_optimizer(head.parameters(), HEAD_SGD)
    indices = np.random.default_rng(1).integers(0, 96, 960)
    before = copy.deepcopy(backbone.state_dict())
    results = train(backbone, head, images, labels_N, indices=indices, optimizers=optimizers)
    assert results[-1].loss < results[0].loss / 100
    assert all(not torch.equal(before[name], weight) for name, weight in backbone.named_parameters())


def test_a_run_that_goes_on_from_a_checkpoint_is_one_that_was_not_stopped(tmp_path):
    images, labels_N = data()
    description = BackboneDescription("convnet", channels=1, image_size=8, sobel=False)
    ends = []
    for stopped in (False, True):
        backbone, head = models()
        optimizer = build_optimizer(backbone.parameters(), SETTINGS)
        of_head = build_optimizer(head.parameters(), HEAD_SGD)
        train(backbone, head, images, labels_N, optimizers=[optimizer, of_head])
        if stopped:
            made = Provenance(samples=96, ids="", epoch=1, seed=0, params={})
            save_checkpoint(tmp_path / "checkpoint", description, backbone, made, optimizer)
            checkpoint = load_checkpoint(tmp_path / "checkpoint", made_by="train@1", ids=None, epoch=1)
            assert checkpoint.optimizer.name == "LARS"
            backbone = checkpoint.backbone
            optimizer = build_optimizer(backbone.parameters(), SETTINGS)
            restore_optimizer(optimizer, backbone, checkpoint.optimizer, checkpoint.path)
        train(backbone, head, images, labels_N, seed=1, optimizers=[optimizer, of_head])
        ends.append(backbone.state_dict())
    assert all(torch.equal(one, ends[1][name]) for name, one in ends[0].items())
