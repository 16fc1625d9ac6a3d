"""Progress for people, on stderr: a bar on a terminal, one plain line at the end elsewhere (logs, CI, pipes)."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
Report = Callable[[int, int], None]


@contextmanager
def reporting(label: str, unit: str) -> Iterator[Report]:
    """A function to be told (units done, units in total)."""
    started, latest = time.perf_counter(), 0
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
            task = bar.add_task(label, total=None)

            def draw(done: int, total: int) -> None:
                nonlocal latest
                latest = done
                bar.update(task, completed=done, total=total)

            yield draw
    seconds = time.perf_counter() - started
    rate = f": {latest:,} {unit}, {latest / max(seconds, 1e-9):,.0f}/s" if latest else ""
    print(f"{label}{rate}, {seconds:.1f} s", file=sys.stderr)


def counted(items: Iterable[T], label: str, total: int, unit: str, size: Callable[[T], int] = len) -> Iterator[T]:  # type: ignore[assignment]
    """`items` passed through, `size` of each counted towards `total`; by default an item's length."""
    with reporting(label, unit) as report:
        done = 0
        for item in items:
            done += size(item)
            report(done, total)
            yield item
