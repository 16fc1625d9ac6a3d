"""What the stage evaluate takes: every measure by its count of operations. Shapes as in `rates`.

A pair is a row of features and a centroid, or another row: one product, for which k-means is measured.
Shapes: M test images, S rows to score, L rows to learn from.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deepcluster.clustering import kmeans
from deepcluster.estimate.rates import Rates
from deepcluster.estimate.size import DataSize
from deepcluster.evaluation.held_out import FIFTH
from deepcluster.evaluation.places import MOST_COMPONENTS, MOST_ON_MAP
from deepcluster.evaluation.probe import BATCH, LEARNING_RATES, steps_of
from deepcluster.evaluation.retrieval import MOST_QUERIES
from deepcluster.evaluation.trust import HALF_RESTARTS
from deepcluster.evaluation.trust_runs import HALVINGS, SECTION_ROWS, VIEWED
from deepcluster.params import Params, final_k

ITERATIONS = 50
KMEANS_PLUS_PLUS = 2.0  # iterations that a k-means++ start is worth
SEARCHES = ITERATIONS + 1 + KMEANS_PLUS_PLUS
SORTED = 1e-7  # seconds of a similarity sorted, for retrieval
PROBE_STEP = 5e-4  # seconds around the products of a step
COPIES = 5  # of the rows at once: as they are, normalised, to learn from, normalised again, in the index
ROW = 8 + 40 + 8  # bytes of label and distance, of a line of clusters.csv, of the place among the clusters


@dataclass(frozen=True)
class Kind:
    """Rows of one kind: values each, seconds of a pair, seconds to make a row."""

    width: int
    pair: float
    made: float


def evaluate_seconds(params: Params, size: DataSize, rates: Rates) -> float:
    """Of all measures; without true labels the clustering and the measures of trust alone."""
    trained = Kind(rates.features, rates.final, rates.forward)
    kinds = [trained]
    if size.classes is not None:
        kinds += [trained, Kind(size.channels * size.side**2, rates.pixels, 0.0)]
    clusters = float(size.count) * final_k(params, size.classes or 0) * params.evaluate.restarts * SEARCHES
    seconds = sum(size.count * kind.made + clusters * kind.pair for kind in kinds)
    if size.classes is not None:
        seconds += sum(_judged(params, size, rates, kind) for kind in kinds)
        if params.model.sobel:  # two filtered pixels for those of all channels
            seconds += clusters * rates.pixels * 2 / size.channels
    return seconds + _trust(params, size, rates)


def evaluate_memory(params: Params, size: DataSize, rates: Rates) -> float:
    """Rows and their k-means; with true labels those of pixels too, and copies for the nearest neighbours."""
    if size.classes is None:
        return 4.0 * size.count * rates.features + kmeans.memory_needed("faiss", size.count, rates.features)
    columns = max(rates.features, size.channels * size.side**2, *rates.blocks)
    clustered = 4.0 * size.count * columns + kmeans.memory_needed("faiss", size.count, columns)
    return max(clustered, COPIES * 4.0 * (size.count + size.test) * columns)


def evaluate_disk(params: Params, size: DataSize, rates: Rates) -> float:
    """Clusters, their places, and every epoch's."""
    plane = 4.0 * min(size.count, MOST_ON_MAP) * min(MOST_COMPONENTS, rates.features)
    return (ROW + 4.0 * params.epochs) * size.count + 4.0 * final_k(params, size.classes or 0) * rates.features + plane


def _judged(params: Params, size: DataSize, rates: Rates, kind: Kind) -> float:
    """What true labels allow to measure of one kind of rows."""
    settings, classes = params.evaluate, size.classes or 0
    score = size.test or round(FIFTH * size.count)
    learn = size.count if size.test else size.count - score
    seconds, more = size.test * kind.made, settings.overclustering * classes
    if 2 <= more <= size.count:
        seconds += float(size.count) * more * SEARCHES * kind.pair
    if settings.knn:
        seconds += float(score) * learn * kind.pair
    if settings.retrieval:
        seconds += float(min(score, MOST_QUERIES)) * learn * (kind.pair + SORTED)
    return seconds + sum(_probes(params, size, rates, kind, learn))


def _probes(params: Params, size: DataSize, rates: Rates, kind: Kind, learn: int) -> Iterator[float]:
    """A probe of the rows; of blocks also one of each, of features made anew, of pixels there are none."""
    if params.evaluate.probe == "none":
        return
    fitted = learn - round(FIFTH * learn)
    steps, classifiers = (steps_of(fitted), steps_of(learn)), (len(LEARNING_RATES), 1)
    products = sum(number * several for number, several in zip(steps, classifiers, strict=True))
    pairs, around = 2.0 * BATCH * (size.classes or 0) * products, sum(steps) * PROBE_STEP * rates.busy
    yield pairs * kind.pair + around
    for width in rates.blocks if kind.made else ():
        yield pairs * kind.pair * width / kind.width + around + (size.count + size.test) * kind.made


def _trust(params: Params, size: DataSize, rates: Rates) -> float:
    """Features of a sample and of views of it, clusters of its halves."""
    rows = min(size.count, SECTION_ROWS)
    clustered = HALVINGS * HALF_RESTARTS * SEARCHES * rows * final_k(params, size.classes or 0)
    return (rows + min(rows, VIEWED)) * rates.forward + clustered * rates.final
