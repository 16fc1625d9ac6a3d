"""Titled blocks of values, tables and bars for whoever reads: coloured on a terminal, plain text in files and pipes."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import IO, TYPE_CHECKING, TextIO

from deepcluster.inspection.tables import GAP, Cells, print_table

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 120
BAR_WIDTH = 40


@dataclass(frozen=True)
class Pairs:
    """Names and their values; a long value is wrapped under its beginning."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bars:
    """(name, value >= 0, the value as text): bars whose longest is the largest value."""

    title: str
    rows: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Listing:
    """A table."""

    title: str
    cells: Cells


Block = Pairs | Bars | Listing


def print_blocks(blocks: Iterable[Block], *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print the blocks with empty lines between; without colours and control characters unless on a terminal."""
    from rich.console import Console

    file = file or sys.stdout
    console = Console(file=file, width=width, highlight=False)
    for number, block in enumerate(blocks):
        if number:
            file.write("\n")
        _styled(console, [(printable(block.title), "bold")])
        match block:
            case Pairs(rows=pairs):
                _print_pairs(console, pairs)
            case Bars(rows=bars):
                _print_bars(console, bars)
            case Listing(cells=cells):
                print_table(cells, file=file, width=width)


def printable(text: str) -> str:
    """The text without what would move the cursor, break the line or be no character at all."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def bytes_text(count: float) -> str:
    """`1.5 MB`; powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def number_text(value: float | None) -> str:
    """Four significant digits, whole numbers with commas; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _print_pairs(console: "Console", rows: Sequence[tuple[str, str]]) -> None:
    name_width = max((len(name) for name, _ in rows), default=0)
    room = max(20, (console.width if console.is_terminal else PLAIN_WIDTH) - name_width - 2 * len(GAP))
    for name, value in rows:
        for index, line in enumerate(wrap(printable(value), room, break_on_hyphens=False) or [""]):
            shown = name if not index else ""
            _styled(console, [(f"{GAP}{shown:<{name_width}}{GAP}", "cyan"), (line, "")])


def _print_bars(console: "Console", rows: Sequence[tuple[str, float, str]]) -> None:
    name_width = max((len(printable(name)) for name, _, _ in rows), default=0)
    text_width = max((len(text) for _, _, text in rows), default=0)
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    full = _drawable("█", console.file)
    for name, value, text in rows:
        length = round(BAR_WIDTH * value / longest) or (1 if value > 0 else 0)
        start = f"{GAP}{printable(name):>{name_width}}{GAP}{text:>{text_width}}{GAP}"
        _styled(console, [(start, ""), (full * length, "blue")])


def _drawable(char: str, file: IO[str]) -> str:
    """The character, or # where the output's encoding lacks it."""
    try:
        char.encode(getattr(file, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "#"
    return char


def _styled(console: "Console", parts: Sequence[tuple[str, str]]) -> None:
    from rich.text import Text

    if console.is_terminal:
        console.print(Text.assemble(*parts), soft_wrap=True)
        return
    line = "".join(text for text, _ in parts).rstrip() + "\n"
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    console.file.write(line.encode(encoding, errors="replace").decode(encoding))
