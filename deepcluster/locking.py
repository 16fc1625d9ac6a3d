"""Who works in this project: locks that the system frees when their process ends, however it ends.

They lie in .dvc/tmp, so a copy of the project, an experiment's for one, has its own. Where DVC is not set up, or files
cannot be locked, there are none.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcluster.errors import BusyError
from deepcluster.processes import alive, ancestors

DVC = Path(".dvc")
FOLDER = DVC / "tmp/deepcluster"
RUN = "run"
_NO_LOCK = -1
_GLANCES = 20  # of a twentieth of a second


@contextmanager
def only_run() -> Iterator[None]:
    """For `deepcluster run`; BusyError while another one works in this project, before anything is changed."""
    file = _take(RUN)
    for _ in range(_GLANCES):
        holder = _holder(RUN)
        if file is not None or (holder is not None and alive(holder)):
            break
        time.sleep(0.05)  # a stage that only looks (`refuse_beside_run`) leaves no number, and goes on at once
        file = _take(RUN)
    if file is None:
        raise BusyError(f"{_named(RUN)} is a `deepcluster run` in this project; wait until it has ended, or end it")
    with _holding(file):
        yield


def refuse_beside_run(stage: str) -> None:
    """BusyError for a stage that DVC starts while `deepcluster run` works here, unless that is what started it."""
    file = _take(RUN)
    if file is not None:
        _free(file)
    elif _holder(RUN) not in ancestors():
        raise BusyError(f"{stage}: {_named(RUN)} is a `deepcluster run` in this project; wait until it has ended")


@contextmanager
def only_writer(stage: str) -> Iterator[None]:
    """One process at a time in a stage, such as train@3: another one, left behind by a killed DVC, is waited for."""
    file = _take(stage)
    if file is None:
        print(f"{stage}: {_named(stage)} still works on it; waiting for it to end", file=sys.stderr, flush=True)
        file = _take(stage, wait=True)
    assert file is not None
    with _holding(file):
        yield


def _named(lock: str) -> str:
    holder = _holder(lock)
    return "another process" if holder is None else f"process {holder}"


def _holder(lock: str) -> int | None:
    """The number that the lock's holder wrote there; None while there is none."""
    try:
        return int((FOLDER / lock).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def _holding(file: int) -> Iterator[None]:
    try:
        if file != _NO_LOCK:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if file != _NO_LOCK:
            os.ftruncate(file, 0)
        _free(file)


def _take(lock: str, *, wait: bool = False) -> int | None:
    """A file descriptor that holds the lock, None while another process does, _NO_LOCK where there can be none."""
    if not DVC.is_dir():
        return _NO_LOCK
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        file = os.open(FOLDER / lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a project to read only; what it lacks is said by whoever writes
        return _NO_LOCK
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(file)
        return None
    except OSError:  # a file system without locks
        os.close(file)
        return _NO_LOCK
    except KeyboardInterrupt:
        os.close(file)
        raise
    return file


def _free(file: int) -> None:
    if file != _NO_LOCK:
        os.close(file)
