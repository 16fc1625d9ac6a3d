"""Time, disk and memory of every stage from sizes and rates: plain arithmetic. Shapes as in `rates`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deepcluster.clustering import kmeans, pic, spectral
from deepcluster.estimate.evaluation import KMEANS_PLUS_PLUS, evaluate_disk, evaluate_memory, evaluate_seconds
from deepcluster.estimate.rates import Rates
from deepcluster.estimate.size import DataSize
from deepcluster.params import Params, at_epoch
from deepcluster.reduction import pca

Name = Literal["prepare", "initialise", "extract", "pca", "cluster", "train", "evaluate", "report"]

# The next three on an idle machine; `Rates.busy` times as long on one that others use.
STAGE = 0.15  # seconds around a stage of `deepcluster run`: DVC's hashes and records (docs/performance.md)
START = 4.0  # seconds of imports, which the first stage pays
REPORT = 2.0  # seconds of drawing
WRITE = 400e6  # bytes a second, written, flushed and hashed
READ = 1.5e9  # bytes a second, read and checked
LANCZOS = 2e-7  # seconds for one row and the square of the number of its graph's eigenvectors (60,000 rows, a core)
BASE = 1.15e9  # bytes of the process of `deepcluster run`, with torch, faiss and DVC loaded
HEAD_ROW = 8  # bytes of a label and a distance


@dataclass(frozen=True)
class Cost:
    """One stage: seconds and bytes on the disk each time, how often it runs, bytes of memory at its peak."""

    stage: Name
    seconds: float
    times: int
    disk: float
    memory: float

    @property
    def seconds_in_all(self) -> float:
        return self.seconds * self.times

    @property
    def disk_in_all(self) -> float:
        return self.disk * self.times


def forecast(params: Params, size: DataSize, rates: Rates) -> list[Cost]:
    """What each stage takes, in the order of a run. Without DVC's cache, which may hold all of it once more."""
    return [
        _prepare(size, rates),
        _initialise(size, rates),
        _extract(params, size, rates),
        _pca(params, size, rates),
        _cluster(params, size, rates),
        _train(params, size, rates),
        _evaluate(params, size, rates),
        _report(size, rates),
    ]


def pixels(size: DataSize) -> float:
    """Bytes of all images that are trained on."""
    return float(size.count * size.channels * size.side**2)


def dumped(params: Params, rates: Rates) -> int:
    """Values of a row of features.zarr: of DeepCluster-v2 those of a projection."""
    return params.train.v2.outputs if params.train.method == "deepcluster_v2" else rates.features


def features(params: Params, size: DataSize, rates: Rates) -> float:
    """Bytes of an epoch's features."""
    return 4.0 * size.count * dumped(params, rates)


def width(params: Params, rates: Rates) -> int:
    """Values of a reduced row."""
    return params.pca.components if params.pca.enabled else dumped(params, rates)


def run_seconds(costs: Sequence[Cost]) -> float:
    """Of the whole run."""
    return sum(cost.seconds_in_all for cost in costs)


def _prepare(size: DataSize, rates: Rates) -> Cost:
    count = size.count + size.test
    disk = float(count * size.channels * size.side**2)
    seconds = count * rates.decode + disk / WRITE + (START + STAGE) * rates.busy
    return Cost("prepare", seconds, 1, disk, 0.2e9 + 2 * disk)


def _initialise(size: DataSize, rates: Rates) -> Cost:
    disk = 4.0 * rates.weights + 4.0 * size.count
    return Cost("initialise", disk / WRITE + STAGE * rates.busy, 1, disk, BASE + 8.0 * rates.weights)


def _extract(params: Params, size: DataSize, rates: Rates) -> Cost:
    disk = features(params, size, rates)
    passes = 1 / params.epochs if params.train.method == "deepcluster_v2" else 1.0  # later ones hand the bank over
    seconds = passes * (size.count * rates.forward + pixels(size) / READ) + disk / WRITE + STAGE * rates.busy
    return Cost("extract", seconds, params.epochs, disk, BASE + rates.memory_extract + pixels(size))


def _pca(params: Params, size: DataSize, rates: Rates) -> Cost:
    disk = 4.0 * size.count * width(params, rates)
    work = fit = 0.0
    if params.pca.enabled:
        disk += 4.0 * (params.pca.components + 1) * rates.features
        work = size.count * rates.pca_row + rates.pca_axes
        fit = pca.memory_needed(params.pca.backend, size.count, rates.features)
    seconds = work + 2 * features(params, size, rates) / READ + disk / WRITE + STAGE * rates.busy
    return Cost("pca", seconds, params.epochs, disk, BASE + fit)


def _cluster(params: Params, size: DataSize, rates: Rates) -> Cost:
    """The mean of the epochs before and after `refine.after`, the memory of the hungrier."""
    first, last = (_cluster_once(at_epoch(params, epoch), size, rates) for epoch in (1, params.epochs))
    before = params.epochs if params.refine.after is None else min(params.refine.after, params.epochs)
    share = before / params.epochs
    seconds, disk = (
        share * one + (1 - share) * other for one, other in ((first.seconds, last.seconds), (first.disk, last.disk))
    )
    return Cost("cluster", seconds, params.epochs, disk, max(first.memory, last.memory))


def _cluster_once(params: Params, size: DataSize, rates: Rates) -> Cost:
    settings, columns = params.cluster, width(params, rates)
    iterations = settings.iterations + (KMEANS_PLUS_PLUS if settings.init == "k-means++" else 0.0)
    disk = settings.clusterings * (HEAD_ROW * size.count + 4.0 * settings.k * columns)
    if settings.method == "pic":
        work = rates.pair * size.count**2
        memory = pic.memory_needed(size.count, columns, settings.pic.neighbours)
    elif settings.method == "spectral":
        vectors = spectral.vectors_of(settings.k, settings.spectral.extra_vectors, size.count)
        among = settings.restarts * (iterations + 1) * settings.k * vectors / columns
        work = size.count * (rates.pair * size.count + LANCZOS * vectors**2 + rates.cluster * among)
        memory = spectral.memory_needed(size.count, columns, settings.spectral.neighbours, vectors)
    else:
        trained = size.count
        if settings.points_per_centroid is not None:
            trained = min(size.count, settings.k * settings.points_per_centroid)
        searched = settings.restarts * (iterations * trained + size.count)
        work = settings.clusterings * rates.cluster * settings.k * searched
        memory = kmeans.memory_needed(settings.backend, size.count, columns)
    seconds = work + (4.0 * size.count * columns) / READ + disk / WRITE + STAGE * rates.busy
    return Cost("cluster", seconds, 1, disk, BASE + memory + 4.0 * size.count * columns)


def _train(params: Params, size: DataSize, rates: Rates) -> Cost:
    settings, seen = params.train, max(2, round(params.train.epoch_size * size.count))
    states = 2 if settings.optimizer.name == "adam" else 1 if settings.optimizer.momentum else 0
    disk = 4.0 * rates.weights * (1 + states)
    if settings.method == "deepcluster_v2":
        disk += features(params, size, rates)  # the bank
    seconds = seen * rates.train + pixels(size) / READ + disk / WRITE + STAGE * rates.busy
    return Cost(
        "train",
        seconds,
        params.epochs,
        disk,
        BASE + 4.0 * rates.weights * (2 + states) + rates.memory_train + pixels(size),
    )


def _evaluate(params: Params, size: DataSize, rates: Rates) -> Cost:
    disk = evaluate_disk(params, size, rates)
    seconds = evaluate_seconds(params, size, rates) + disk / WRITE + STAGE * rates.busy
    memory = BASE + (1 + size.test / size.count) * pixels(size) + evaluate_memory(params, size, rates)
    return Cost("evaluate", seconds, 1, disk, memory)


def _report(size: DataSize, rates: Rates) -> Cost:
    return Cost("report", (REPORT + STAGE) * rates.busy, 1, 2e6, BASE / 2 + pixels(size))
