"""Time, disk and memory of every stage from sizes and rates: plain arithmetic. Shapes as in `rates`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deepcluster.clustering import kmeans, pic
from deepcluster.estimate.rates import Rates
from deepcluster.estimate.size import DataSize
from deepcluster.params import Params
from deepcluster.reduction import pca

Name = Literal["prepare", "initialise", "extract", "pca", "cluster", "train", "evaluate", "report"]

# The next three on an idle machine; `Rates.busy` times as long on one that others use.
STAGE = 0.15  # seconds around a stage of `deepcluster run`: DVC's hashes and records (docs/performance.md)
START = 4.0  # seconds of imports, which the first stage pays
REPORT = 2.0  # seconds of drawing
WRITE = 400e6  # bytes a second, written, flushed and hashed
READ = 1.5e9  # bytes a second, read and checked
BASE = 1.15e9  # bytes of the process of `deepcluster run`, with torch, faiss and DVC loaded
EVALUATE_ITERATIONS = 50
KMEANS_PLUS_PLUS = 2.0  # iterations that a k-means++ start is worth
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
    """Bytes of all images."""
    return float(size.count * size.channels * size.side**2)


def features(size: DataSize, rates: Rates) -> float:
    """Bytes of an epoch's features."""
    return 4.0 * size.count * rates.features


def width(params: Params, rates: Rates) -> int:
    """Values of a reduced row."""
    return params.pca.components if params.pca.enabled else rates.features


def run_seconds(costs: Sequence[Cost]) -> float:
    """Of the whole run."""
    return sum(cost.seconds_in_all for cost in costs)


def _prepare(size: DataSize, rates: Rates) -> Cost:
    seconds = size.count * rates.decode + pixels(size) / WRITE + (START + STAGE) * rates.busy
    return Cost("prepare", seconds, 1, pixels(size), 0.2e9 + 2 * pixels(size))


def _initialise(size: DataSize, rates: Rates) -> Cost:
    disk = 4.0 * rates.weights + 4.0 * size.count
    return Cost("initialise", disk / WRITE + STAGE * rates.busy, 1, disk, BASE + 8.0 * rates.weights)


def _extract(params: Params, size: DataSize, rates: Rates) -> Cost:
    disk = features(size, rates)
    seconds = size.count * rates.forward + pixels(size) / READ + disk / WRITE + STAGE * rates.busy
    return Cost("extract", seconds, params.epochs, disk, BASE + rates.memory_extract + pixels(size))


def _pca(params: Params, size: DataSize, rates: Rates) -> Cost:
    disk = 4.0 * size.count * width(params, rates)
    work = fit = 0.0
    if params.pca.enabled:
        disk += 4.0 * (params.pca.components + 1) * rates.features
        work = size.count * rates.pca_row + rates.pca_axes
        fit = pca.memory_needed(params.pca.backend, size.count, rates.features)
    seconds = work + 2 * features(size, rates) / READ + disk / WRITE + STAGE * rates.busy
    return Cost("pca", seconds, params.epochs, disk, BASE + fit)


def _cluster(params: Params, size: DataSize, rates: Rates) -> Cost:
    settings, columns = params.cluster, width(params, rates)
    disk = HEAD_ROW * size.count + 4.0 * settings.k * columns
    if settings.method == "pic":
        work = rates.cluster * size.count**2
        memory = pic.memory_needed(size.count, columns, settings.pic.neighbours)
    else:
        trained = size.count
        if settings.points_per_centroid is not None:
            trained = min(size.count, settings.k * settings.points_per_centroid)
        work = rates.cluster * settings.k * settings.restarts * (settings.iterations * trained + size.count)
        memory = kmeans.memory_needed(settings.backend, size.count, columns)
    seconds = work + (4.0 * size.count * columns) / READ + disk / WRITE + STAGE * rates.busy
    return Cost("cluster", seconds, params.epochs, disk, BASE + memory + 4.0 * size.count * columns)


def _train(params: Params, size: DataSize, rates: Rates) -> Cost:
    settings, seen = params.train, max(2, round(params.train.epoch_size * size.count))
    states = {"sgd": 1 if settings.optimizer.momentum else 0, "adam": 2}[settings.optimizer.name]
    disk = 4.0 * rates.weights * (1 + states)
    seconds = seen * rates.train + pixels(size) / READ + disk / WRITE + STAGE * rates.busy
    return Cost(
        "train",
        seconds,
        params.epochs,
        disk,
        BASE + 4.0 * rates.weights * (2 + states) + rates.memory_train + pixels(size),
    )


def _evaluate(params: Params, size: DataSize, rates: Rates) -> Cost:
    """Features of the last backbone clustered; with true labels also pixels and the untrained backbone."""
    k = params.evaluate.k or size.classes or params.cluster.k
    searches = params.evaluate.restarts * (EVALUATE_ITERATIONS + 1 + KMEANS_PLUS_PLUS)
    rows = float(size.count) * k * searches
    once = size.count * rates.forward + rows * rates.final
    columns = rates.features
    if size.classes is None:
        seconds = once
    else:
        seconds = 2 * once + rows * rates.pixels
        columns = max(columns, size.channels * size.side**2)
    memory = 4.0 * size.count * columns + kmeans.memory_needed("faiss", size.count, columns)
    disk = (HEAD_ROW + 40.0) * size.count + 4.0 * k * rates.features  # 40: a line of clusters.csv
    return Cost("evaluate", seconds + disk / WRITE + STAGE * rates.busy, 1, disk, BASE + pixels(size) + memory)


def _report(size: DataSize, rates: Rates) -> Cost:
    return Cost("report", (REPORT + STAGE) * rates.busy, 1, 2e6, BASE / 2 + pixels(size))
