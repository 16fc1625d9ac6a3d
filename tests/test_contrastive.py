"""Losses on pseudo-labels and on features, against their formulas in float64."""

import numpy as np
import pytest
import torch

from deepcluster.contrastive import Objective, same_label_loss, two_view_loss
from deepcluster.losses import pseudo_label_loss

LABELS = torch.tensor([0, 2, 1, 2, 0, 1, 1, 0])


def rows(count=8, width=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32))


def unit(rows_NP):
    rows_NP = rows_NP.double().numpy()
    return rows_NP / np.linalg.norm(rows_NP, axis=1, keepdims=True)


def nt_xent(first_NP, second_NP, temperature):
    """Chen et al. 2020, equation 1, term by term."""
    z = np.concatenate([unit(first_NP), unit(second_NP)])
    count = len(first_NP)
    total = 0.0
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        exponents = [np.exp(z[i] @ z[j] / temperature) for j in range(2 * count) if j != i]
        total -= np.log(np.exp(z[i] @ z[partner] / temperature) / sum(exponents))
    return total / (2 * count)


def nt_xent_matrix(first_NP, second_NP, temperature):
    """The same for many rows at once."""
    z = np.concatenate([unit(first_NP), unit(second_NP)])
    similar = z @ z.T / temperature
    np.fill_diagonal(similar, -np.inf)
    partner = np.roll(np.arange(len(z)), len(first_NP))
    return float(np.mean(np.log(np.exp(similar).sum(axis=1)) - similar[np.arange(len(z)), partner]))


def contrastive(rows_NP, labels_N, margin):
    """Hadsell et al. 2006 as the docstring states it, pair by pair."""
    z, attracted, repelled = unit(rows_NP), [], []
    for i in range(len(z)):
        for j in range(len(z)):
            distance = np.linalg.norm(z[i] - z[j])
            if i != j and labels_N[i] == labels_N[j]:
                attracted.append(distance)
            if labels_N[i] != labels_N[j] and distance < margin:
                repelled.append(margin - distance)
    return sum(float(np.mean(part)) for part in (attracted, repelled) if part)


PROBABILITIES = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
BY_HAND = {
    "cross_entropy": -(np.log(0.25) + np.log(0.8)) / 2,
    "mse": ((0.25 + 0.5625 + 0.0625) + (0.01 + 0.01 + 0.04)) / 6,  # at labels 1 and 2
    "l1": (1.5 + 0.4) / 2,
    "l2": (0.875 + 0.06) / 2,
}


@pytest.mark.parametrize(("name", "expected"), BY_HAND.items())
def test_losses_on_pseudo_labels_by_hand(name, expected):
    loss = pseudo_label_loss(name, PROBABILITIES.log(), torch.tensor([1, 2]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_sure_and_right_prediction_costs_nothing_and_has_a_finite_gradient(name):
    logits = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    loss = pseudo_label_loss(name, logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
def test_nt_xent_is_the_formula(temperature):
    first, second = rows(seed=1), rows(seed=2)
    found = two_view_loss(first, second, temperature=temperature)
    assert found.item() == pytest.approx(nt_xent(first, second, temperature), rel=1e-5)


def test_nt_xent_is_right_where_exponentials_vanish():
    first = torch.eye(4)
    second = (-torch.eye(4)).requires_grad_()
    loss = two_view_loss(first, second, temperature=0.01)
    loss.backward()
    # the other view is opposite, 100 / 0.01 below the six rows at right angles
    assert loss.item() == pytest.approx(100 + np.log(6), rel=1e-5)
    assert second.grad.isfinite().all()
    assert nt_xent(first, second.detach(), 0.01) == pytest.approx(100 + np.log(6))


def test_nt_xent_of_a_large_batch_is_quick():
    """The whole matrix of 1,024 views: with the cube of the batch it would take tens of gigabytes."""
    loss = two_view_loss(rows(512, seed=1), rows(512, seed=2), temperature=0.5)
    assert loss.item() == pytest.approx(nt_xent_matrix(rows(512, seed=1), rows(512, seed=2), 0.5), rel=1e-5)


def test_nt_xent_knows_which_view_belongs_to_which_image():
    first = rows(seed=1)
    second = first + 0.01 * rows(seed=2)
    shuffled = second[torch.tensor([1, 2, 3, 4, 5, 6, 7, 0])]
    assert two_view_loss(first, second, temperature=0.1) < 0.1 < two_view_loss(first, shuffled, temperature=0.1)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_the_contrastive_loss_is_the_formula(margin):
    found = same_label_loss(rows(), LABELS, margin=margin)
    assert found.item() == pytest.approx(contrastive(rows(), LABELS.tolist(), margin), rel=1e-5)


def test_a_batch_without_pairs_costs_nothing():
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = same_label_loss(apart, torch.tensor([0, 1]), margin=1.0)
    loss.backward()
    assert loss.item() == 0


def test_a_strategy_adds_its_weighted_term():
    logits, features = rows(8, 3), rows(seed=3)
    objective = Objective("l1", "pseudo_labels", weight=0.25, label_weight=3.0, margin=0.7)
    found = objective.terms(logits, features, LABELS)
    labelled = pseudo_label_loss("l1", logits, LABELS).item()
    contrasted = contrastive(features, LABELS.tolist(), 0.7)
    assert found.pseudo_label.item() == pytest.approx(labelled)
    assert found.contrastive.item() == pytest.approx(contrasted, rel=1e-5)
    assert found.total.item() == pytest.approx(3.0 * labelled + 0.25 * contrasted, rel=1e-5)


def test_two_views_have_both_losses_on_the_same_pseudo_labels():
    logits, features = rows(16, 3), rows(16, seed=3)
    objective = Objective("cross_entropy", "two_views", weight=2.0, label_weight=0.5, temperature=0.5)
    found = objective.terms(logits, features, LABELS)
    labelled = sum(pseudo_label_loss("cross_entropy", half, LABELS).item() for half in (logits[:8], logits[8:]))
    contrasted = nt_xent(features[:8], features[8:], 0.5)
    assert objective.views == 2
    assert found.pseudo_label.item() == pytest.approx(labelled, rel=1e-5)
    assert found.contrastive.item() == pytest.approx(contrasted, rel=1e-5)
    assert found.total.item() == pytest.approx(0.5 * labelled + 2.0 * contrasted, rel=1e-5)


def test_without_a_strategy_there_is_one_view_and_the_weights_mean_nothing():
    objective = Objective(weight=7.0, label_weight=7.0)
    found = objective.terms(rows(8, 3), rows(), LABELS)
    assert objective.views == 1
    assert found.contrastive is None
    assert found.total is found.pseudo_label
