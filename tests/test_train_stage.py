"""What the train stage makes of its settings, by its artifacts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_params
from safetensors.numpy import load_file

from deepcluster import layout, training
from deepcluster.artifacts import open_store
from deepcluster.checkpoint import load_checkpoint

CONSTANT = ["0.05", "0.05", "0.05"]


@pytest.fixture
def trained(workspace, outcome):
    """Runs epochs of the tiny project with changed params; what train@E said."""

    def run(*epochs: int, **changes: object) -> list[str]:
        edit_params(Path("params.yaml"), {key.replace("__", "."): value for key, value in changes.items()})
        said = []
        for epoch in epochs:
            stages = ("train",) if epoch == 1 else ("extract", "pca", "cluster", "train")
            for stage in stages:
                status, out, err = outcome(stage, "--epoch", str(epoch))
                assert status == 0, err
            said.append(out.strip())
        return said

    return run


def weights(epoch: int, name: str = "model") -> dict[str, np.ndarray]:
    return load_file(layout.checkpoint(epoch) / f"{name}.safetensors")


def steps(epoch: int) -> list[dict[str, str]]:
    return list(csv.DictReader(layout.train_steps(epoch).open()))


def summary(epoch: int) -> dict[str, float]:
    return json.loads(layout.train_summary(epoch).read_text())


def test_without_a_strategy_the_loss_is_the_pseudo_labels(trained):
    (said,) = trained(1)
    assert said == f"train@1: loss {summary(1)['loss']:.4f}, pseudo-label accuracy {summary(1)['accuracy']:.3f}"
    assert summary(1)["contrastive_loss"] is None
    assert summary(1)["pseudo_label_loss"] == summary(1)["loss"]
    assert [row["contrastive_loss"] for row in steps(1)] == ["", "", ""]
    assert [row["lr"] for row in steps(1)] == CONSTANT
    assert not (layout.checkpoint(1) / "heads.safetensors").exists()


@pytest.mark.parametrize("strategy", ["pseudo_labels", "two_views"])
def test_the_terms_of_a_strategy_are_logged_apart(trained, strategy):
    changes = {"strategy": strategy, "weight": 0.5, "projection": 8}
    (said,) = trained(1, **{f"train__contrastive__{key}": value for key, value in changes.items()})
    found = summary(1)
    assert found["loss"] == pytest.approx(found["pseudo_label_loss"] + 0.5 * found["contrastive_loss"])
    images = [int(row["images"]) for row in steps(1)]
    contrastive = [float(row["contrastive_loss"]) for row in steps(1)]
    assert found["contrastive_loss"] == pytest.approx(np.average(contrastive, weights=images))
    assert f"(pseudo-labels {found['pseudo_label_loss']:.4f}, contrastive {found['contrastive_loss']:.4f})" in said


def test_a_projection_passes_to_the_next_epoch_while_the_classifier_is_new(trained):
    trained(1, 2, train__contrastive__strategy="two_views", train__contrastive__projection=8, train__head__lr=1e-9)
    first, second = weights(1, "heads"), weights(2, "heads")
    assert first.keys() == {f"weights.projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-6)


def test_a_kept_head_goes_on_where_the_epoch_before_left_it(trained):
    kept = {"train__head__reset": False, "cluster__match_labels": True, "train__head__lr": 1e-9}
    trained(1, 2, **kept, train__head__carry_optimizer=True, train__head__momentum=0.9)
    first, second = weights(1, "heads"), weights(2, "heads")
    np.testing.assert_allclose(first["weights.classifier.weight"], second["weights.classifier.weight"], atol=1e-6)
    assert {name for name in second if name.startswith("optimizer.")} == {
        "optimizer.classifier.weight.momentum_buffer",
        "optimizer.classifier.bias.momentum_buffer",
    }


def test_a_new_head_differs_from_epoch_to_epoch_and_is_not_kept(trained, monkeypatch):
    heads = []
    original = training.train_epoch

    def spy(backbone, own, *arguments, **settings):
        heads.append(own.classifier.weight.detach().clone())
        return original(backbone, own, *arguments, **settings)

    monkeypatch.setattr(training, "train_epoch", spy)
    trained(1, 2, train__head__carry_optimizer=True, train__head__momentum=0.9)
    assert not torch.equal(*heads)
    assert [weight.std().item() for weight in heads] == pytest.approx([0.01, 0.01], rel=0.1)
    assert not [name for name in weights(2, "heads") if name.startswith("weights.")]


def refused(outcome, *arguments: str) -> str:
    status, _, err = outcome(*arguments)
    assert status == 2
    return err


def test_momentum_of_another_head_is_an_error_not_a_crash(trained, outcome):
    trained(1, train__head__carry_optimizer=True, train__head__momentum=0.9)
    for stage in ("extract", "pca", "cluster"):
        assert outcome(stage, "--epoch", "2", "-S", "cluster.k=3")[0] == 0
    assert refused(outcome, "train", "--epoch", "2") == (
        "error: data/epochs/1/checkpoint: optimizer state of other weights than are trained here, such as "
        "classifier.weight; make it with the same settings (`dvc repro` does)\n"
    )


@pytest.mark.parametrize(("before", "after"), [([], ["body.0"]), (["body.0"], [])])
def test_momentum_of_other_parts_is_an_error(trained, outcome, before, after):
    trained(1, train__freeze=before)
    message = refused(outcome, "train", "--epoch", "2", "-S", f"train.freeze={after}")
    assert message.startswith("error: data/epochs/1/checkpoint: optimizer state of other weights than are trained here")


def test_views_that_no_image_tells_apart_are_refused(trained, outcome):
    """Hue leaves grey images alone; that these are grey cannot be read off the params of a folder."""
    still = {"rotation": 0, "translate": 0, "zoom": [1, 1], "shear": 0, "flip": False, "hue": 0.2}
    edits = {f"augment.{key}": value for key, value in still.items()} | {"data.grayscale": False}
    edit_params(Path("params.yaml"), edits | {"train.contrastive.strategy": "two_views", "train.batch_size": 48})
    assert outcome("prepare")[0] == outcome("initialise")[0] == 0
    message = (
        "train.contrastive.strategy: two_views needs views that differ, but `augment` leaves those of these images"
    )
    assert message in refused(outcome, "train", "--epoch", "1")


def test_a_frozen_backbone_without_a_loss_on_labels_is_refused(outcome, workspace):
    changes = {"strategy": "pseudo_labels", "label_weight": 0.0}
    edits = {f"train.contrastive.{key}": value for key, value in changes.items()}
    edit_params(Path("params.yaml"), edits | {"train.freeze": ["body"]})
    expected = "error: train.freeze: leaves nothing to train, as train.contrastive.label_weight is 0\n"
    assert refused(outcome, "train", "--epoch", "1") == expected


def test_a_projection_without_a_strategy_is_not_built(trained):
    trained(1, train__contrastive__projection=8)
    assert not (layout.checkpoint(1) / "heads.safetensors").exists()


def test_a_carried_momentum_is_not_that_of_a_fresh_optimizer(trained):
    changes = {"train__head__momentum": 0.9, "train__head__reset": False, "cluster__match_labels": True}
    trained(1, 2, **changes)
    fresh = weights(2)
    trained(1, 2, **changes, train__head__carry_optimizer=True)
    assert any(not np.array_equal(fresh[name], value) for name, value in weights(2).items())


def test_a_frozen_backbone_trains_its_head_alone_and_has_no_optimizer(trained):
    trained(1, train__freeze=["body"])
    before, after = weights(0), weights(1)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert weights(1, "optimizer") == {}
    assert steps(1)[0]["loss"] != steps(1)[-1]["loss"]
    trained(2)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"name": "cosine", "epochs": 1}, [0.05 * (1 + np.cos(np.pi * part / 6)) / 2 for part in (1, 3, 5)]),
        ({"warmup": 1.0}, [0.05 * part / 6 for part in (1, 3, 5)]),
        ({"name": "step", "every": 1, "gamma": 0.1}, [0.05, 0.05, 0.05]),
    ],
)
def test_the_schedule_reaches_the_optimizers(trained, schedule, rates):
    trained(1, train__schedule__floor=0.0, **{f"train__schedule__{key}": value for key, value in schedule.items()})
    assert [float(row["lr"]) for row in steps(1)] == pytest.approx(rates)


def test_the_step_schedule_counts_epochs_from_the_first(trained):
    trained(1, 2, train__schedule__name="step", train__schedule__every=1)
    assert [float(row["lr"]) for row in steps(2)] == pytest.approx([0.005] * 3)


@pytest.mark.parametrize("follows", [True, False])
def test_the_rate_of_the_head_follows_the_schedule_or_stays(trained, monkeypatch, follows):
    rates = []
    update = training.update

    def observed(optimizers, clip_norm):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        update(optimizers, clip_norm)

    monkeypatch.setattr(training, "update", observed)
    trained(1, train__schedule__warmup=1.0, train__schedule__name="constant", train__schedule__head=follows)
    rising = [0.05 * part / 6 for part in (1, 3, 5)]
    assert [backbone for backbone, _ in rates] == pytest.approx(rising)
    assert [head for _, head in rates] == pytest.approx(rising if follows else [0.05] * 3)


def test_training_draws_from_the_nearest_of_each_cluster_only(trained, monkeypatch):
    drawn = []
    train_epoch = training.train_epoch

    def observed(*arguments, indices, **settings):
        drawn.append(indices)
        return train_epoch(*arguments, indices=indices, **settings)

    monkeypatch.setattr(training, "train_epoch", observed)
    trained(1, train__keep=0.5, train__epoch_size=10.0)
    clusters = open_store(layout.clusters(1), "clusters", made_by="test")
    labels_N, distances_N = clusters.read("labels"), clusters.read("distances")
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        nearest = members[np.argsort(distances_N[members], kind="stable")][: -(-len(members) // 2)]
        assert set(drawn[0][labels_N[drawn[0]] == label]) == set(nearest)


def test_averaged_weights_are_the_formula_and_pass_on_and_are_what_is_extracted(trained, monkeypatch):
    seen = []
    update = training.update

    def observed(optimizers, clip_norm):
        update(optimizers, clip_norm)
        weight = optimizers[0].param_groups[0]["params"][0]
        seen.append(weight.detach().double().numpy().copy())

    monkeypatch.setattr(training, "update", observed)
    trained(1, 2, train__average=0.75)
    (name,) = [name for name in weights(2) if weights(2)[name].shape == seen[0].shape and name.endswith("weight")][:1]
    expected = weights(0)[name].astype(np.float64)
    for now in seen:
        expected = 0.75 * expected + 0.25 * now
    np.testing.assert_allclose(weights(2, "average")[name], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(weights(2)[name], seen[-1], rtol=1e-6)  # training itself goes on from these
    assert weights(2, "average").keys() == weights(2).keys()
    found = load_checkpoint(layout.checkpoint(2), made_by="test", ids=None, epoch=2)
    assert np.array_equal(found.backbone.state_dict()[name].numpy(), weights(2, "average")[name])


def test_without_averaging_there_is_no_such_file(trained):
    trained(1)
    assert not (layout.checkpoint(1) / "average.safetensors").exists()


@pytest.mark.parametrize("loss", ["mse", "l1", "l2"])
def test_every_loss_trains(trained, loss):
    still = {"rotation": 0.0, "translate": 0.0, "zoom": [1.0, 1.0], "shear": 0.0, "flip": False}
    # at the usual 0.05 a head of four clusters saturates on one of them, where these losses have no gradient
    slow = {"train__optimizer__lr": 0.01, "train__head__lr": 0.002, "train__epoch_size": 20.0}
    trained(1, train__loss=loss, **slow, **{f"augment__{key}": value for key, value in still.items()})
    chance = {"mse": 0.75 / 4, "l1": 1.5, "l2": 0.75}[loss]  # k = 4, all equally likely
    assert float(steps(1)[0]["loss"]) == pytest.approx(chance, rel=0.1)
    assert np.mean([float(row["loss"]) for row in steps(1)[-5:]]) < chance / 2


def test_an_unknown_frozen_part_is_one_line_and_nothing_is_lost(workspace, outcome):
    before = workspace.digests()
    edit_params(Path("params.yaml"), {"train.freeze": ["body.conv1"]})
    status, _, err = outcome("train", "--epoch", "1")
    assert status == 2
    assert err.startswith("error: train.freeze: no part 'body.conv1' in this backbone; it has body, body.0, ")
    assert workspace.digests() == before
