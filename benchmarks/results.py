"""Interleaved timing, and results as tables and JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

Work = Callable[[], float]
"""Does something and returns how many units (images, rows, megabytes) it did."""

Row = Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Rates of one thing and of its reference, in units a second: medians; the ratio is the median of the rounds'."""

    name: str
    reference: str
    unit: str
    rate: float
    reference_rate: float
    ratio: float
    lowest: float
    highest: float
    rounds: int
    target: float | None = None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.ratio >= self.target else "MISSED"


def rates(works: Sequence[Work], rounds: int, *, warm_up: bool = True, before: Callable[[], None] | None = None) -> Any:
    """Units a second of every work in every round, [works][rounds]; A B A B, each run once before the first round.

    `before` is called ahead of every timed work, untimed.
    """
    if warm_up:
        for work in works:
            work()
    found: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, measured in zip(works, found, strict=True):
            if before is not None:
                before()
            started = time.perf_counter()
            units = work()
            measured.append(units / (time.perf_counter() - started))
    return found


def compare(
    name: str,
    ours: Work,
    reference: Work,
    *,
    against: str,
    unit: str,
    rounds: int,
    target: float | None = None,
    before: Callable[[], None] | None = None,
) -> Comparison:
    """Measure both, interleaved, and print the line at once."""
    own, other = rates([ours, reference], rounds, before=before)
    found = comparison(name, own, other, against=against, unit=unit, target=target)
    print("  " + "  ".join(comparison_row(found)), flush=True)
    return found


def comparison(
    name: str, own: Sequence[float], other: Sequence[float], *, against: str, unit: str, target: float | None = None
) -> Comparison:
    """From the rates of the same rounds."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return Comparison(
        name=name,
        reference=against,
        unit=unit,
        rate=statistics.median(own),
        reference_rate=statistics.median(other),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        rounds=len(ratios),
        target=target,
    )


COMPARISON_HEADER = ("what", "rate", "reference", "its rate", "ratio", "rounds' range", "target", "")


def comparison_row(found: Comparison) -> Row:
    return (
        found.name,
        f"{number(found.rate)} {found.unit}/s",
        found.reference,
        f"{number(found.reference_rate)}",
        f"{number(found.ratio)}x",
        f"{number(found.lowest)}-{number(found.highest)}",
        "" if found.target is None else f">= {found.target:g}",
        found.verdict,
    )


def number(value: float) -> str:
    """Three significant digits, thousands with commas."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(header: Row, rows: Sequence[Row]) -> str:
    """A Markdown table, padded so that it reads on a console too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def hardware() -> dict[str, Any]:
    """What the numbers were measured on, without the machine's name."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def write_json(path: Path, found: Any, **extra: Any) -> Path:
    """`found`, with dataclasses as objects, and what it was measured with."""
    content = extra | {"measured": time.strftime("%Y-%m-%d"), "results": _plain(found)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
