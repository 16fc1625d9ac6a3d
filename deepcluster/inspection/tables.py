"""Tables of epochs and baselines: for rich, as plain text, and stacked for narrow terminals.

A column that no row has a value for (say nmi without targets) is left out; a single missing value shows as "-".
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, float | int | None]

EPOCH_COLUMNS = (
    "epoch",
    "nmi",
    "accuracy",
    "nmi_previous",
    "loss",
    "pseudo_label_accuracy",
    "smallest",
    "largest",
    "effective_k",
)
SWEEP_COLUMNS = (
    "k", "objective", "explained", "silhouette", "stability", "effective_k", "largest_share", "empty", "nmi",
)  # fmt: skip
BASELINES = {
    "pixels": "k-means on raw pixels",
    "sobel": "k-means on Sobel-filtered pixels",
    "untrained": "untrained backbone",
}
WHOLE_NUMBERS = ("epoch", "smallest", "largest")
GAP = "  "


@dataclass(frozen=True)
class Cells:
    """A table as text: the names of its columns and rows of as many strings."""

    columns: list[str]
    rows: list[list[str]]


def epoch_cells(rows: Sequence[Row], names: Sequence[str] = EPOCH_COLUMNS) -> Cells:
    """The named columns that any row has a value for, numbers as text. Other keys are ignored."""
    columns = [name for name in names if name == names[0] or any(row.get(name) is not None for row in rows)]
    return Cells(columns, [[value_text(name, row.get(name)) for name in columns] for row in rows])


def baseline_cells(results: Mapping[str, Mapping[str, float]]) -> Cells:
    """A row for each result, with the union of their metrics as columns in order of appearance."""
    metrics = list(dict.fromkeys(name for values in results.values() for name in values))
    rows = [[title, *(value_text(name, values.get(name)) for name in metrics)] for title, values in results.items()]
    return Cells(["features", *metrics], rows)


def named_baselines(results: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The results of metrics.json's baselines by the names they are shown under, in the order of BASELINES."""
    return {title: results[name] for name, title in BASELINES.items() if name in results}


def trust_line(measures: Mapping[str, float | int | None]) -> str:
    """`Without labels (5,000 images): silhouette 0.4123, ...` of metrics.json's section trust; "" if that is empty."""
    values = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in measures.items() if isinstance(value, float)]
    return f"Without labels ({measures['images']:,} images): {', '.join(values)}" if values else ""


def timing_cells(timings: Mapping[str, Sequence[tuple[float, float]]]) -> Cells:
    """A row a stage: how often it ran, seconds in all and on average, its share of all stages' time, peak memory."""
    total = sum(seconds for runs in timings.values() for seconds, _ in runs)
    rows = []
    for stage, runs in timings.items():
        seconds = sum(taken for taken, _ in runs)
        share = f"{seconds / total:.1%}" if total else "-"
        peak = max(memory for _, memory in runs)
        rows.append([stage, f"{len(runs)}", f"{seconds:.2f}", f"{seconds / len(runs):.2f}", share, f"{peak:,.0f}"])
    return Cells(["stage", "runs", "seconds", "each", "share", "peak MB"], rows)


def value_text(name: str, value: float | None) -> str:
    """Counts without decimals, effective_k with one, everything else with four; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, int) or (name in WHOLE_NUMBERS and float(value).is_integer()):
        return str(int(value))
    return f"{value:.1f}" if name == "effective_k" else f"{value:.4f}"


def epochs_table(rows: Sequence[Row]) -> "Table":
    """One row an epoch as a rich table."""
    return _rich(epoch_cells(rows), numeric_first=True)


def baselines_table(results: Mapping[str, Mapping[str, float]]) -> "Table":
    """One row a baseline as a rich table."""
    return _rich(baseline_cells(results), numeric_first=False)


def plain_text(cells: Cells) -> str:
    """Aligned columns, a line each row, no colour and no trailing spaces; ends in a newline."""
    lines = [cells.columns, *cells.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(cells.columns))]
    texts = [GAP.join(_align(text, width) for text, width in zip(line, widths, strict=True)) for line in lines]
    return "".join(text.rstrip() + "\n" for text in texts)


def stacked_text(cells: Cells) -> str:
    """A block each row with a line each value, for terminals too narrow for the columns."""
    width = max(map(len, cells.columns))
    blocks = [
        "".join(f"{name:<{width}}{GAP}{text}\n" for name, text in zip(cells.columns, row, strict=True))
        for row in cells.rows
    ]
    return "\n".join(blocks)


def print_table(cells: Cells, *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print for whoever reads: a rich table on a terminal, stacked when too narrow, plain text into a file or pipe."""
    from rich.console import Console

    console = Console(file=file or sys.stdout, width=width)
    table = _rich(cells, numeric_first=cells.columns[0] in ("epoch", "k"))
    if not console.is_terminal:
        console.file.write(plain_text(cells))
    elif console.measure(table, options=console.options.update(width=10_000)).maximum > console.width:
        console.file.write(stacked_text(cells))
    else:
        console.print(table)


def _rich(cells: Cells, *, numeric_first: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(cells.columns):
        table.add_column(Text(name), justify="right" if index or numeric_first else "left", no_wrap=True)
    for row in cells.rows:
        table.add_row(*map(Text, row))
    return table


def _align(text: str, width: int) -> str:
    number = text == "-" or text.replace(".", "").replace("-", "").isdigit()
    return text.rjust(width) if number else text.ljust(width)
