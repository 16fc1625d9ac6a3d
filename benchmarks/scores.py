"""Named numbers of records, and their statistics over seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never, get_args

from benchmarks.records import Record

Measure = Literal["nmi", "ari", "accuracy", "test-nmi", "test-accuracy", "knn", "probe", "pseudo-nmi"]
Features = Literal["final", "pixels", "untrained"]
Statistic = Literal["median", "worst", "best", "mean", "std"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
HEADINGS: Mapping[Measure, str] = {
    "nmi": "NMI",
    "ari": "ARI",
    "accuracy": "accuracy",
    "test-nmi": "test NMI",
    "test-accuracy": "test accuracy",
    "knn": "k-NN",
    "probe": "linear probe",
    "pseudo-nmi": "pseudo-labels NMI",
}


@dataclass(frozen=True)
class Paired:
    """The mean difference to a base over the seeds that both have, and its standard error (None for one seed)."""

    mean: float
    error: float | None
    seeds: int


def score(record: Record, measure: Measure, features: Features = "final") -> float | None:
    """One number of a run: of its result, or of a baseline treated alike; None if it was not measured."""
    return next((found for path in _places(measure, features) if (found := record.metric(*path)) is not None), None)


def scores(records: Iterable[Record], measure: Measure, features: Features = "final") -> list[float]:
    """Of all runs that have it."""
    return [found for record in records if (found := score(record, measure, features)) is not None]


def statistic(values: Sequence[float], name: Statistic) -> float | None:
    """None where there are too few values; std is that of a sample (n - 1)."""
    if not values:
        return None
    match name:
        case "median":
            return statistics.median(values)
        case "worst":
            return min(values)
        case "best":
            return max(values)
        case "mean":
            return statistics.fmean(values)
        case "std":
            return statistics.stdev(values) if len(values) > 1 else None
        case _:
            assert_never(name)


def paired(own: Mapping[int, Record], base: Mapping[int, Record], measure: Measure) -> Paired | None:
    """The difference to the base, seed by seed: what the draw of a seed does to both drops out. None without pairs."""
    pairs = [(score(own[seed], measure), score(base[seed], measure)) for seed in own if seed in base]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    if not differences:
        return None
    spread = statistics.stdev(differences) if len(differences) > 1 else None
    error = None if spread is None else spread / len(differences) ** 0.5
    return Paired(statistics.fmean(differences), error, len(differences))


def _places(measure: Measure, features: Features) -> list[tuple[str, ...]]:
    """Where metrics.json may have a number. A section's baselines stand in `baselines`, or beside its `final`."""
    section, leaves = _section(measure)
    homes = [(*section, features)] if features == "final" or section else []
    homes += [(*section, "baselines", features)] if features != "final" else []
    homes += [section] if features == "final" and section else []
    return [(*home, *leaf) for home in homes for leaf in leaves]


def _section(measure: Measure) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The section of a measure, and the names that its number may have in there."""
    match measure:
        case "nmi" | "ari" | "accuracy":
            return (), [(measure,)]
        case "test-nmi" | "test-accuracy":
            return ("test",), [(measure.removeprefix("test-"),)]
        case "knn":
            return ("knn",), [("k20",)]
        case "probe":
            return ("probe",), [("features",)]
        case "pseudo-nmi":
            return ("pseudo_labels",), [("nmi",)]
        case _:
            assert_never(measure)
