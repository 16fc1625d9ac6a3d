"""On a CUDA device: `pytest -m gpu`. The CPU is the reference."""

import numpy as np
import pytest
import torch

from deepcluster.augment import Augmentation, augment
from deepcluster.contrastive import Objective
from deepcluster.features import extract_features
from deepcluster.models.build import build_backbone
from deepcluster.models.heads import build_heads
from deepcluster.training import OptimizerSettings, build_optimizer, train_epoch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 1, 28, 28), dtype=np.uint8)
STATISTICS = {"mean": [0.5], "std": [0.3]}


def backbone():
    torch.manual_seed(0)
    return build_backbone("convnet", channels=1, image_size=28, sobel=False, grayscale=False)


def features(device, **settings):
    blocks = extract_features(backbone(), IMAGES, batch_size=64, device=torch.device(device), **STATISTICS, **settings)
    return np.concatenate(list(blocks))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-3), ("bf16", 5e-2)])
def test_features_are_those_of_the_cpu(precision, tolerance):
    expected = features("cpu")
    np.testing.assert_allclose(features("cuda", precision=precision), expected, atol=tolerance * expected.max())


def test_training_learns_on_the_gpu():
    labels_N = (np.arange(300) % 3).astype(np.int32)
    images = (IMAGES // 6 + 70 * labels_N[:, None, None, None]).astype(np.uint8)
    settings = OptimizerSettings("sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    network, heads = backbone().cuda(), build_heads(256, 3).cuda()
    steps = train_epoch(
        network,
        heads,
        images,
        labels_N,
        indices=np.random.default_rng(1).integers(0, 300, 1200),
        batch_size=50,
        augmentation=Augmentation(rotation=10, translate=0.1),
        optimizers=[build_optimizer(part.parameters(), settings) for part in (network, heads)],
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cuda"),
        precision="bf16",
        **STATISTICS,
    )
    losses = [step.loss for step in steps]
    assert losses[0] == pytest.approx(np.log(3), rel=0.2)
    assert losses[-1] < 0.3


def test_augmented_images_are_those_of_the_cpu():
    images = torch.from_numpy(IMAGES[:32].repeat(3, axis=1)).float() / 255
    strong = Augmentation(
        crop=True, flip=True, vertical_flip=True, rotation=20, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
    )
    drawn = [
        augment(images.to(device), strong, *(torch.Generator().manual_seed(seed) for seed in (1, 2))).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("strategy", ["pseudo_labels", "two_views"])
def test_a_second_loss_is_that_of_the_cpu(strategy):
    labels = torch.arange(16) % 3
    rows = 32 if strategy == "two_views" else 16
    logits, features = (torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) for width in (3, 8))
    on_cpu, on_gpu = (
        Objective(strategy=strategy).terms(*(tensor.to(device) for tensor in (logits, features, labels)))
        for device in ("cpu", "cuda")
    )
    assert on_gpu.total.item() == pytest.approx(on_cpu.total.item(), rel=1e-4)
    assert on_gpu.contrastive.item() == pytest.approx(on_cpu.contrastive.item(), rel=1e-4)


def test_k_means_on_the_gpu_reaches_the_objective_of_the_cpu():
    import faiss

    from deepcluster.clustering.kmeans import kmeans

    if not faiss.get_num_gpus():
        pytest.skip("faiss sees no GPU")
    rows_Nd = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    on_cpu, on_gpu = (kmeans(rows_Nd, k=20, backend="faiss", seed=0, restarts=3, gpu=gpu) for gpu in (False, True))
    assert on_gpu.objective[-1] == pytest.approx(on_cpu.objective[-1], rel=0.01)
    assert on_gpu.sizes_K.all()
