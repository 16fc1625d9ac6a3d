"""Atomic publish: written beside the target, flushed, renamed. A killed process leaves the old artifact or none."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepcluster import layout, processes
from deepcluster.errors import StorageError

_LEAVING = re.compile(r"\..+\.(\d+)(?:\.old)?\.partial")


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; renamed to `target` when the block ends without an error.

    Everything is flushed to the disk before the rename, so a killed process leaves the old artifact or none.
    Leavings of killed processes are removed on the way. An OSError of writing names `target`, not the place beside it.
    """
    try:
        with _beside(target) as partial:
            yield partial
    except OSError as error:
        if error.filename is None or f".{target.name}.{os.getpid()}." in os.fsdecode(error.filename):
            error.filename = str(target)
        raise


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    _make_folder(target.parent)
    remove_leavings(target.parent, of=target.name)
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    remove(partial)
    try:
        yield partial
        _flush(partial)
        _replace(partial, target)
    except BaseException:
        with suppress(OSError):  # what made the writing fail may stop this too; the next publish removes the leavings
            remove(partial)
        raise
    _fsync(target.parent)


@contextmanager
def publishing_from(folder: Path, target: Path) -> Iterator[None]:
    """`folder`, to be written to, is moved to `target` when the block ends without an error; after one it stays.

    For what somebody may go on with after a kill. It is flushed where it lies: what follows takes a moment.
    """
    yield
    _flush(folder)
    with publishing(target) as partial:
        shutil.move(folder, partial)


def remove(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leavings(folder: Path, *, of: str | None = None, depth: int = 0) -> None:
    """Delete what killed processes left of their publishing in `folder`, and in folders to a `depth` below it.

    Of one target, if `of` names it. What belongs to another living process stays.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        owner = _LEAVING.fullmatch(path.name)
        if owner is None:
            if depth and path.is_dir() and not path.is_symlink():
                remove_leavings(path, of=of, depth=depth - 1)
        elif (of is None or path.name.startswith(f".{of}.{owner[1]}.")) and not _of_another(int(owner[1])):
            remove(path)


def write_text(target: Path, text: str) -> None:
    """Publish a text file."""
    with publishing(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def _make_folder(folder: Path) -> None:
    """The folder with those above it; StorageError where in `data` a file or a dead link is in their place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        above = (folder, *folder.parents)
        found = next(place for place in above if os.path.lexists(place) and not place.is_dir())
        if layout.DATA not in (found, *found.parents):  # a place that was named: who asked for it says which
            raise
        kind = "a link to what is not there" if found.is_symlink() else "a file"
        raise StorageError(f"{found}: must be a folder, is {kind}; mend or remove it, then start again") from error


def _of_another(owner: int) -> bool:
    return owner != os.getpid() and processes.alive(owner)


def _replace(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`; a folder in the way steps aside first, since rename cannot replace it."""
    if not target.is_dir():
        partial.replace(target)
        return
    aside = target.parent / f".{target.name}.{os.getpid()}.old.partial"
    remove(aside)
    target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
        if not target.exists():
            aside.rename(target)
        raise
    remove(aside)


def _flush(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))
    if path.is_file():
        _fsync(path)


def _fsync(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
