"""Curves over the epochs as SVG text: the same rows always give the same bytes."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, float | int | None]

# Panels from top to bottom: name, its columns, and whether the scale is logarithmic (but shows zero).
PANELS: dict[str, tuple[tuple[str, ...], bool]] = {
    "agreement": (("nmi", "accuracy", "nmi_previous"), False),
    "loss": (("loss",), False),
    "cluster sizes": (("largest", "smallest"), True),
    "effective k": (("effective_k",), False),
    "effective rank of the features": (("feature_rank",), False),
    "churn": (("churn",), False),
    "splits and merges": (("splits", "merges"), False),
}
SWEEP_PANELS = ("explained", "silhouette", "stability", "nmi")  # each against k
# Legible on white and on near-black, and told apart by all kinds of sight: blue, vermilion and purple of Okabe and Ito,
# the first lightened. Lines differ in style and mark as well.
COLOURS = ("#2a85c9", "#d55e00", "#cc79a7")
STYLES = (("-", "o"), ("--", "s"), (":", "^"))
INK = "#010203"  # drawn with this, then replaced: the page's own text colour, light or dark


def curves(rows: Sequence[Row], *, panels: Sequence[str] = tuple(PANELS)) -> str:
    """One SVG element with a panel below the other; panels without any value are left out.

    Text and axes have the colour of the surrounding text (black in a file of its own).
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [name for name in panels if name in drawable(rows)]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style("-".join(shown)))
        figure = Figure(figsize=(4.4, 2.3 * max(1, len(shown))), layout="constrained")
        for index, name in enumerate(shown):
            _panel(figure.add_subplot(len(shown), 1, index + 1), rows, name)
        if not shown:
            figure.text(0.5, 0.5, "no values to draw", ha="center")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue())


def sweep_curves(rows: Sequence[Row]) -> str:
    """One SVG element: what a sweep over k found, a panel for each measure that any row has a value for."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [name for name in SWEEP_PANELS if any(_finite(row.get(name)) for row in rows)]
    ks = [_number(row["k"]) for row in rows]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style("sweep-k"))
        figure = Figure(figsize=(2.6 * max(1, len(shown)), 2.3), layout="constrained")
        for index, name in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), index + 1)
            axes.plot(ks, [_number(row.get(name)) for row in rows], color=COLOURS[0], marker="o", markersize=3)
            axes.set_xscale("log")
            axes.set_xticks(ks, [f"{k:g}" for k in ks])
            axes.minorticks_off()
            axes.set_title(name, loc="left")
            axes.set_xlabel("k")
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue())


def explained_curve(ratio_d: Sequence[float]) -> str:
    """One SVG element: the share of the variance that the first components explain together, in percent."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    together = [100 * sum(ratio_d[: place + 1]) for place in range(len(ratio_d))]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style("explained"))
        figure = Figure(figsize=(4.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(range(1, len(ratio_d) + 1), together, color=COLOURS[0], linewidth=1.4)
        axes.set_ylim(0, 103)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("components")
        axes.set_title("variance explained, %", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue())


def drawable(rows: Sequence[Row]) -> list[str]:
    """The names of the panels that have at least one value."""
    return [name for name, (columns, _) in PANELS.items() if any(_finite(row.get(c)) for row in rows for c in columns)]


def _panel(axes: "Axes", rows: Sequence[Row], name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    columns, logarithmic = PANELS[name]
    epochs = [_number(row.get("epoch")) for row in rows]
    for column, colour, (line, mark) in zip(columns, COLOURS, STYLES, strict=False):
        values = [_number(row.get(column)) for row in rows]
        if any(map(math.isfinite, values)):
            look = {"color": colour, "linestyle": line, "marker": mark, "markersize": 3, "linewidth": 1.4}
            axes.plot(epochs, values, **look, label=column)  # type: ignore[arg-type]
    if logarithmic:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(name, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if len(columns) > 1:
        axes.legend(frameon=False)


def _style(salt: str) -> dict[Any, Any]:
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    sizes = {"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8}
    return {"svg.hashsalt": salt, "svg.fonttype": "none", **sizes, **dict.fromkeys(inks, INK)}


def _inline(svg: str) -> str:
    """The bare <svg> element: no prolog, no metadata (it holds the date), no ids (they repeat from plot to plot)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace(INK, "currentColor")


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
