"""Inside the processes that benchmarks.kills watches: writes down what they do to files, and ends them at one point.

Python imports this file as `sitecustomize` from a folder on PYTHONPATH, so that every process of a command has it. A
point is the n-th time that a kind of process does a kind of thing to a file: an event of Python's auditing (open,
rename, link, remove, ...), a statement of sqlite, or its start. No clock decides anything.

    KILLS_TRACE   file that gets a line for each event: what is done to what, by whom
    KILLS_POINT   JSON: process, event, number, moment (before it; after it, when a file opened for writing is still
                  empty; half, when half of the next text is in it), action (a signal's number, or `dvc`: DVC alone is
                  killed), marker (file that is made when it happens), release (file to wait for afterwards, or null)
"""

import builtins
import io
import json
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from typing import Any

ROOT = os.getcwd()
DATA, DVC = os.path.join(ROOT, "data"), os.path.join(ROOT, ".dvc")
SITE = os.environ.get("DVC_SITE_CACHE_DIR", "")
PATHS = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.symlink": 1, "open": 0}
HASHES = re.compile(r"(\.dvc/cache/(?:files/md5|runs)/).*")
RANDOM = re.compile(r"[0-9A-Za-z_-]{22}(?=\.tmp|$)|(?<=\.)(?:\d+|[0-9a-f]{32})(?=\.(?:old\.)?partial)")


def process() -> str:
    """Which of the processes this is: run, dvc or a stage's module; nothing for those that are let alone."""
    words = sys.orig_argv
    for word in words:
        if word.startswith("stages."):
            return word
    if any(os.path.basename(word) == "dvc" for word in words[:2]):
        return "dvc"
    if "run" in words and any("deepcluster" in word for word in words):
        return "run"
    return ""


def place(path: Any) -> str | None:
    """A file of the project as it is called in a point, without what is drawn at random; None for any other file."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    full = os.path.join(ROOT, os.fsdecode(path))
    if SITE and full.startswith(SITE):
        return "site/" + os.path.basename(full)
    if not full.startswith(ROOT + os.sep):
        return None
    name = os.path.relpath(full, ROOT)
    if name.startswith((".git" + os.sep, "deepcluster", "stages" + os.sep)) and not name.endswith("partial"):
        return None
    return RANDOM.sub("*", HASHES.sub(r"\1*", name))


class Watch(threading.local):
    """What this thread is about to do; `Events` of the process counts it and may act on it."""

    busy = False
    pending: str | None = None


class Events:
    """Counts the events of this process, and acts at its point."""

    def __init__(self, who: str, trace: str | None, point: dict[str, Any] | None) -> None:
        self.who, self.trace, self.point = who, trace, point
        self.counts: dict[str, int] = {}
        self.thread = Watch()
        self.lock = threading.Lock()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in PATHS or self.thread.busy:
            return
        found = place(arguments[PATHS[event]])
        if found is None:
            return
        what = event.removeprefix("os.")
        if event == "open":
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR) if isinstance(arguments[2], int) else 0
            if not writes and not found.startswith("data"):
                return
            what = "write" if writes else "read"
        self.seen(f"{what} {found}")

    def seen(self, what: str) -> None:
        """Count an event that is about to happen."""
        self.thread.busy = True
        with self.lock:
            number = self.counts[what] = self.counts.get(what, 0) + 1
            self.write_down(what, number)
            point = self.point
            hit = point and (point["process"], point["event"], point["number"]) == (self.who, what, number)
        self.thread.busy = False
        if point and hit:
            self.thread.pending = point["moment"]
            self.reached("before")

    def write_down(self, what: str, number: int) -> None:
        if self.trace:
            file = os.open(self.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, f"{self.who}\t{os.environ.get('DVC_STAGE', '')}\t{what}\t{number}\n".encode())
            os.close(file)

    def reached(self, moment: str) -> bool:
        """Act, if this thread's event is the point's and this is its moment."""
        point = self.point
        if point is None or self.thread.pending != moment:
            return False
        self.point = self.thread.pending = None
        self.thread.busy = True
        with open(point["marker"], "x") as file:
            file.write(f"{os.getpid()}\n")
        if point["action"] == "dvc":
            os.kill(owner(), signal.SIGKILL)
        elif point["action"] == signal.SIGINT:
            os.killpg(os.getpgrp(), signal.SIGINT)  # as a terminal does
        else:
            os.kill(os.getpid(), point["action"])
        while point["release"] and not os.path.exists(point["release"]):
            time.sleep(0.02)
        self.thread.busy = False
        return True


def owner() -> int:
    """The DVC that started this stage, maybe through shells."""
    number = os.getppid()
    while True:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            if any(os.path.basename(word) == b"dvc" for word in file.read().split(b"\0")[:2]):
                return number
        with open(f"/proc/{number}/stat", "rb") as file:
            number = int(file.read().rpartition(b")")[2].split()[1])


class Half:
    """A text file of whose next text one half gets written before the point is reached."""

    def __init__(self, file: Any, events: Events) -> None:
        self.file, self.events = file, events

    def write(self, text: Any) -> Any:
        if self.events.point is None:
            return self.file.write(text)
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        self.events.reached("half")
        return self.file.write(text[len(text) // 2 :])

    def __enter__(self) -> "Half":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def install(events: Events) -> None:
    """Follow this process's auditing events, what it opens, and its statements of sqlite."""
    opened, connect = builtins.open, sqlite3.connect

    def watching_open(*arguments: Any, **named: Any) -> Any:
        file = opened(*arguments, **named)
        events.reached("after")
        return Half(file, events) if events.thread.pending == "half" else file

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> Any:
            events.seen(f"sql {statement.split()[0].upper()}")
            return super().execute(statement, *values)

    builtins.open = io.open = watching_open
    sqlite3.connect = lambda *arguments, **named: connect(*arguments, **{"factory": Connection} | named)
    for name in ("open", "rename", "replace", "link", "mkdir"):
        setattr(os, name, followed(getattr(os, name), events))
    sys.addaudithook(events.audit)
    events.seen("start")


def followed(call: Any, events: Events) -> Any:
    """`call`, and after it the point that waits for its end."""

    def following(*arguments: Any, **named: Any) -> Any:
        found = call(*arguments, **named)
        events.reached("after")
        return found

    return following


def main() -> None:
    who = process()
    point = json.loads(os.environ["KILLS_POINT"]) if "KILLS_POINT" in os.environ else None
    if who and (point or "KILLS_TRACE" in os.environ):
        install(Events(who, os.environ.get("KILLS_TRACE"), point))


if __name__ == "sitecustomize":
    main()
