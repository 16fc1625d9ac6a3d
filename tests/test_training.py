"""One epoch of training: what is trained, on which pairs, and what stops it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deepcluster.artifacts import Provenance
from deepcluster.augment import Augmentation
from deepcluster.checkpoint import BackboneDescription, load_checkpoint, restore_optimizer, save_checkpoint
from deepcluster.errors import NumericsError
from deepcluster.losses import pseudo_label_loss
from deepcluster.models.build import Backbone, build_backbone
from deepcluster.models.heads import Heads, build_heads
from deepcluster.training import OptimizerSettings, StepResult, batches, build_optimizer, train_epoch, uploaded

CPU = torch.device("cpu")
SGD = OptimizerSettings(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
HEAD_SGD = OptimizerSettings(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.0)
ANYTHING = Augmentation(flip=True, rotation=10, translate=0.1)


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are too small for more: threads that wait spin, and a busy machine makes the tests crawl."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(count=96, channels=1):
    """Images of three brightnesses, in no order, and their labels."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 3, count).astype(np.int32)
    noise = rng.integers(0, 40, (count, channels, 8, 8))
    return (noise + 100 * labels_N[:, None, None, None]).astype(np.uint8), labels_N


def models(*, channels=1, sobel=False, k=3) -> tuple[Backbone, Heads]:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", channels=channels, image_size=8, sobel=sobel, grayscale=False)
    return backbone, build_heads(backbone.feature_dim, k)


def train(backbone, head, images, labels_N, *, seed=0, optimizers=None, **settings) -> list[StepResult]:
    if optimizers is None:
        optimizers = build_optimizer(backbone.parameters(), SGD), build_optimizer(head.parameters(), HEAD_SGD)
    settings = {"indices": np.arange(len(labels_N)), "batch_size": 16, "augmentation": Augmentation()} | settings
    settings = {"device": CPU, "precision": "fp32"} | settings
    settings = {"mean": [0.5] * images.shape[1], "std": [0.3] * images.shape[1]} | settings
    return list(
        train_epoch(
            backbone,
            head,
            images,
            labels_N,
            optimizers=optimizers,
            generator=torch.Generator().manual_seed(seed),
            **settings,
        )
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_labels_that_follow_from_the_images_are_learnt(precision):
    backbone, head = models()
    images, labels_N = data()
    indices = np.random.default_rng(1).integers(0, 96, 960)
    results = train(backbone, head, images, labels_N, indices=indices, precision=precision)
    assert results[0].loss == pytest.approx(np.log(3), rel=0.1)
    assert results[-1].loss < 0.1
    assert np.mean([result.accuracy for result in results[-10:]]) > 0.98


def test_bfloat16_losses_stay_within_two_percent_of_float32():
    images, labels_N = data()
    indices = np.random.default_rng(1).integers(0, 96, 320)
    losses = []
    for precision in ("fp32", "bf16"):
        backbone, head = models()
        slow = OptimizerSettings(name="sgd", lr=0.005, momentum=0.0, weight_decay=0.0)  # no chaos to widen rounding
        optimizers = build_optimizer(backbone.parameters(), slow), build_optimizer(head.parameters(), slow)
        results = train(backbone, head, images, labels_N, indices=indices, precision=precision, optimizers=optimizers)
        losses.append([result.loss for result in results])
        assert losses[-1][-1] < losses[-1][0] * 0.9
        assert all(weight.dtype == torch.float32 for weight in backbone.parameters())
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


@pytest.mark.slow
def test_a_compiled_backbone_learns_the_same():
    images, labels_N = data()
    results = []
    for compile_ in (False, True):
        backbone, head = models()
        results.append(train(backbone, head, images, labels_N, compile=compile_))
    losses = [[step.loss for step in steps] for steps in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_uploaded_batches_are_the_rows_asked_for_one_ahead_and_no_more():
    images, labels_N = data()
    asked = []

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            asked.append(rows.tolist())
            return np.asarray(super().__getitem__(rows))

    rows = [np.array([5, 5, 0]), np.array([95, 1]), np.array([2])]
    for index, (images_BCHW, labels_B) in enumerate(uploaded(images, labels_N.view(Watched), rows, CPU)):
        np.testing.assert_array_equal(images_BCHW.numpy(), images[rows[index]])
        assert labels_B.tolist() == labels_N[rows[index]].tolist()
        assert len(asked) <= index + 2
    assert asked == [row.tolist() for row in rows]
    assert list(uploaded(images, labels_N, [], CPU)) == []


def test_every_index_is_trained_on_with_its_own_label():
    class Recorder(nn.Module):
        def forward(self, images_NCHW):
            seen.append(images_NCHW[:, 0, 0, 0].mul(255).round().int())
            return images_NCHW.mean(dim=(2, 3))

    seen: list[torch.Tensor] = []
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 1, 8, 8)).copy()
    labels_N = (np.arange(40) % 3).astype(np.int32)
    indices = np.random.default_rng(2).permutation(40)[:37]
    backbone = Backbone(nn.Identity(), Recorder(), feature_dim=1, head_activation=nn.Identity())
    head = Heads(nn.Linear(1, 3))
    optimizers = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), torch.optim.SGD(head.parameters(), lr=0.0)
    expected = [
        F.cross_entropy(head.classifier(torch.tensor(rows[:, None] / 255.0).float()), torch.tensor(rows % 3)).item()
        for rows in (indices[:12], indices[12:24], indices[24:])
    ]
    results = train(
        backbone, head, images, labels_N, optimizers=optimizers, indices=indices, batch_size=12, mean=[0.0], std=[1.0]
    )
    assert torch.cat(seen).tolist() == indices.tolist()
    assert [result.images for result in results] == [12, 12, 13]
    assert [result.step for result in results] == [1, 2, 3]
    assert [result.loss for result in results] == pytest.approx(expected, rel=1e-4)


def test_images_are_augmented_before_they_are_normalised():
    class Recorder(nn.Module):
        def forward(self, images_NCHW):
            seen.append(images_NCHW)
            return images_NCHW.mean(dim=(2, 3))

    seen: list[torch.Tensor] = []
    backbone = Backbone(nn.Identity(), Recorder(), feature_dim=1, head_activation=nn.Identity())
    head = Heads(nn.Linear(1, 3))
    optimizers = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0), torch.optim.SGD(head.parameters(), lr=0.0)
    white = np.full((16, 1, 8, 8), 255, dtype=np.uint8)
    moved = Augmentation(translate=0.4)
    train(backbone, head, white, np.zeros(16, np.int32), optimizers=optimizers, augmentation=moved)
    # what moves in from beyond the image is black, not the mean
    assert seen[0].min().item() == pytest.approx((0 - 0.5) / 0.3, abs=1e-4)
    assert seen[0].max().item() == pytest.approx((1 - 0.5) / 0.3, abs=1e-4)


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (5, 4, [5]), (3, 4, [3]), (0, 4, [])],
)
def test_batches_keep_every_index_and_leave_no_single_one(count, size, lengths):
    parts = batches(np.arange(count), size)
    assert [len(part) for part in parts] == lengths
    assert [int(index) for part in parts for index in part] == list(range(count))


def test_accuracy_is_the_share_of_pseudo_labels_predicted():
    backbone, head = models()
    nn.init.zeros_(head.classifier.weight)
    head.classifier.bias.data = torch.tensor([0.0, 1.0, 0.0])
    images, labels_N = data(16)
    assert train(backbone, head, images, labels_N)[0].accuracy == pytest.approx(np.mean(labels_N == 1))


def test_backbone_and_head_are_trained_each_by_its_own_optimizer():
    images, labels_N = data()
    for trained in ("backbone", "head"):
        backbone, head = models()
        parts = {"backbone": backbone, "head": head}
        before = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
        still = OptimizerSettings(name="sgd", lr=0.0, momentum=0.0, weight_decay=0.0)
        optimizers = [
            build_optimizer(part.parameters(), SGD if name == trained else still) for name, part in parts.items()
        ]
        train(backbone, head, images, labels_N, optimizers=optimizers)
        for name, part in parts.items():
            moved = [not torch.equal(p, old) for p, old in zip(part.parameters(), before[name], strict=True)]
            assert all(moved) if name == trained else not any(moved)


def test_the_backbone_optimizer_has_no_parameter_of_the_head():
    backbone, head = models()
    optimizer = build_optimizer(backbone.parameters(), SGD)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in backbone.parameters()}
    assert held.isdisjoint(id(p) for p in head.parameters())


def test_the_front_end_is_never_trained():
    backbone, head = models(channels=3, sobel=True)
    before = [buffer.clone() for buffer in backbone.front_end.buffers()]
    train(backbone, head, *data(channels=3))
    after = list(backbone.front_end.buffers())
    assert len(after) == 2
    assert not any(buffer.requires_grad for buffer in after)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_head_sees_the_features_through_the_activation():
    class Negative(nn.Module):
        def forward(self, images_NCHW):
            return -images_NCHW.mean(dim=(2, 3)) - 1

    backbone = Backbone(nn.Identity(), Negative(), feature_dim=1, head_activation=nn.ReLU())
    head = Heads(nn.Linear(1, 3))
    head.classifier.bias.data = torch.tensor([0.0, 0.0, 0.0])
    optimizers = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0), torch.optim.SGD(head.parameters(), lr=0.0)
    results = train(backbone, head, *data(), optimizers=optimizers, mean=[0.0], std=[1.0])
    assert [result.loss for result in results] == pytest.approx([np.log(3)] * 6)


def weights_after(seed, global_seed):
    torch.manual_seed(0)
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8))
    backbone = Backbone(nn.Identity(), dropout, feature_dim=8, head_activation=nn.ReLU())
    head = build_heads(8, 3)
    torch.manual_seed(global_seed)
    train(backbone, head, *data(), seed=seed, augmentation=ANYTHING)
    after = torch.initial_seed(), torch.rand(1).item()
    torch.manual_seed(global_seed)
    assert after == (torch.initial_seed(), torch.rand(1).item()), "the global generator must be left as it was"
    return dropout[2].weight.detach().clone()


def test_augmentation_and_dropout_depend_on_the_passed_generator_alone():
    assert torch.equal(weights_after(seed=1, global_seed=5), weights_after(seed=1, global_seed=6))
    assert not torch.equal(weights_after(seed=1, global_seed=5), weights_after(seed=2, global_seed=5))


@pytest.mark.parametrize(("poison", "named"), [(float("nan"), "nan"), (float("inf"), "nan"), (3e38, "inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(poison, named):
    backbone, head = models()
    images, labels_N = data(48)
    head.classifier.weight.data.fill_(0)
    head.classifier.bias.data = torch.tensor([0.0, 0.0, poison if named == "nan" else 0.0])
    if named == "inf":
        head.classifier.bias.data = torch.tensor([-poison, poison, 0.0])
    before = [p.clone() for p in backbone.parameters()]
    with pytest.raises(NumericsError) as error:
        train(backbone, head, images, np.zeros_like(labels_N))
    assert str(error.value) == f"loss is {named} at step 1: lower train.optimizer.lr or set train.precision to fp32"
    assert all(torch.equal(p, old) for p, old in zip(backbone.parameters(), before, strict=True))


def test_the_step_of_a_diverging_run_is_named():
    backbone, head = models()
    huge = OptimizerSettings(name="sgd", lr=1e30, momentum=0.0, weight_decay=0.0)
    optimizers = build_optimizer(backbone.parameters(), huge), build_optimizer(head.parameters(), huge)
    with pytest.raises(NumericsError, match=r"^loss is (nan|inf) at step [23]: lower train\.optimizer\.lr"):
        train(backbone, head, *data(), optimizers=optimizers)


class TestGoingOn:
    """The second epoch of training, in one go and from a checkpoint."""

    ADAM = OptimizerSettings(name="adam", lr=0.003, momentum=0.0, weight_decay=0.0)

    def epochs(self, settings, between=lambda backbone, optimizer: (backbone, optimizer), build=build_optimizer):
        """Weights after two epochs, `between` standing between them."""
        backbone, head = models(channels=3)
        optimizer = build(backbone.parameters(), settings)
        for epoch in (1, 2):
            if epoch == 2:
                backbone, optimizer = between(backbone, optimizer)
            optimizers = optimizer, build_optimizer(head.parameters(), HEAD_SGD)
            train(backbone, head, *data(channels=3), seed=epoch, optimizers=optimizers)
        return backbone.state_dict()

    @pytest.mark.parametrize("settings", [SGD, ADAM], ids=["sgd", "adam"])
    def test_from_a_checkpoint_is_as_if_it_had_not_stopped(self, settings, tmp_path):
        def saved_and_loaded(backbone, optimizer):
            made_by = Provenance(samples=96, ids=None, epoch=1, seed=0, params={})
            description = BackboneDescription("convnet", channels=3, image_size=8, sobel=False)
            save_checkpoint(tmp_path / "checkpoint", description, backbone, made_by, optimizer)
            loaded = load_checkpoint(tmp_path / "checkpoint", made_by="train@1", ids=None, epoch=1)
            optimizer = build_optimizer(loaded.backbone.parameters(), settings)
            restore_optimizer(optimizer, loaded.backbone, loaded.optimizer, loaded.path)
            return loaded.backbone, optimizer

        straight, stopped = self.epochs(settings), self.epochs(settings, saved_and_loaded)
        assert all(torch.equal(straight[name], stopped[name]) for name in straight)

    @pytest.mark.parametrize(
        ("settings", "kind", "own"),
        [(SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), (ADAM, torch.optim.Adam, {"lr": 0.003})],
        ids=["sgd", "adam"],
    )
    def test_the_fused_optimizer_does_what_the_plain_one_does(self, settings, kind, own):
        fused = self.epochs(settings)
        plain = self.epochs(settings, build=lambda weights, _: kind(weights, **own, foreach=False, fused=False))
        for name in fused:
            torch.testing.assert_close(fused[name], plain[name], rtol=2e-3, atol=2e-4)


def test_sgd_by_hand():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer([weight], OptimizerSettings(name="sgd", lr=0.1, momentum=0.5, weight_decay=0.2))
    for expected in (1 - 0.1 * (2 + 0.2), 0.78 - 0.1 * (0.5 * 2.2 + 2 + 0.2 * 0.78)):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
        assert weight.item() == pytest.approx(expected)


def test_adam_by_hand():
    weight = nn.Parameter(torch.tensor([1.0]))
    settings = OptimizerSettings(name="adam", lr=0.1, momentum=0.0, weight_decay=0.0, betas=(0.5, 0.75))
    optimizer = build_optimizer([weight], settings)
    weight.grad = torch.tensor([2.0])
    optimizer.step()  # the first step is lr times the sign of the gradient
    assert weight.item() == pytest.approx(0.9)
    weight.grad = torch.tensor([0.0])
    optimizer.step()  # m = 0.5 / 0.75, v = 0.75 / 0.4375
    assert weight.item() == pytest.approx(0.9 - 0.1 * (0.5 / 0.75) / np.sqrt(0.75 / 0.4375))


def test_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    loss = pseudo_label_loss("cross_entropy", logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
