"""DeepCluster-v2: the loss against its formula in float64, the bank, the crops, and what stands still."""

import copy

import numpy as np
import pytest
import torch
from test_training import CPU, SGD, _one_thread, data  # noqa: F401
from torch import nn
from torch.nn import functional as F

from deepcluster.augment import Augmentation
from deepcluster.errors import NumericsError, UserError
from deepcluster.features import extract_features
from deepcluster.models.build import Backbone, build_backbone
from deepcluster.models.freezing import freeze
from deepcluster.models.heads import trainable
from deepcluster.models.projector import ProjectedBackbone, Projector
from deepcluster.models.sizes import refuse_small_crops
from deepcluster.params import Arch
from deepcluster.prototypes import prototype_loss, prototypes_of
from deepcluster.training import OptimizerSettings, StepResult, build_optimizer
from deepcluster.training_v2 import Crops, train_epoch_v2

TURNED = Augmentation(rotation=10, translate=0.1)
TWO = Crops(global_crops=2, small_crops=0)
MANY = Crops(global_crops=2, small_crops=2, small_size=8, small_scale=(0.4, 0.9))
OUTPUTS = 8


def models(*, image_size: int = 8, outputs: int = OUTPUTS) -> tuple[Backbone, Projector]:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", channels=1, image_size=image_size, sobel=False, grayscale=False)
    return backbone, Projector(backbone.feature_dim, hidden=16, outputs=outputs)


def unit_rows(*shape: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def train(backbone, projector, images, labels_NH, prototypes_HKP=None, *, bank=None, **settings) -> list[StepResult]:
    if prototypes_HKP is None:
        prototypes_HKP = torch.from_numpy(unit_rows(labels_NH.shape[1], 3, projector.outputs, seed=5)).float()
    if bank is None:
        bank = np.zeros((len(images), projector.outputs), np.float32)
    defaults = {
        "indices": np.arange(len(images)), "batch_size": 16, "crops": TWO, "temperature": 0.1, "bank_rows": "first",
        "augmentation": TURNED, "mean": [0.5], "std": [0.3], "device": CPU,
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    settings = defaults | settings
    if "optimizers" not in settings:
        settings["optimizers"] = [build_optimizer(part.parameters(), SGD) for part in (backbone, projector)]
    return list(train_epoch_v2(backbone, projector, images, labels_NH, prototypes_HKP, bank, **settings))


def by_the_formula(projected_VBP, prototypes_HKP, labels_BH, temperature) -> tuple[float, float]:
    """One term at a time, in float64."""
    losses, hits = [], []
    images = len(labels_BH)
    for clustering, prototypes_KP in enumerate(prototypes_HKP.astype(np.float64)):
        for row, projected_P in enumerate(projected_VBP.astype(np.float64)):
            scores_K = prototypes_KP @ projected_P
            label = labels_BH[row % images, clustering]
            losses.append(np.log(np.exp(scores_K / temperature).sum()) - scores_K[label] / temperature)
            hits.append(scores_K.argmax() == label)
    return float(np.mean(losses)), float(np.mean(hits))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("crops", "clusterings"), [(1, 1), (2, 1), (8, 3)])
def test_the_loss_of_a_fixed_batch_with_fixed_centroids_is_the_formula(crops, clusterings, temperature):
    rng = np.random.default_rng(0)
    projected_VBP = unit_rows(crops * 6, OUTPUTS, seed=1).astype(np.float32)
    centroids_HKP = 3 * rng.standard_normal((clusterings, 4, OUTPUTS)).astype(np.float32)
    labels_BH = rng.integers(0, 4, (6, clusterings))
    lengths = np.linalg.norm(centroids_HKP.astype(np.float64), axis=2, keepdims=True)
    expected = by_the_formula(projected_VBP, centroids_HKP / lengths, labels_BH, temperature)
    found = prototype_loss(
        torch.from_numpy(projected_VBP),
        prototypes_of(centroids_HKP),
        torch.from_numpy(labels_BH),
        temperature=temperature,
    )
    assert [number.item() for number in found] == pytest.approx(expected, rel=1e-5)


def test_a_hand_computed_loss():
    """Two crops of an image with label 0, on the axes as the prototypes are: cosines (1, 0) and (0, 1)."""
    loss, accuracy = prototype_loss(torch.eye(2), torch.eye(2)[None], torch.tensor([[0]]), temperature=0.5)
    assert loss.item() == pytest.approx((np.log(np.exp(2) + 1) - 2 + np.log(1 + np.exp(2))) / 2)
    assert accuracy.item() == 0.5


def test_each_clustering_has_prototypes_and_labels_of_its_own():
    projected, labels = torch.eye(3), torch.tensor([[0, 2], [1, 1], [2, 0]])
    prototypes = torch.stack([torch.eye(3), torch.eye(3).flip(0)])
    assert prototype_loss(projected, prototypes, labels, temperature=0.1)[1].item() == 1.0
    assert prototype_loss(projected, prototypes.flip(0), labels, temperature=0.1)[1].item() == pytest.approx(1 / 3)


def test_the_first_step_reports_the_loss_of_what_the_networks_compute():
    """Without augmentation, both crops are the images: one pass by hand gives projections, loss and bank."""
    backbone, projector = models()
    images, labels_N = data(16)
    labels_NH = np.stack([labels_N, 2 - labels_N], axis=1)
    prototypes = unit_rows(2, 3, OUTPUTS, seed=5)
    inputs = (torch.from_numpy(images).float() / 255 - 0.5) / 0.3
    with torch.no_grad():
        again, of_features = copy.deepcopy(backbone).train(), copy.deepcopy(projector).train()
        projected = of_features(again(torch.cat([inputs, inputs]))).numpy()
    expected = by_the_formula(projected, prototypes, labels_NH, 0.1)
    bank = np.zeros((16, OUTPUTS), np.float32)
    settings = {"augmentation": Augmentation(), "batch_size": 16, "bank": bank}
    (step,) = train(backbone, projector, images, labels_NH, torch.from_numpy(prototypes).float(), **settings)
    assert (step.loss, step.accuracy) == pytest.approx(expected, rel=1e-4)
    assert (step.pseudo_label_loss, step.contrastive_loss, step.images, step.lr) == (step.loss, None, 16, 0.05)
    np.testing.assert_allclose(bank, projected[:16], atol=1e-5)


class Watched(Projector):
    """A projector that remembers what it returned."""

    def __init__(self, *sizes: int, **named: int) -> None:
        super().__init__(*sizes, **named)
        self.returned: list[np.ndarray] = []

    def forward(self, activated_ND: torch.Tensor) -> torch.Tensor:
        projected_NP = super().forward(activated_ND)
        self.returned.append(projected_NP.detach().numpy().copy())
        return projected_NP


@pytest.mark.parametrize("crops", [TWO, MANY, Crops(1, 0)], ids=["two", "many", "one"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bank_is_the_projections_that_the_training_computed(crops, precision):
    backbone, _ = models()
    projector = Watched(backbone.feature_dim, hidden=16, outputs=OUTPUTS)
    images, labels_N = data(40)
    order = np.random.default_rng(2).permutation(40)
    bank = np.full((40, OUTPUTS), np.nan, np.float32)
    settings = {"indices": order, "crops": crops, "bank": bank, "precision": precision}
    train(backbone, projector, images, labels_N[:, None], **settings)
    assert [len(rows) for rows in projector.returned] == [
        (crops.global_crops + crops.small_crops) * size for size in (16, 16, 8)
    ]
    for index, rows in enumerate(np.split(order, [16, 32])):
        np.testing.assert_array_equal(bank[rows], projector.returned[index][: len(rows)])
    np.testing.assert_allclose(np.linalg.norm(bank.astype(np.float64), axis=1), 1, atol=1e-6)


def test_the_bank_of_means_is_that_of_the_global_crops():
    backbone, _ = models()
    projector = Watched(backbone.feature_dim, hidden=16, outputs=OUTPUTS)
    images, labels_N = data(16)
    bank = np.zeros((16, OUTPUTS), np.float32)
    train(backbone, projector, images, labels_N[:, None], crops=MANY, bank=bank, bank_rows="mean")
    first, second = projector.returned[0].astype(np.float64)[:32].reshape(2, 16, OUTPUTS)
    mean = (first + second) / 2
    np.testing.assert_allclose(bank, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)


def test_an_image_seen_twice_has_the_latest_row():
    backbone, _ = models()
    projector = Watched(backbone.feature_dim, hidden=16, outputs=OUTPUTS)
    images, labels_N = data(8)
    bank = np.zeros((8, OUTPUTS), np.float32)
    indices = np.array([0, 1, 2, 3, 4, 5, 6, 7, 3, 2, 1, 0])
    train(backbone, projector, images, labels_N[:, None], indices=indices, batch_size=8, bank=bank)
    np.testing.assert_array_equal(bank[[3, 2, 1, 0]], projector.returned[1][:4])
    np.testing.assert_array_equal(bank[4:], projector.returned[0][4:8])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_labels_that_follow_from_the_images_are_learnt_and_the_prototypes_do_not_move(precision):
    backbone, projector = models()
    images, labels_N = data()
    prototypes = prototypes_of(unit_rows(1, 3, OUTPUTS, seed=5))
    fixed, before = prototypes.clone(), copy.deepcopy(projector.state_dict())
    indices = np.random.default_rng(1).integers(0, 96, 480)
    settings = {"indices": indices, "crops": Crops(1, 1, None, (0.4, 0.9)), "precision": precision}
    results = train(backbone, projector, images, labels_N[:, None], prototypes, **settings)
    assert np.mean([result.accuracy for result in results[-5:]]) > 0.95
    assert results[-1].loss < results[0].loss / 3
    assert torch.equal(prototypes, fixed)
    assert not prototypes.requires_grad
    assert all(not torch.equal(before[name], weight) for name, weight in projector.named_parameters())


def test_crops_of_each_size_pass_the_backbone_together_all_of_one_size_at_once():
    shapes = []

    class Pooled(nn.Module):
        def forward(self, images_NCHW):
            shapes.append(tuple(images_NCHW.shape))
            return F.adaptive_avg_pool2d(images_NCHW, 2).flatten(1)

    backbone = Backbone(nn.Identity(), Pooled(), feature_dim=4, head_activation=nn.Identity())
    projector = Projector(4, hidden=8, outputs=OUTPUTS)
    images = np.random.default_rng(0).integers(0, 255, (8, 1, 16, 16)).astype(np.uint8)
    labels_NH = np.zeros((8, 1), np.int32)
    optimizers = [build_optimizer(projector.parameters(), SGD)]
    for size in (9, 16, None):
        crops = Crops(global_crops=2, small_crops=3, small_size=size)
        train(backbone, projector, images, labels_NH, crops=crops, batch_size=8, optimizers=optimizers)
    assert shapes == [(16, 1, 16, 16), (24, 1, 9, 9), (40, 1, 16, 16), (40, 1, 16, 16)]


def test_small_crops_show_a_small_share_and_global_ones_what_the_augmentation_says():
    """Of a ramp from left to right the range of values in a crop is the share of the side that it shows."""
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)
    crops = Crops(global_crops=2, small_crops=2, small_size=16, small_scale=(0.1, 0.2))
    square = Augmentation(crop=False, crop_ratio=(1.0, 1.0))
    large, small = crops.of(ramp, square, torch.Generator().manual_seed(0), None)
    assert torch.allclose(large, ramp.repeat(2, 1, 1, 1), atol=1e-5)
    shares = (small.amax((1, 2, 3)) - small.amin((1, 2, 3))) ** 2
    assert shares.min() > 0.06
    assert 0.19 > shares.max() > 0.14
    first, second = small.chunk(2)
    assert not torch.equal(first, second)


def test_global_crops_are_those_of_deepcluster_with_the_same_generators():
    from deepcluster.augment import augment

    pixels = torch.rand(4, 1, 8, 8)
    (both,) = TWO.of(pixels, TURNED, torch.Generator().manual_seed(3), torch.Generator().manual_seed(4))
    generators = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)
    assert torch.equal(both, torch.cat([augment(pixels, TURNED, *generators) for _ in range(2)]))


def test_frozen_parts_stand_still():
    backbone, projector = models()
    freeze(backbone, ["body.0", "body.1"])
    before = copy.deepcopy(backbone.state_dict())
    optimizers = build_optimizer(trainable(backbone), SGD), build_optimizer(projector.parameters(), SGD)
    images, labels_N = data(32)
    train(backbone, projector, images, labels_N[:, None], optimizers=optimizers)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(("body.0.", "body.1.")), name


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    found = []
    for seed in (0, 0, 1):
        backbone, projector = models()
        images, labels_N = data(48)
        bank = np.zeros((48, OUTPUTS), np.float32)
        generator = torch.Generator().manual_seed(seed)
        train(backbone, projector, images, labels_N[:, None], crops=MANY, bank=bank, generator=generator)
        found.append((bank.tobytes(), next(backbone.body.parameters()).detach().numpy().tobytes()))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_rates_clipping_and_schedules_act_on_both_optimizers():
    backbone, projector = models()
    slow = OptimizerSettings(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizers = [build_optimizer(part.parameters(), slow) for part in (backbone, projector)]
    before = [weight.clone() for part in (backbone, projector) for weight in part.parameters()]
    images, labels_N = data(16)
    settings = {"optimizers": optimizers, "clip_norm": 1e-2, "lr_factor": lambda step, steps: step / (2 * steps)}
    (step,) = train(backbone, projector, images, labels_N[:, None], **settings)
    after = [weight for part in (backbone, projector) for weight in part.parameters()]
    moved = sum((old - new).square().sum().item() for old, new in zip(before, after, strict=True)) ** 0.5
    assert step.lr == 0.5
    assert moved == pytest.approx(0.5 * 1e-2, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_before_any_weight_or_row_changes():
    backbone, projector = models()
    with torch.no_grad():
        projector.layers[3].weight.fill_(torch.nan)
    before = copy.deepcopy([part.state_dict() for part in (backbone.body[0], projector.layers[0])])
    images, labels_N = data(16)
    bank = np.zeros((16, OUTPUTS), np.float32)
    with pytest.raises(NumericsError) as error:
        train(backbone, projector, images, labels_N[:, None], bank=bank)
    expected = "loss is nan at step 1: lower train.optimizer.lr or set train.precision to fp32"
    assert str(error.value) == expected
    for part, old in zip((backbone.body[0], projector.layers[0]), before, strict=True):
        assert all(torch.equal(old[name], tensor) for name, tensor in part.state_dict().items())
    assert not bank.any()


def test_before_there_is_a_bank_projections_are_extracted_like_features():
    backbone, projector = models()
    images, _ = data(20)
    whole = ProjectedBackbone(backbone, projector)
    rows = extract_features(whole, images, batch_size=8, mean=[0.5], std=[0.3], device=CPU)
    found = np.concatenate(list(rows))
    with torch.no_grad():
        features = backbone.eval()((torch.from_numpy(images).float() / 255 - 0.5) / 0.3)
        hidden = projector.eval().layers(features).numpy().astype(np.float64)
    np.testing.assert_allclose(found, hidden / np.linalg.norm(hidden, axis=1, keepdims=True), atol=1e-5)
    assert found.dtype == np.float32
    assert set(dict(whole.named_parameters())) == {
        *(name for name, _ in backbone.named_parameters()),
        *(f"projector.{name}" for name, _ in projector.named_parameters()),
    }


@pytest.mark.parametrize(
    ("arch", "image_size", "size", "smallest"),
    [
        ("convnet", 32, 8, None),
        ("convnet", 64, 4, 8),
        ("feedforward", 16, 15, 16),
        ("alexnet", 224, 40, 63),
        ("alexnet", 32, 20, None),
        ("vgg16", 32, 16, 32),
        ("vgg16", 96, 16, 32),
        ("resnet18", 32, 12, None),
        ("resnet50", 224, 96, None),
    ],
)
def test_sizes_that_an_architecture_takes(arch: Arch, image_size, size, smallest):
    def build() -> Backbone:
        return build_backbone(arch, channels=3, image_size=image_size, sobel=True, grayscale=False)

    made_for = {"arch": arch, "channels": 3, "image_size": image_size}
    if smallest is None:
        refuse_small_crops(size, build, **made_for)
        return
    with pytest.raises(UserError) as error:
        refuse_small_crops(size, build, **made_for)
    assert str(error.value) == (
        f"train.v2.small_size: must be >= {smallest} for {arch} and images of {image_size} pixels; got {size}"
    )
    refuse_small_crops(smallest, build, **made_for)


def test_crops_larger_than_the_images_are_refused_and_none_is_their_own_size():
    def build() -> Backbone:
        raise AssertionError

    refuse_small_crops(None, build, arch="vgg16", channels=3, image_size=32)
    refuse_small_crops(32, build, arch="vgg16", channels=3, image_size=32)
    with pytest.raises(UserError) as error:
        refuse_small_crops(33, build, arch="vgg16", channels=3, image_size=32)
    assert str(error.value) == "train.v2.small_size: must be <= 32, the side of the images; got 33"
