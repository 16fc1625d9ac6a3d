"""What the second loss costs an epoch of training: each strategy beside training on the pseudo-labels alone.

Two views are two images to the network, so their epoch cannot be faster than half of the plain one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import plots, results
from benchmarks.data import Source, noise
from benchmarks.networks import Case
from benchmarks.results import Comparison, compare
from deepcluster.contrastive import Objective, Strategy

TARGETS: dict[Strategy, float] = {"pseudo_labels": 0.9, "two_views": 0.45}


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Comparison]:
    """The table for the small convnet at 28 pixels and ResNet18 at 32, in batches of 128."""
    found = list(_comparisons(quick=quick, source=source))
    print("\n" + results.table(results.COMPARISON_HEADER, [results.comparison_row(row) for row in found]))
    plots.ratios(output / "objectives.svg", found)
    return found


def _comparisons(*, quick: bool, source: Source) -> Iterator[Comparison]:
    digits = Case("convnet", source.digits(2048)[:, None], 128, "fp32")
    for case in (digits, Case("resnet18", noise(256, 3, 32, 32), 128, "fp32")):
        for strategy, target in TARGETS.items():
            yield compare(
                f"train {case.name}, {strategy}",
                partial(case.train, Objective(strategy=strategy)),
                case.train,
                against="strategy none",
                unit="images",
                rounds=2 if quick else 5,
                target=target,
            )
