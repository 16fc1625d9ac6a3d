"""Stages that the machine refuses something at every point: writes that fail, a small disk, limits.

The current folder is the project's; the stages are called as functions, as `deepcluster run` does.
"""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from deepcluster import artifacts
from deepcluster.errors import UserError

CHANGES = {"os.mkdir", "os.rename", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Writes:
    """Calls below `root` that change the disk, counted; the one numbered `failing` (from 1) raises this errno."""

    root: Path
    failing: int | None = None
    number: int = errno.ENOSPC
    seen: int = 0
    calls: list[str] = field(default_factory=list)

    def happens(self, call: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = Path(os.path.abspath(os.fsdecode(path)))
        there = call == "os.mkdir" and place.is_dir()  # changes nothing
        if there or not place.is_relative_to(self.root) or "__pycache__" in place.parts:
            return
        self.count(call, place)

    def count(self, call: str, place: Path | None) -> None:
        self.seen += 1
        self.calls.append(f"{call} {'' if place is None else place.relative_to(self.root)}".rstrip())
        if self.seen == self.failing:
            raise OSError(self.number, os.strerror(self.number), *([str(place)] if place else []))


_active: Writes | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active is None:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        _active.happens("open", arguments[0])
    elif event in CHANGES:
        _active.happens(event, arguments[1 if event == "os.rename" else 0])


@contextmanager
def writes(root: Path, failing: int | None = None, number: int = errno.ENOSPC) -> Iterator[Writes]:
    """Counts, and may fail, whatever creates, writes, flushes or renames below `root` in the block, in any thread."""
    global _active, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # there is no way to take it back: it does nothing while none is active
        _hooked = True
    found = Writes(root.resolve(), failing, number)
    pwritev, fsync = os.pwritev, os.fsync

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any) -> Any:
            found.count(name, None)
            return call(*arguments)

        return calling

    with mock.patch("os.pwritev", counted("pwritev", pwritev)), mock.patch("os.fsync", counted("fsync", fsync)):
        _active = found
        try:
            yield found
        finally:
            _active = None


@dataclass(frozen=True)
class Refusal:
    """A fault and what came of it. wrong: artifacts that afterwards were neither absent nor as in the undisturbed run.

    message: the error's line, empty if the stage did its work all the same; recovered: the same command again, without
    the fault, ended with the undisturbed run's bytes (None: not tried).
    """

    what: str
    message: str
    wrong: list[str]
    recovered: bool | None = None


def digests(outputs: list[Path]) -> dict[str, str]:
    """sha256 of every file of these artifacts."""
    files = [file for path in outputs for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def refused(work: Callable[[], None], outputs: list[Path], fault: Any, what: str, *, recover: bool = True) -> Refusal:
    """`work` under `fault` (a context manager), from outputs that are not there; then again without it.

    An error that is no UserError (as it would be shown with a traceback) passes through.
    """
    undisturbed = digests(outputs)
    for path in outputs:
        artifacts.remove(path)
    message = ""
    with fault:
        try:
            work()
        except UserError as error:
            message = str(error)
    found = digests(outputs)
    wrong = sorted(name for name, digest in found.items() if undisturbed.get(name) != digest)
    wrong += [str(path) for path in outputs if path.is_dir() and _missing(path, found, undisturbed)]
    if not recover:
        return Refusal(what, message, wrong)
    work()
    left = [path for output in outputs for path in output.parent.glob(".*.partial")]
    return Refusal(what, message, wrong, digests(outputs) == undisturbed and not left)


def _missing(folder: Path, found: dict[str, str], undisturbed: dict[str, str]) -> bool:
    """Whether files of a published folder are not there."""
    return any(name not in found for name in undisturbed if Path(name).is_relative_to(folder))


def failing_writes(work: Callable[[], None], outputs: list[Path], *, every: int = 1) -> Iterator[Refusal]:
    """`work` with each of its writes failing in turn (each `every`-th), for want of space."""
    for path in outputs:
        artifacts.remove(path)
    with writes(Path.cwd()) as counted:
        work()
    for failing in range(1, counted.seen + 1, every):
        yield refused(work, outputs, writes(Path.cwd(), failing), counted.calls[failing - 1])


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`, in memory; needs root on Linux (CalledProcessError else)."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """The disk of `folder` filled up but for about `left` bytes."""
    ballast, free = folder / ".ballast", os.statvfs(folder)
    with ballast.open("wb") as file, suppress(OSError):
        for _ in range(max(0, free.f_bavail * free.f_frsize - left) // 4096):
            file.write(bytes(4096))
        file.flush()
    try:
        yield
    finally:
        ballast.unlink()


def limited(command: list[str], *, limit: str, environment: dict[str, str]) -> tuple[int, str]:
    """(exit code, what it said on stderr) of a command under a limit of the shell, e.g. `ulimit -n 20`."""
    script = f'{limit}; exec "$@"'
    found = subprocess.run(
        ["bash", "-c", script, "bash", *command], capture_output=True, text=True, env=environment, timeout=900
    )
    return found.returncode, found.stderr
