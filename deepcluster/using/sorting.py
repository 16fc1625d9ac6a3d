"""`deepcluster sort`: the images of a folder in one folder for each cluster, as copies or links. Originals stay."""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from deepcluster import artifacts
from deepcluster.errors import DataError, UserError
from deepcluster.progress import counted
from deepcluster.using.assigning import COLUMNS, Assigned, as_csv

TABLE = "labels.csv"
FILE = "file"
LONGEST = 255  # bytes of a name on most file systems


def refuse_folders(folder: Path, into: Path, *, force: bool) -> None:
    """UserError unless images of `folder` may be laid out in `into`: a folder apart, new or empty.

    With `force` also one that `sort` made, as long as it holds nothing else: that is replaced.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: {'is not a folder' if os.path.exists(folder) else 'no such folder'}")
    source, target = folder.resolve(), into.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UserError(f"--into: {into} and {folder} lie one in the other; name a folder apart from the images")
    if Path.cwd().is_relative_to(target):
        raise UserError(f"--into: {into} is the current folder, or holds it; name a new folder")
    if not os.path.isdir(into.parent):
        raise UserError(f"--into: {into.parent}: no such folder")
    if os.path.exists(into) and not into.is_dir():
        raise UserError(f"--into: {into} is a file; name a folder")
    if os.path.isdir(into) and os.listdir(into):
        _refuse_others(into, force=force)


def lay_out(found: Assigned, into: Path, *, k: int, copy: bool) -> None:
    """Publish `into`, in one step: folders 00, 01, ... of copies or relative symbolic links, and labels.csv.

    The table has a row for every file and says where it lies now; files that cannot be read are in the table only.
    """
    target = Path(os.path.realpath(into))  # links are relative to where they really lie
    places = dict(_places(found, width=max(2, len(str(k - 1)))))
    try:
        with artifacts.publishing(target) as partial:
            partial.mkdir()
            for folder in sorted({place.parent for place in places.values()}):
                (partial / folder).mkdir()
            for name, place in counted(places.items(), "sort", len(places), "images", lambda _: 1):
                if copy:
                    shutil.copy2(name, partial / place)
                else:
                    (partial / place).symlink_to(os.path.relpath(os.path.realpath(name), target / place.parent))
            table = as_csv(found, {name: str(place) for name, place in places.items()}, FILE)
            (partial / TABLE).write_text(table, encoding="utf-8", newline="")
    except OSError as error:
        hint = "" if copy else "; --copy needs no links"
        raise UserError(f"--into: {into} cannot be written: {error.strerror or error}{hint}") from None


def _places(found: Assigned, *, width: int) -> Iterator[tuple[str, PurePosixPath]]:
    """(file, its place below the target) of every image that has a cluster.

    Names that two images of a cluster share, upper and lower case being one as on some file systems, get -2, -3, ...
    """
    taken: set[tuple[int, str]] = set()
    names = dict(zip(found.placed(), found.placement.labels_N.tolist(), strict=True))
    for name, label in names.items():
        path, number = PurePosixPath(name), 1
        chosen = path.name
        while (label, chosen.casefold()) in taken:
            number += 1
            chosen = _numbered(path.stem, path.suffix, number)
        taken.add((label, chosen.casefold()))
        yield name, PurePosixPath(f"{label:0{width}}") / chosen


def _numbered(stem: str, suffix: str, number: int) -> str:
    """`stem-2.png`, the stem cut where the name would be too long for a file system."""
    ending = f"-{number}{suffix}"
    room = LONGEST - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending


def _refuse_others(into: Path, *, force: bool) -> None:
    """UserError for a folder that is not empty, unless it is an earlier layout and nothing else, and `force`."""
    ours = _laid_out(into)
    if ours is None:
        raise UserError(f"--into: {into} is not empty; name a new folder")
    found = (path for path in sorted(into.rglob("*")) if path.is_symlink() or not path.is_dir())
    others = [name for path in found if (name := path.relative_to(into).as_posix()) not in ours]
    if others:
        raise UserError(f"--into: {into} holds what was not laid out there, such as {others[0]!r}; name a new folder")
    if not force:
        raise UserError(f"--into: {into} is not empty; --force replaces what an earlier `deepcluster sort` laid out")


def _laid_out(into: Path) -> set[str] | None:
    """The files of an earlier layout, by its table; None if there is none."""
    try:
        with (into / TABLE).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error):
        return None
    if tuple(reader.fieldnames or ()) != (*COLUMNS, FILE):
        return None
    return {row[FILE] for row in rows} | {TABLE}
