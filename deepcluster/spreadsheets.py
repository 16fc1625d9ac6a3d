"""Cells of a CSV that people open in a spreadsheet, whatever the files are called that it names."""

from collections.abc import Iterable

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
QUOTED = frozenset('",;\t\r\n')


def csv_line(cells: Iterable[object]) -> str:
    """A row, its line break included: cells in quotes where a reader would split them otherwise.

    Python's csv leaves a lone carriage return bare, and what else spreadsheets split at.
    """
    return ",".join(map(_quoted, map(str, cells))) + "\n"


def harmless(name: str) -> str:
    """A path from here as text that no spreadsheet runs: one that looks like a formula begins with ./ instead.

    That leads to the same file. What is no text in a name (bytes that are not UTF-8) is a question mark.
    """
    readable = name.encode(errors="replace").decode()
    return f"./{readable}" if readable.startswith(FORMULA_STARTS) else readable


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if QUOTED & set(cell) else cell
