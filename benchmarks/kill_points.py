"""Where benchmarks.kills ends a process: chosen from the events of an undisturbed run, the same ones every time."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Literal, NamedTuple

Which = Literal["first", "middle", "last"]
Moment = Literal["before", "after", "half"]
SIGNALS = (SIGKILL, SIGKILL, SIGINT, SIGKILL, SIGKILL, SIGTERM)


class Event(NamedTuple):
    """What a process did, in which DVC stage if it is in one, and how many times it has done that by now."""

    process: str
    stage: str
    what: str
    number: int


class Kind(NamedTuple):
    """A kind of point: its name, whose events, which of them, and when."""

    name: str
    of_stage: bool
    pattern: str
    which: Which
    moment: Moment


@dataclass(frozen=True)
class Point:
    """One point. `action`: the signal, or `dvc`, when DVC alone is killed and its stage lives on."""

    name: str
    event: Event
    moment: Moment
    action: int | Literal["dvc"]


CACHE = r"(?:link|rename) \.dvc/cache/files"
RUNS = r"\.dvc/cache/runs"
KINDS = (
    Kind("before its first input is read", True, "read data/", "first", "before"),
    Kind("as it begins to write", True, r"(?:mkdir|write) .*\.partial", "first", "after"),
    Kind("in the middle of writing", True, r"write data/.*\.partial", "middle", "after"),
    Kind("while it flushes", True, r"read data/.*\.partial", "middle", "before"),
    Kind("just before it publishes", True, r"rename data/(?!.*partial)", "first", "before"),
    Kind("just after it has published", True, r"rename data/(?!.*partial)", "first", "after"),
    Kind("after its last output", True, r"rename data/(?!.*partial)", "last", "after"),
    Kind("while it notes its time", True, r"write data/timings\.csv", "first", "after"),
    Kind("DVC takes its lock", False, r"write \.dvc/tmp/lock", "first", "after"),
    Kind("DVC lists who writes", False, r"write \.dvc/tmp/rwlock$", "middle", "before"),
    Kind("DVC's list is empty", False, r"write \.dvc/tmp/rwlock$", "first", "after"),
    Kind("DVC's list is half written", False, r"write \.dvc/tmp/rwlock$", "last", "half"),
    Kind("DVC asks its database", False, "sql SELECT", "middle", "before"),
    Kind("DVC writes to its database", False, "sql (?:INSERT|UPDATE|REPLACE)", "middle", "before"),
    Kind("DVC ends a transaction", False, "sql COMMIT", "last", "before"),
    Kind("first file into the cache", False, CACHE, "first", "before"),
    Kind("a file into the cache", False, CACHE, "middle", "after"),
    Kind("last file into the cache", False, CACHE, "last", "after"),
    Kind("the run-cache's entry is empty", False, f"write {RUNS}", "first", "after"),
    Kind("the run-cache's entry is half written", False, f"write {RUNS}", "first", "half"),
    Kind("the run-cache's entry gets its name", False, f"rename {RUNS}", "first", "before"),
    Kind("DVC's .gitignore", False, r"write data/.*\.gitignore", "first", "after"),
    Kind("before dvc.lock is written", False, r"(?:write|rename) dvc\.lock$", "first", "before"),
    Kind("dvc.lock is empty", False, r"write (?:dvc\.lock|\.dvc\.lock.*partial)$", "first", "after"),
    Kind("dvc.lock is half written", False, r"write (?:dvc\.lock|\.dvc\.lock.*partial)$", "first", "half"),
    Kind("dvc.lock is written", False, r"(?:write|rename) dvc\.lock$", "last", "after"),
    Kind("at the end", False, ".*", "last", "after"),
)


def read_trace(text: str) -> list[Event]:
    lines = [line.split("\t") for line in text.splitlines()]
    return [Event(process, stage, what, int(number)) for process, stage, what, number in lines]


def points(trace: Sequence[Event], count: int, used: Counter[str]) -> Iterator[Point]:
    """Points of the kinds that there are and that have come up least so far, which `used` counts."""
    there = {kind.name: (kind, event) for kind in KINDS if (event := find(trace, kind)) is not None}
    for name in sorted(there, key=lambda name: used[name])[:count]:
        kind, event = there[name]
        action = SIGNALS[used.total() % len(SIGNALS)]
        used[name] += 1
        yield Point(name, event, kind.moment, action)


def find(trace: Sequence[Event], kind: Kind) -> Event | None:
    """The event of that kind, or None. In `deepcluster run` one process is DVC and all stages."""
    found = [
        event
        for event in trace
        if bool(event.stage) == kind.of_stage and event.process and re.match(kind.pattern, event.what)
    ]
    if not found:
        return None
    match kind.which:
        case "first":
            return found[0]
        case "middle":
            return found[len(found) // 2]
        case "last":
            return found[-1]
