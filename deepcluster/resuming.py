"""What a stage has done so far, kept beside the artifacts so that a killed stage goes on instead of starting over.

It lies in data/progress, which is no stage's output: DVC removes those before it runs a stage. It is used only where
all that decides the stage's bytes is the same (`Key`); anything else, or anything damaged, is dropped with one line.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from deepcluster import artifacts, environment
from deepcluster.errors import ArtifactError, RemoteError

SECONDS = 60.0
LEAST_SHARE = 50  # keeping takes at most a fiftieth of the time, unless DEEPCLUSTER_PROGRESS_SECONDS says otherwise
PATIENCE = 2.0  # seconds in which the system frees what a process held that was killed just now
STATE, LOCK = "state.safetensors", "lock"

Arrays = Mapping[str, artifacts.Array]


def seconds_between() -> float:
    """DEEPCLUSTER_PROGRESS_SECONDS, a number from 0 on, by default 60; UserError if it is something else."""
    return environment.number("DEEPCLUSTER_PROGRESS_SECONDS", SECONDS, lambda found: found >= 0, "a number from 0 on")


class Key:
    """What progress belongs to: named digests of all that decides a stage's bytes.

    The inputs' content is read only when it is asked for, since a short stage never asks; if a file is no longer the
    one that it was when the stage began, there is no key. Nor where an input lies behind a URL without a receipt.
    """

    def __init__(self, settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
        self._named = {name: _sha256(json.dumps(value, sort_keys=True).encode()) for name, value in settings.items()}
        self._inputs = dict(inputs)
        self._stamps = self._stamped()

    def digests(self) -> dict[str, str] | None:
        """Of everything, by name; None if an input has changed meanwhile, or cannot be told from another one."""
        try:
            if self._stamped() != self._stamps:
                return None
            found = {name: _content(path) for name, path in self._inputs.items()}
            content = {name: digest for name, digest in found.items() if digest is not None}
            if len(content) < len(found) or self._stamped() != self._stamps:
                return None
        except RemoteError:  # the stage itself will meet it, or it passes
            return None
        return self._named | content

    def _stamped(self) -> list[tuple[object, ...]]:
        return [stamp for path in self._inputs.values() for stamp in _stamps(path)]


class Progress:
    """A stage's progress in one folder, which one process at a time may use; a context that gives it back.

    label: the stage, for people. once: what is kept need not be kept again (the arrays lie elsewhere in the folder).
    keeps: False for a process beside the one that keeps it; it finds nothing, and stops where that one does.
    """

    def __init__(self, label: str, folder: Path, key: Key, *, once: bool = False, keeps: bool = True) -> None:
        self.label, self.folder = label, folder
        self._key, self._once, self._keeps = key, once, keeps
        self._digests: dict[str, str] | None = None
        self._lock: int | None = None
        self._caught: int | None = None
        self._silent = False
        self._held = "is in use by another process"
        self._seconds = seconds_between()
        self._next = time.monotonic() + self._seconds

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            if not (self.folder / STATE).exists():  # then nothing in there can be used
                self._remove()
            self._release()

    def claim(self) -> bool:
        """Whether this process has the folder now, which it then keeps; the system frees a killed process's.

        What another one left there in the meantime is removed.
        """
        if self._keeps and self._lock is None and self._acquire():
            self._empty()
        return self._lock is not None

    def found(self) -> dict[str, artifacts.Array] | None:
        """The arrays that an interrupted run of the same key kept; None if there are none, with a line why."""
        if not self._keeps or not self.folder.is_dir():
            return None
        if not self._acquire(PATIENCE):
            self._say(f"starts over: {self.folder} {self._held}")
            return None
        arrays, reason = self._read()
        if arrays is None:
            if reason:
                self._say(f"starts over: {reason}")
            self._empty()
        return arrays

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM take effect at the next boundary, once progress is kept; a second one does at once."""
        before: dict[int, Any] = {}

        def note(number: int, _: FrameType | None) -> None:
            self._caught = number
            restore()
            if not self._keeps:
                return
            with contextlib.suppress(OSError):  # not print, which a signal may have interrupted itself
                os.write(2, f"{self.label}: stops after this step; once more stops at once\n".encode())

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            restore()
            self._obey()

    def boundary(self, arrays: Callable[[], Arrays], agree: Callable[[int], int] | None = None) -> None:
        """Between two steps: keep these arrays if it is time, or if the process is to stop, which it then does.

        agree: of processes that must stop after the same step; given the signal caught here, or 0, that of any of them.
        """
        caught = self._caught or 0
        stop = caught if agree is None else agree(caught)
        if stop or time.monotonic() >= self._next:
            if self._keeps:
                self._keep(arrays)
            if agree is None:
                self._obey()
        if agree is not None and stop:
            self._caught = stop
            self._obey()

    def beside(self) -> dict[str, artifacts.Array]:
        """The arrays that the process that keeps them has found; ArtifactError if they are not to be seen here."""
        return artifacts.read_progress(self.folder / STATE)[0]

    def clear(self) -> None:
        """Remove all of it and give the folder back: the stage has published."""
        if self._lock is not None:
            (self.folder / STATE).unlink(missing_ok=True)  # first, so that a kill leaves nothing that could be used
            self._remove()
            self._release()

    def _acquire(self, patience: float = 0.0) -> bool:
        until = time.monotonic() + patience
        try:
            while (lock := _locked(self.folder)) is None and time.monotonic() < until:
                time.sleep(0.05)
            self._lock = lock
        except OSError as error:  # such as a file system without locks: nothing is kept then
            self._held = f"cannot be locked ({error.strerror})"
        return self._lock is not None

    def _release(self) -> None:
        assert self._lock is not None
        os.close(self._lock)
        self._lock = None

    def _remove(self) -> None:
        artifacts.remove(self.folder)
        with contextlib.suppress(OSError):  # other stages' progress
            self.folder.parent.rmdir()

    def _keep(self, arrays: Callable[[], Arrays]) -> None:
        """Failing to is said once; the work goes on."""
        begun, kept = time.monotonic(), False
        try:
            if self._digests is None:
                self._digests = self._key.digests()
            if self._digests is not None and self.claim():
                begun = time.monotonic()
                artifacts.write_progress(self.folder / STATE, arrays(), self._digests)
                kept = True
        except (OSError, MemoryError) as error:
            if not self._silent:
                self._say(f"cannot keep its progress: {getattr(error, 'strerror', None) or 'not enough memory'}")
            self._silent = True
        now = time.monotonic()
        cost = 0.0 if os.environ.get("DEEPCLUSTER_PROGRESS_SECONDS") else now - begun
        self._next = math.inf if kept and self._once else now + max(self._seconds, LEAST_SHARE * cost)

    def _obey(self) -> None:
        """Let the signal that was caught do what it does by itself."""
        caught, self._caught = self._caught, None
        if caught is not None:
            signal.raise_signal(caught)

    def _read(self) -> tuple[dict[str, artifacts.Array] | None, str | None]:
        """The arrays, or None and why there are none that can be used."""
        if not (self.folder / STATE).exists():
            return None, None
        try:
            arrays, key = artifacts.read_progress(self.folder / STATE)
        except ArtifactError:
            return None, "what an interrupted run left is damaged"
        own = self._digests = self._key.digests()
        if own is None:
            return None, "its inputs are being written"
        if differing := sorted(name for name in own.keys() | key.keys() if own.get(name) != key.get(name)):
            return None, f"what an interrupted run left was of other {', '.join(differing)}"
        return arrays, None

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name != LOCK:
                artifacts.remove(path)

    def _say(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr)


def _locked(folder: Path) -> int | None:
    """A descriptor of the folder's lock, made if need be, that holds it; None if another process does."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # removed in between by a process that has finished
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _stamps(path: Path) -> list[tuple[object, ...]]:
    if _behind_a_url(path):
        return [(path, artifacts.receipt(path))]
    found = [(file, file.stat()) for file in _files(path)]
    return [(file, status.st_ino, status.st_size, status.st_mtime_ns) for file, status in found]


def _behind_a_url(path: Path) -> bool:
    return not path.exists() and artifacts.elsewhere(path) is not None


def _files(path: Path) -> list[Path]:
    """The file, or all files in the folder, in a fixed order."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _content(path: Path) -> str | None:
    """sha256 over names and contents of a file or of all files in a folder; None if it is not known behind a URL."""
    if _behind_a_url(path):
        return artifacts.receipt(path)
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path).as_posix()} {found}\n".encode())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
