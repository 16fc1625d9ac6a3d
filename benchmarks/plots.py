"""Plots of the results, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.results import Comparison


def ratios(path: Path, found: Sequence[Comparison]) -> None:
    """A bar for each ratio to its reference; a red line marks the target."""
    figure = Figure(figsize=(8, 0.32 * len(found) + 1), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(found))
    axes.barh(places, [row.ratio for row in found], color="0.6")
    for place, row in zip(places, found, strict=True):
        if row.target is not None:
            axes.plot([row.target] * 2, [place - 0.4, place + 0.4], color="tab:red")
    axes.set_yticks(places, [f"{row.name}\nagainst {row.reference}" for row in found], fontsize=6)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="0.2", linewidth=0.8)
    axes.set_xlabel("rate as a multiple of the reference's; red: target")
    figure.savefig(path)


def lines(
    path: Path, panels: Mapping[str, Mapping[str, Mapping[int, float]]], *, x_label: str, logarithmic: bool
) -> None:
    """A panel for each y label, with named lines of x: y."""
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for place, (y_label, named) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, points in named.items():
            axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(fontsize=7)
    figure.savefig(path)
