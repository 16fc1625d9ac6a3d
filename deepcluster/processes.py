"""Processes: who lives, who descends from whom, and how a stage ends with the DVC that started it."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

RWLOCK = Path(".dvc/tmp/rwlock")
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_ADOPTERS = ("systemd", "init", "tini", "docker-init", "dumb-init")


def alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def ancestors() -> list[int]:
    """This process, its parent, and so on up; on systems without /proc these two alone."""
    found = [os.getpid(), os.getppid()]
    while found[-1] > 1:
        try:
            fields = Path(f"/proc/{found[-1]}/stat").read_text(encoding="utf-8", errors="replace")
            found.append(int(fields.rpartition(")")[2].split()[1]))  # the name in brackets may hold anything
        except (OSError, ValueError, IndexError):
            break
    return found


def end_with_parent() -> None:
    """On Linux the system kills this process as soon as its parent has ended. Elsewhere nothing happens.

    DVC killed leaves its stage running, which would go on writing beside the next run. SIGKILL, since a long call into
    a library would put off anything else.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def orphaned(owners: Collection[int]) -> bool:
    """Whether this process descends from none of `owners` and its parent is one that takes in orphans.

    Without the second half a stage that a batch system starts on another machine would count as one.
    """
    if not owners or {*owners} & {*ancestors()}:
        return False
    return os.getppid() == 1 or _name(os.getppid()) in _ADOPTERS


def dvc_writers(path: Path = RWLOCK) -> dict[int, str]:
    """Processes that DVC has down as writing artifacts, living or not, and their commands; none if it cannot tell."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["write"].values()
        return {int(entry["pid"]): str(entry["cmd"]) for entry in entries if entry}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
