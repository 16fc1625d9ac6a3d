"""A hundred epochs in one process: what `deepcluster run` holds of memory and open files, sampled as epochs end.

    python -m benchmarks.soak [--epochs 100] [--out docs/reliability/soak.json]

The smallest settings (64 images of 8x8), so that what an epoch leaves behind is not lost beside what it works on. Over
the last half of the epochs a line is fitted to each; its slope comes with its standard error. Anonymous memory is what
the process itself has asked for; all of it has the files that it maps as well, such as DVC's database, which every run
makes larger. Linux alone: what a process holds is read in /proc.
"""

import argparse
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.data import noise
from benchmarks.project import TRIVIAL, TRIVIAL_IMAGES, Project, temporary_project

EPOCHS = 100
ROW = re.compile(r"\s*(\d+)/\d+\s")  # of the table that `deepcluster run` prints an epoch's line of
KILOBYTES = re.compile(r"^(VmRSS|RssAnon):\s+(\d+) kB$", flags=re.MULTILINE)
SAMPLED = {"memory_kb": "kB", "anonymous_kb": "kB", "open_files": "files"}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=str(__doc__).splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks/soak.json"), metavar="FILE")
    given = parser.parse_args(words)
    if given.epochs < 6:
        parser.error(f"--epochs: must be >= 6, for a line through half of them; got {given.epochs}")
    found = soak(given.epochs)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"hardware": results.hardware(), "command": "python -m benchmarks.soak"} | found
    given.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, unit in SAMPLED.items():
        line = found["slopes"][name]
        print(
            f"{name}: {line['slope']:+.3f} +- {line['standard_error']:.3f} {unit} an epoch, from epoch {line['from']}"
        )
    print(f"{given.epochs} epochs in {found['seconds']:.0f} s; {given.out}")


def soak(epochs: int) -> dict[str, Any]:
    """Runs the pipeline; samples an epoch, and the slopes of their last half."""
    settings = TRIVIAL | {"train.schedule.name": "constant", "refine.after": None, "cluster.fail_on_collapse": False}
    with temporary_project(noise(TRIVIAL_IMAGES, 8, 8), settings) as project:
        project.run(
            "git", "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "--allow-empty", "-mx"
        )
        project.run("dvc", "config", "--local", "core.analytics", "false")
        project.plan(epochs)
        started = time.perf_counter()
        samples = list(_sampled(project))
        seconds = time.perf_counter() - started
    if [sample["epoch"] for sample in samples] != list(range(1, epochs + 1)):
        raise RuntimeError(f"expected a line for each of {epochs} epochs, got {len(samples)}")
    half = samples[len(samples) // 2 :]
    slopes = {name: fitted([s["epoch"] for s in half], [s[name] for s in half]) for name in SAMPLED}
    return {"epochs": epochs, "seconds": round(seconds, 1), "slopes": slopes, "samples": samples}


def fitted(epochs: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Slope of the line of least squares and its standard error (residuals over n - 2), and the first epoch."""
    x, y = np.asarray(epochs, float), np.asarray(values, float)
    spread = x - x.mean()
    slope = float(spread @ (y - y.mean()) / (spread @ spread))
    residuals = y - y.mean() - slope * spread
    error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / (spread @ spread)))
    return {"slope": round(slope, 4), "standard_error": round(error, 4), "from": int(x[0])}


def _sampled(project: Project) -> Iterator[dict[str, int]]:
    """The epoch, resident memory and open files of the process each time that it has finished an epoch."""
    process = subprocess.Popen(
        ["deepcluster", "run"],
        cwd=project.root,
        env=project._environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := ROW.match(line):
            proc = Path("/proc") / str(process.pid)
            memory = dict(KILOBYTES.findall((proc / "status").read_text()))
            yield {
                "epoch": int(found[1]),
                "memory_kb": int(memory["VmRSS"]),
                "anonymous_kb": int(memory["RssAnon"]),
                "open_files": len(os.listdir(proc / "fd")),
            }
    if process.wait():
        raise RuntimeError(f"deepcluster run failed with exit code {process.returncode}:\n{''.join(lines[-20:])}")


if __name__ == "__main__":
    main()
