"""What is trained on top of the backbone, what of it passes to the next epoch, and which parts stand still."""

import copy

import numpy as np
import pytest
import torch
from test_training import CPU, HEAD_SGD, SGD, _one_thread, data, models, train  # noqa: F401
from torch import nn

from deepcluster.artifacts import Provenance
from deepcluster.augment import Augmentation
from deepcluster.checkpoint import (
    BackboneDescription,
    kept_weights,
    load_checkpoint,
    optimizer_state,
    restore_heads,
    restore_optimizer,
    save_checkpoint,
)
from deepcluster.contrastive import Objective
from deepcluster.errors import ArtifactError, UserError
from deepcluster.models.build import Backbone, build_backbone
from deepcluster.models.freezing import freeze
from deepcluster.models.heads import build_heads, trainable
from deepcluster.training import OptimizerSettings, build_optimizer

MOVING = Augmentation(translate=0.2)
DESCRIPTION = BackboneDescription("convnet", channels=1, image_size=8, sobel=False)
MADE = Provenance(samples=96, ids=None, epoch=1, seed=0, params={})


def test_the_classifier_is_the_same_with_and_without_a_projection():
    weights = []
    for projection in (None, 16):
        torch.manual_seed(3)
        heads = build_heads(32, 5, projection=projection)
        weights.append(heads.classifier.weight)
        features = torch.randn(4, 32)
        logits, projected = heads(features, nn.Identity())
        assert logits.shape == (4, 5)
        assert projected.shape == (4, 32 if projection is None else 16)
        assert torch.equal(projected, features) == (projection is None)
    assert torch.equal(*weights)


@pytest.mark.parametrize("strategy", ["pseudo_labels", "two_views"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_strategy_trains_backbone_and_projection_and_logs_its_terms_apart(strategy, precision):
    backbone, _ = models()
    heads = build_heads(backbone.feature_dim, 3, projection=8)
    before = copy.deepcopy(heads.projection.state_dict())
    optimizers = build_optimizer(backbone.parameters(), SGD), build_optimizer(heads.parameters(), HEAD_SGD)
    objective = Objective(strategy=strategy, weight=0.5, label_weight=2.0)
    images, labels_N = data()
    settings = {"objective": objective, "augmentation": MOVING, "optimizers": optimizers, "precision": precision}
    results = train(backbone, heads, images, labels_N, indices=np.arange(960) % 96, **settings)
    for step in results:
        assert step.loss == pytest.approx(2.0 * step.pseudo_label_loss + 0.5 * step.contrastive_loss, rel=1e-5)
        assert step.images == 16
        assert 0 <= step.accuracy <= 1
    assert results[0].pseudo_label_loss == pytest.approx(objective.views * np.log(3), rel=0.1)
    assert results[-1].pseudo_label_loss < results[0].pseudo_label_loss / 2
    assert results[-1].contrastive_loss < results[0].contrastive_loss
    assert all(not torch.equal(old, heads.projection.state_dict()[name]) for name, old in before.items())


def test_both_views_are_augmented_from_the_pixels_and_normalised_once():
    class Recorder(nn.Module):
        def forward(self, images_NCHW):
            seen.append(images_NCHW.detach())
            return images_NCHW.flatten(1)

    seen: list[torch.Tensor] = []
    backbone = Backbone(nn.Identity(), Recorder(), feature_dim=64, head_activation=nn.Identity())
    heads = build_heads(64, 3)
    white = np.full((16, 1, 8, 8), 255, np.uint8)
    optimizers = [build_optimizer(heads.parameters(), HEAD_SGD)]
    objective = Objective(strategy="two_views")
    train(
        backbone, heads, white, np.zeros(16, np.int32), optimizers=optimizers, augmentation=MOVING, objective=objective
    )
    first, second = seen[0].chunk(2)
    assert seen[0].shape == (32, 1, 8, 8)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for view in (first, second):
        assert view.max().item() == pytest.approx((1 - 0.5) / 0.3, abs=1e-4)
        assert view.min().item() == pytest.approx((0 - 0.5) / 0.3, abs=1e-4)


@pytest.mark.parametrize("arch", ["convnet", "alexnet", "resnet18"])
def test_features_are_not_changed_before_the_contrastive_loss_reads_them(arch):
    torch.manual_seed(0)
    backbone = build_backbone(arch, channels=1, image_size=28, sobel=False, grayscale=False).train()
    heads = build_heads(backbone.feature_dim, 3)
    features = backbone(torch.randn(4, 1, 28, 28))
    before = features.detach().clone()
    _, projected = heads(features, backbone.head_activation)
    assert torch.equal(projected, before)


def test_each_learning_rate_is_its_own_times_the_factor():
    backbone, heads = models()
    slow_head = OptimizerSettings(name="sgd", lr=0.01, momentum=0.0, weight_decay=0.0)
    optimizers = build_optimizer(backbone.parameters(), SGD), build_optimizer(heads.parameters(), slow_head)
    asked = []

    def factor(step, steps):
        asked.append((step, steps, [optimizer.param_groups[0]["lr"] for optimizer in optimizers]))
        return step / steps

    results = train(backbone, heads, *data(), optimizers=optimizers, lr_factor=factor)
    assert [step.lr for step in results] == pytest.approx([0.05 * step / 6 for step in range(1, 7)])
    assert [entry[:2] for entry in asked] == [(step, 6) for step in range(1, 7)]
    assert asked[3][2] == pytest.approx([0.05 * 3 / 6, 0.01 * 3 / 6])


def test_a_factor_of_zero_changes_no_weight():
    backbone, heads = models()
    before = [weight.clone() for weight in backbone.parameters()]
    train(backbone, heads, *data(), lr_factor=lambda step, steps: 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, backbone.parameters(), strict=True))


def test_the_norm_of_all_gradients_together_is_clipped():
    moved = []
    for clip_norm in (None, 1e-3):
        backbone, heads = models()
        plain = OptimizerSettings(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
        optimizers = [build_optimizer(part.parameters(), plain) for part in (backbone, heads)]
        before = [weight.clone() for part in (backbone, heads) for weight in part.parameters()]
        train(backbone, heads, *data(16), optimizers=optimizers, clip_norm=clip_norm)
        after = [weight for part in (backbone, heads) for weight in part.parameters()]
        moved.append(sum((old - new).square().sum().item() for old, new in zip(before, after, strict=True)) ** 0.5)
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)


def test_frozen_parts_and_their_statistics_stand_still():
    backbone, heads = models()
    freeze(backbone, ["body.0", "body.1"])
    before = copy.deepcopy(backbone.state_dict())
    optimizers = build_optimizer(trainable(backbone), SGD), build_optimizer(heads.parameters(), HEAD_SGD)
    train(backbone, heads, *data(), optimizers=optimizers)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(("body.0.", "body.1.")), name


def test_a_part_is_named_whole_and_a_single_weight_is_a_part():
    backbone, _ = models()
    freeze(backbone, ["body.1.weight"])
    assert [name for name, weight in backbone.named_parameters() if not weight.requires_grad] == ["body.1.weight"]
    freeze(backbone, ["body"])
    assert trainable(backbone) == []


def test_an_unknown_part_is_an_error_that_names_those_that_are_there():
    backbone, _ = models()
    with pytest.raises(UserError) as error:
        freeze(backbone, ["body.0", "bod"])
    assert str(error.value) == (
        "train.freeze: no part 'bod' in this backbone; it has body, body.0, body.1, body.4, body.5, body.7, body.8, "
        "body.10, body.11"
    )


def saved(path, heads, *, classifier, optimizer=None):
    backbone = DESCRIPTION.build()
    kept = kept_weights(heads, classifier=classifier)
    state = optimizer_state(optimizer, heads) if optimizer else None
    save_checkpoint(path, DESCRIPTION, backbone, MADE, kept=kept, head_optimizer=state)
    return load_checkpoint(path, made_by="train@1", ids=None, epoch=1)


def test_kept_heads_and_their_optimizer_come_back_as_they_were(tmp_path):
    backbone, _ = models()
    heads = build_heads(backbone.feature_dim, 3, projection=4)
    momentum = OptimizerSettings(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    optimizer = build_optimizer(heads.parameters(), momentum)
    optimizers = build_optimizer(backbone.parameters(), SGD), optimizer
    train(backbone, heads, *data(), optimizers=optimizers, objective=Objective(strategy="pseudo_labels"))
    checkpoint = saved(tmp_path / "checkpoint", heads, classifier=True, optimizer=optimizer)
    again = build_heads(backbone.feature_dim, 3, projection=4)
    restore_heads(again, checkpoint, classifier=True)
    assert all(torch.equal(old, again.state_dict()[name]) for name, old in heads.state_dict().items())
    fresh = build_optimizer(again.parameters(), momentum)
    restore_optimizer(fresh, again, checkpoint.head_optimizer, checkpoint.path)
    for old, new in zip(heads.parameters(), again.parameters(), strict=True):
        assert torch.equal(optimizer.state[old]["momentum_buffer"], fresh.state[new]["momentum_buffer"])


def test_a_projection_is_kept_while_the_classifier_is_new(tmp_path):
    heads = build_heads(256, 3, projection=4)
    checkpoint = saved(tmp_path / "checkpoint", heads, classifier=False)
    again = build_heads(256, 5, projection=4)
    fresh = again.classifier.weight.clone()
    restore_heads(again, checkpoint, classifier=False)
    assert torch.equal(again.classifier.weight, fresh)
    assert torch.equal(again.projection[0].weight, heads.projection[0].weight)


def test_nothing_kept_is_no_file(tmp_path):
    saved(tmp_path / "checkpoint", build_heads(256, 3), classifier=False)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "checkpoint.json",
        "model.safetensors",
        "optimizer.safetensors",
    ]


def test_heads_that_are_missing_damaged_or_of_another_size_are_errors(tmp_path):
    path = tmp_path / "checkpoint"
    checkpoint = saved(path, build_heads(256, 3), classifier=False)
    with pytest.raises(ArtifactError) as error:
        restore_heads(build_heads(256, 3), checkpoint, classifier=True)
    assert str(error.value) == (
        f"{path}: holds no classifier.bias, which train.head.reset and train.contrastive.projection go on with; make "
        "it with the same settings (`dvc repro` does)"
    )
    checkpoint = saved(path, build_heads(256, 3), classifier=True)
    with pytest.raises(ArtifactError) as error:
        restore_heads(build_heads(256, 4), checkpoint, classifier=True)
    assert str(error.value) == f"{path}: heads of other settings: classifier.bias: expected (4,), got (3,)"
    content = bytearray((path / "heads.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "heads.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum differs"):
        load_checkpoint(path, made_by="train@1", ids=None, epoch=1)
