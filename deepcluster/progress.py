"""Progress for people, on stderr: a bar on a terminal, one plain line at the end elsewhere (logs, CI, pipes)."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
Report = Callable[[int, int], None]
LEAST_SECONDS = 0.05


@contextmanager
def reporting(label: str, unit: str, start: int = 0) -> Iterator[Report]:
    """A function to be told (units done, units in total); `start` of them were done before."""
    started, latest = time.perf_counter(), start
    if not sys.stderr.isatty():

        def count(done: int, total: int) -> None:
            nonlocal latest
            latest = done

        yield count
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None, completed=start)

            def draw(done: int, total: int) -> None:
                nonlocal latest
                latest = done
                bar.update(task, completed=done, total=total)

            yield draw
    seconds = time.perf_counter() - started
    done = latest - start
    counted = f": {done:,} {unit}{_rate(done, seconds)}" if done else ""
    print(f"{label}{counted}, {seconds:.1f} s", file=sys.stderr)


def _rate(done: int, seconds: float) -> str:
    """`, 44/s`; nothing where that would say nothing: below one a second, and of what took no time (shown as 0.0 s)."""
    return f", {done / seconds:,.0f}/s" if LEAST_SECONDS <= seconds <= done else ""


def counted(
    items: Iterable[T],
    label: str,
    total: int,
    unit: str,
    size: Callable[[T], int] = len,  # type: ignore[assignment]
    start: int = 0,
) -> Iterator[T]:
    """`items` passed through, `size` of each counted from `start` towards `total`; by default an item's length."""
    with reporting(label, unit, start) as report:
        done = start
        for item in items:
            done += size(item)
            report(done, total)
            yield item
