"""How fast this machine does what a run consists of: measured for some seconds on random data of the right shapes.

Shapes: N images, D features, d components, K clusters, S pixels a side.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcluster.estimate.size import DataSize
from deepcluster.estimate.training import projector_weights, training
from deepcluster.params import Params, at_epoch
from deepcluster.timings import peak_memory_mb

if TYPE_CHECKING:
    import torch

    from deepcluster.clustering.kmeans import KMeansBackend
    from deepcluster.models.build import Backbone

SHARES = {"decode": 0.05, "forward": 0.25, "train": 0.45, "clustering": 0.05, "pca": 0.1}
FIRST_VALUES = 2**19  # of features at once: enough that starting the work does not count
BUSY_SECONDS = 0.2
ITERATIONS = 4  # of k-means
ROWS = 4096  # of random features, at most
WIDEST = 512  # features for which an eigendecomposition is tried; wider ones cost with the cube


@dataclass(frozen=True)
class Rates:
    """Seconds on this machine, and the sizes that only a built network tells.

    decode, forward, train: an image. pca_row: a row of features reduced and counted in the covariance.
    pca_axes: the eigendecomposition. cluster, final, pixels: one row x centroid of one iteration, with rows of d, D and
    C x S x S values. pair: two rows in the search for neighbours; 0 where no epoch has one. features: D.
    weights: parameters of the backbone, and of DeepCluster-v2's projector.
    memory_extract, memory_train: bytes that a batch takes, beside the process and the data set's images.
    busy: wall time for a second of this process's own, 1 on an idle machine.
    blocks: values an image of each block that is to have a linear probe of its own.
    """

    decode: float
    forward: float
    train: float
    pca_row: float
    pca_axes: float
    cluster: float
    final: float
    pixels: float
    features: int
    weights: int
    memory_extract: float
    memory_train: float
    pair: float = 0.0
    busy: float = 1.0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tried:
    """Seconds for one of so many that were tried at once, and the bytes that these took at their peak."""

    seconds: float
    number: int
    memory: float

    def memory_of(self, number: int) -> float:
        """Of a process that does so many at once: the start, and what grows with them."""
        return self.memory * number / self.number


def calibrate(params: Params, size: DataSize, *, device: "torch.device", gpu: bool | None, seconds: float) -> Rates:
    """Measure for about so many seconds. Slow networks are tried on smaller batches, two images at least."""
    from deepcluster.models.freezing import freeze

    rng, budget = np.random.default_rng(0), {name: share * seconds for name, share in SHARES.items()}
    backbone = _backbone(params, size)
    batches = {"forward": min(size.count, params.extract.batch_size), "train": max(2, params.train.batch_size)}
    shape = (max(batches.values()), size.channels, size.side, size.side)
    images_NCHW = rng.integers(0, 256, shape, dtype=np.uint8)
    decode = _decode(size, budget["decode"])
    forward = _forward(params, backbone, images_NCHW[: batches["forward"]], device, budget["forward"])
    weights = sum(weight.numel() for weight in backbone.parameters())
    freeze(backbone, params.train.freeze)
    work = training(params, backbone, images_NCHW[: batches["train"]], device)
    train = seconds_each(work, batches["train"], budget["train"])
    features, pixels = backbone.feature_dim, size.channels * size.side**2
    weights += projector_weights(params, features)
    components = min(params.pca.components, features) if params.pca.enabled else features
    if params.train.method == "deepcluster_v2":
        components = params.train.v2.outputs
    row, axes = _pca(min(size.count, ROWS), features, components, budget["pca"]) if params.pca.enabled else (0.0, 0.0)
    each = budget["clustering"] * 3 / (4 if graphs_of(params) else 3)
    backend = params.cluster.backend if params.cluster.method == "kmeans" else "faiss"
    return Rates(
        decode=decode,
        forward=forward.seconds,
        train=train.seconds,
        pca_row=row,
        pca_axes=axes,
        cluster=_kmeans(size.count, components, params.cluster.k, gpu, each, backend=backend),
        pair=_search(params, size.count, components, gpu, each),
        final=_kmeans(size.count, features, params.cluster.k, gpu, each),
        pixels=_kmeans(size.count, pixels, params.cluster.k, gpu, each) if size.classes else 0.0,
        features=features,
        weights=weights,
        memory_extract=forward.memory_of(batches["forward"]),
        memory_train=train.memory_of(batches["train"]),
        busy=_busy(),
        blocks=_blocks(params, size, backbone) if size.classes else (),
    )


def _backbone(params: Params, size: DataSize) -> "Backbone":
    from deepcluster.checkpoint import BackboneDescription

    model = params.model
    return BackboneDescription(model.arch, size.channels, size.side, model.sobel, model.grayscale).build()


def _blocks(params: Params, size: DataSize, backbone: "Backbone") -> tuple[int, ...]:
    from deepcluster.models.blocks import blocks, cut_off

    if params.evaluate.probe != "blocks":
        return ()
    shape = {"channels": size.channels, "image_size": size.side}
    ends = blocks(params.model.arch, backbone.body).values()
    return tuple(cut_off(backbone, end, **shape).feature_dim for end in ends)


def seconds_each(work: Callable[[int], None], most: int, budget: float, *, first: int = 4) -> Tried:
    """Seconds for one of `work(number)`: numbers from `first` up to `most`, as the budget allows; the last one counts.

    The first call warms up (imports, memory, kernels, threads); at least one more is measured, whatever the budget.
    """
    began, number, times = time.perf_counter(), max(1, min(most, first)), list[float]()
    work(number)
    held = _forget_peak()
    while True:
        start = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - start)
        left = budget - (time.perf_counter() - began)
        if left < times[-1]:
            return Tried(statistics.median(times) / number, number, max(0.0, peak_memory_mb() * 1e6 - held))
        if number < most and left > 4 * times[-1]:
            number, times = min(most, max(2 * number, int(number * left / (4 * times[-1])))), []


def _decode(size: DataSize, budget: float) -> float:
    """Of the files themselves, on all cores as `prepare` does; 0 where there are none to try."""
    from deepcluster.datasets.decoding import decode_files, strict_pillow

    if not size.files:
        return 0.0

    def work(number: int) -> None:
        decode_files(size.folder, size.files[:number], side=size.side, channels=size.channels)

    with strict_pillow():
        return seconds_each(work, len(size.files), budget).seconds


def _forward(
    params: Params, backbone: "Backbone", images_NCHW: NDArray[np.uint8], device: "torch.device", budget: float
) -> Tried:
    from deepcluster.features import extract_features

    channels = images_NCHW.shape[1]

    def work(number: int) -> None:
        blocks = extract_features(
            backbone,
            images_NCHW[:number],
            batch_size=number,
            mean=[0.5] * channels,
            std=[0.25] * channels,
            device=device,
            precision=params.extract.precision,
        )
        for _ in blocks:
            pass

    return seconds_each(work, len(images_NCHW), budget)


def _pca(most: int, features: int, components: int, budget: float) -> tuple[float, float]:
    """(a row, the axes): covariance and projection of random rows, eigenvectors of at most WIDEST features."""
    from deepcluster.reduction.moments import moments
    from deepcluster.reduction.streaming import principal_axes, project

    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((most, features), dtype=np.float32)
    basis_dD = rng.standard_normal((components, features), dtype=np.float32)
    mean_D, variance_d = np.zeros(features, np.float32), np.ones(components, np.float32)

    def work(number: int) -> None:
        moments([rows_ND[: max(2, number)]])
        project(rows_ND[:number], basis_dD, mean_D, variance_d, whiten=True, normalize=True)

    row = seconds_each(work, most, budget / 2, first=FIRST_VALUES // features).seconds
    width = min(features, WIDEST)
    frame_DD = rng.standard_normal((width, width))
    symmetric_DD = frame_DD + frame_DD.T

    def axes(_: int) -> None:
        principal_axes(symmetric_DD.copy(), min(components, width))

    return row, seconds_each(axes, 1, budget / 2).seconds * (features / width) ** 3


def _search(params: Params, count: int, components: int, gpu: bool | None, budget: float) -> float:
    """Of one pair of rows whose distance the graph of neighbours wants; 0 where no epoch has one."""
    from deepcluster.clustering.backends import uses_gpu
    from deepcluster.clustering.neighbours import nearest_neighbours

    graphs = graphs_of(params)
    if not graphs:
        return 0.0
    most = min(count, ROWS)
    rows_Nd = np.random.default_rng(0).standard_normal((most, components), dtype=np.float32)

    def work(number: int) -> None:
        nearest_neighbours(rows_Nd[:number], min(max(graphs), number - 1), gpu=uses_gpu("faiss", gpu))

    return seconds_each(work, most, budget, first=most).seconds / most


def graphs_of(params: Params) -> list[int]:
    """Neighbours in the graphs of the first and of the last epoch, where these have one."""
    methods = [at_epoch(params, epoch).cluster.method for epoch in (1, params.epochs)]
    neighbours = {"pic": params.cluster.pic.neighbours, "spectral": params.cluster.spectral.neighbours}
    return [neighbours[method] for method in methods if method in neighbours]


def _kmeans(
    count: int, width: int, k: int, gpu: bool | None, budget: float, *, backend: "KMeansBackend" = "faiss"
) -> float:
    """Of one row and one centroid in one iteration. `kmeans` ends with a search like an iteration's, so one more."""
    from deepcluster.clustering.kmeans import kmeans

    most = min(count, ROWS, max(8, 200_000_000 // (4 * width)))
    tried = max(2, min(k, most // 4))
    rows_Nd = np.random.default_rng(0).standard_normal((most, width), dtype=np.float32)

    def work(number: int) -> None:
        kmeans(rows_Nd[:number], k=tried, backend=backend, iterations=ITERATIONS, seed=0, gpu=gpu)

    return seconds_each(work, most, budget, first=most).seconds / (tried * (ITERATIONS + 1))


def _busy() -> float:
    """How many seconds pass while this thread computes for one: more than 1 where others want the processor too."""
    wall, own = time.perf_counter(), time.thread_time()
    while (computed := time.thread_time() - own) < BUSY_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - wall) / computed)


def _forget_peak() -> float:
    """Start the process's peak of memory anew, where the system can (Linux); bytes that it has now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mb() * 1e6
