"""Training the small convnet while another process keeps one core busy: how waiting OpenMP threads behave."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import Source
from benchmarks.project import CHECKOUT
from benchmarks.results import number, table
from deepcluster.threads import SPINS

SETTINGS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("1,000 spins (ours)", {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPINS)}),
    ("no spins (PASSIVE)", {"OMP_WAIT_POLICY": "PASSIVE"}),
    ("nothing set", {}),
    ("100,000 spins", {"GOMP_SPINCOUNT": "100000"}),
    ("one thread", {"OMP_NUM_THREADS": "1"}),
)
CHILD = """
import sys, time, torch
from benchmarks.networks import Case
from benchmarks.data import noise
case = Case("convnet", noise({count}, 1, {size}, {size}), 128, "fp32")
case.train()
started = time.perf_counter()
print(case.train() / (time.perf_counter() - started))
"""


@dataclass(frozen=True)
class Beside:
    """Images a second in training, alone and beside a busy process; each the median of the rounds."""

    policy: str
    size: int
    alone: float
    busy: float


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Beside]:
    """The table for 8 and 28 pixels."""
    rounds, found = (1 if quick else 3), []
    for size, count in ((8, 2048), (28, 1024)):
        alone: dict[str, list[float]] = {policy: [] for policy, _ in SETTINGS}
        busy: dict[str, list[float]] = {policy: [] for policy, _ in SETTINGS}
        for _ in range(rounds):
            for policy, variables in SETTINGS:
                alone[policy].append(_rate(size, count, variables))
                with _busy_process():
                    busy[policy].append(_rate(size, count, variables))
        for policy, _ in SETTINGS:
            found.append(Beside(policy, size, statistics.median(alone[policy]), statistics.median(busy[policy])))
    header = ("waiting threads", "pixels", "alone, images/s", "beside a busy process", "kept")
    rows = [
        (row.policy, str(row.size), number(row.alone), number(row.busy), f"{row.busy / row.alone:.2f}") for row in found
    ]
    print("\n" + table(header, rows))
    return found


def _rate(size: int, count: int, variables: Mapping[str, str]) -> float:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    code = CHILD.format(size=size, count=count)
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
