"""`python -m benchmarks`: sections, sizes, and where the results go."""

import argparse
import os
import sys
import time
from pathlib import Path

from deepcluster.threads import settle

settle()  # as the stages do, before torch and faiss load
if "gpu" not in sys.argv[1:]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from benchmarks import (
    augment,
    engines,
    gpu,
    growth,
    neighbour,
    objectives,
    page,
    pic,
    pipeline,
    processes,
    remote,
    results,
    resuming,
    spectral,
    stages,
)
from benchmarks.data import Source

SECTIONS = {
    "stages": stages.measure,
    "pipeline": pipeline.measure,
    "growth": growth.measure,
    "engines": engines.measure,
    "gpu": gpu.measure,
    "augment": augment.measure,
    "objectives": objectives.measure,
    "pic": pic.measure,
    "spectral": spectral.measure,
    "neighbour": neighbour.measure,
    "report": page.measure,
    "remote": remote.measure,
    "resuming": resuming.measure,
    "processes": processes.measure,
}
USUAL = ("stages", "pipeline", "growth", "engines", "augment", "objectives", "report")
OUTPUT = Path("data/benchmarks")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of the stages and the DAG.")
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"any of {', '.join(SECTIONS)}; by default {', '.join(USUAL)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs: to see that it works")
    parser.add_argument(
        "--long", action="store_true", help="pipeline: growth of whole runs; engines: 1.28 million rows (25 GB of disk)"
    )
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="folder with MNIST's IDX files, instead of noise")
    parser.add_argument("--images", type=int, metavar="N", help="pipeline: images of an epoch (default 10,000)")
    found = parser.parse_args(words)
    unknown = [name for name in found.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}: expected any of {', '.join(SECTIONS)}")
    return found


def main() -> None:
    chosen = arguments()
    hardware = results.hardware()
    print(f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB memory")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in chosen.sections or USUAL:
        started = time.perf_counter()
        print(f"\n== {name}", flush=True)
        found = SECTIONS[name](
            Source(chosen.mnist), quick=chosen.quick, long=chosen.long, images=chosen.images, output=OUTPUT
        )
        seconds = time.perf_counter() - started
        path = results.write_json(
            OUTPUT / f"{name}.json", found, hardware=hardware, command=["python", "-m", "benchmarks", *sys.argv[1:]]
        )
        print(f"\n{name}: {seconds:.0f} s; numbers and plot beside {path}")


if __name__ == "__main__":
    main()
