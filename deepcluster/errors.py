"""Errors for the person at the keyboard: one clear line, exit code 2, no traceback; and the words of such lines."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend; the message says what, where and how. Shown without a traceback, exit code 2."""

    exit_code = 2


class ParamsError(UserError):
    """params.yaml is missing, empty, or has mistakes; the message lists every one of them."""


class DataError(UserError):
    """A data set or image folder is missing, empty, unreadable or unsuitable."""


class MissingDataError(DataError):
    """A data set's files are not there and could not be downloaded."""


class ArtifactError(UserError):
    """An artifact is missing, damaged, or belongs to another data set, epoch or schema version."""


class RemoteError(UserError):
    """A file behind a URL cannot be read or written: refused, stalled, no network, wrong credentials."""


class NumericsError(UserError):
    """Features or losses are not finite, or a stage's settings do not fit the data (k > N, components > min(N, D))."""


class CollapseError(UserError):
    """The clusters or the features have collapsed; nothing is published, so nothing trains on them."""


class ResourceError(UserError):
    """The work needs more memory or threads than there are; said before it starts, where that can be known."""


class StorageError(UserError):
    """A disk is full, read-only or failing, a file may not be touched, or too many are open.

    What was to be written is not published; what was to be read is not thereby damaged.
    """


class ScheduleError(UserError):
    """The epochs in params.yaml and the unrolled stages in stages/schedule.yaml disagree."""


class RunnerError(UserError):
    """A run cannot go on: an untested DVC, params.yaml changed meanwhile, or DVC reports an error."""


class BusyError(UserError):
    """Another process works in this project, or the one that this work was for has ended."""


class DistributedError(UserError):
    """The processes of one stage were given different things, or a setting that several processes cannot do."""


class LostProcessError(DistributedError):
    """A process that works on the same stage has died, or does not answer; the others stop. Exit code 1."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or an empty string."""
    matches = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def in_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `1 to 3, 5`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`, `1,000 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
