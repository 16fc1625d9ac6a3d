"""A check's outcome, and checks carried out so that one that crashes is an outcome too."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What was found under `name`, in one line; where something is wrong, also what to do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""


Checks = Callable[[], Iterator[Check]]


def carried_out(checks: Sequence[tuple[str, Checks]]) -> Iterator[Check]:
    """All that the checks find, in order. One that raises ends in a failure of its name; the others go on."""
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever a broken installation raises
            yield Check(
                name, "fail", f"{type(error).__name__}: {one_line(error)}", "reinstall deepcluster, or report this"
            )


def one_line(error: BaseException | str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def as_lines(found: Sequence[Check]) -> list[str]:
    """A line each: state, name, what was found, after a dash the remedy."""
    width = max((len(check.name) for check in found), default=0)
    return [
        f"{check.state:<4}  {check.name:<{width}}  {_printable(check.found)}"
        + (f" - {_printable(check.remedy)}" if check.remedy else "")
        for check in found
    ]


def as_json(found: Sequence[Check]) -> dict[str, Any]:
    """The same for machines, and whether nothing failed."""
    return {"ok": all(check.state != "fail" for check in found), "checks": [asdict(check) for check in found]}


def _printable(text: str) -> str:
    """Without line breaks, control characters and bytes that are no text: a line a check, whatever files are called."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
