"""`deepcluster assign`: the cluster of every file, as a table."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepcluster.errors import DataError, UserError, plural
from deepcluster.progress import reporting
from deepcluster.spreadsheets import csv_line, harmless
from deepcluster.using.bundle import Bundle
from deepcluster.using.files import decoded, list_files, shown
from deepcluster.using.nearest import Placement, place

COLUMNS = ("sample", "cluster", "distance", "second", "second_distance", "outlier", "error")
SHOWN = 3


@dataclass(frozen=True)
class Assigned:
    """names: of all files, in order. failures: by name, why a file has no cluster. The placement is of the others.

    missing: files that were named and are not there; they are among the failures.
    """

    names: list[str]
    failures: dict[str, str]
    placement: Placement
    missing: list[str]

    def placed(self) -> list[str]:
        """The files that have a cluster, in the placement's order."""
        return [name for name in self.names if name not in self.failures]


def assign_files(
    bundle: Bundle, arguments: Sequence[Path], device: torch.device, *, follow_links: bool = False
) -> Assigned:
    """The clusters of files and of folders of images; DataError as `list_files` says."""
    files, failures = list_files(arguments, follow_links=follow_links), dict[str, str]()
    with reporting("assign", "images") as report:
        placement = place(bundle, decoded(files, bundle.preprocessing, failures, report), device)
    return Assigned(files.names, failures, placement, files.missing)


def as_csv(found: Assigned, extra: dict[str, str] | None = None, column: str = "") -> str:
    """COLUMNS, a row a file, in order. `extra`: a further `column`, by file.

    cluster, distance, second, second_distance and outlier (true, false) are empty for a file without a cluster, error
    for one with. A spreadsheet takes what begins with = + - @ for a formula, so such names begin with ./ here, which
    leads to the same file.
    """
    lines = [[*COLUMNS, *([column] if extra is not None else [])]]
    rows = _rows(found.placement)
    for name in found.names:
        cells = ["", "", "", "", "", found.failures[name]] if name in found.failures else next(rows)
        lines.append([harmless(name), *cells, *([harmless(extra.get(name, ""))] if extra is not None else [])])
    return "".join(map(csv_line, lines))


def refuse_table_target(out: Path) -> None:
    """UserError unless the table may be written there: beside other files, or over an earlier table."""
    if os.path.isdir(out):
        raise UserError(f"--out: {out} is a folder; name a file")
    if not os.path.isdir(out.parent):
        raise UserError(f"--out: {out.parent}: no such folder")
    if os.path.lexists(out) and not _is_table(out):
        raise UserError(f"--out: {out} exists and is no table of `deepcluster assign`; name another file")


def refuse_nothing(found: Assigned) -> None:
    """DataError if no file has a cluster."""
    if not found.placed():
        raise DataError(f"{plural(len(found.names), 'file')}, of which none can be read: {_failures(found)}")


def summary(found: Assigned, bundle: Bundle) -> list[str]:
    """What was done, for people."""
    outliers, placed = int(found.placement.outliers_N.sum()), len(found.placed())
    lines = [f"{plural(placed, 'image')} by {bundle.name}; {plural(outliers, 'outlier')}"]
    if found.failures:
        lines.append(f"warning: {plural(len(found.failures), 'file')} cannot be read: {_failures(found)}")
    return lines


def _is_table(path: Path) -> bool:
    start = ",".join(COLUMNS).encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _failures(found: Assigned) -> str:
    named = [f"{shown(name)}: {shown(reason)}" for name, reason in list(found.failures.items())[:SHOWN]]
    return "; ".join(named) + ("; ..." if len(found.failures) > SHOWN else "")


def _rows(placement: Placement) -> Iterator[list[str]]:
    """The cells of each image that has a cluster."""
    columns = (column.tolist() for column in vars(placement).values())
    for label, distance, second, second_distance, outlier in zip(*columns, strict=True):
        others = ["", ""] if second < 0 else [str(second), f"{second_distance:.6g}"]
        yield [str(label), f"{distance:.6g}", *others, str(outlier).lower(), ""]
