"""Atomic publish: written beside the target, flushed, renamed. A killed process leaves the old artifact or none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    target.parent.mkdir(parents=True, exist_ok=True)
    for leaving in target.parent.glob(f".{target.name}.*.partial"):
        if not _alive(leaving):
            remove(leaving)
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


def remove(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Publish a text file."""
    with publishing(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def _alive(partial: Path) -> bool:
    """Whether the process that writes `partial` still runs."""
    owner = partial.name.split(".")[-2]
    if not owner.isdigit() or int(owner) == os.getpid():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _replace(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`; a folder in the way steps aside first, since rename cannot replace it."""
    if not target.is_dir():
        partial.replace(target)
        return
    aside = target.parent / f".{target.name}.{os.getpid()}.old.partial"
    target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
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
