"""Runs that experiments.yaml names, each recorded as docs/runs/NAME-sSEED.json and saved as a DVC experiment.

    python -m benchmarks.record digits mnist-cpu --root mnist=/data/mnist
    python -m benchmarks.record ablations --jobs 2     a group; two runs at a time, wall times then mean nothing
    python -m benchmarks.record --list                 what is recorded and what is missing

Runs that have a record are left out: after an interruption the same command carries on, what was in flight is lost.
A run that collapses, diverges or runs out of memory is recorded too. `dvc exp show -A` in project-1 of the workspace
lists all that ran there.
"""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks import results
from benchmarks.experiments import FILE, Experiment, ExperimentsError, chosen, load_experiments
from benchmarks.recording import Circumstances, Job, Recording
from benchmarks.records import FOLDER, changed_keys, read_records
from benchmarks.workspace import Slot, checkout_commit
from deepcluster.errors import UserError

WORKSPACE = Path(".experiments")
LIBRARIES = ("torch", "faiss-gpu", "faiss-cpu", "numpy", "scikit-learn", "dvc")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.record", description=first, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, or the groups results and ablations")
    parser.add_argument("--list", action="store_true", help="show what is recorded and what is missing; run nothing")
    parser.add_argument("--seeds", metavar="1,2,…", help="only these of each experiment's seeds")
    parser.add_argument("--again", action="store_true", help="also what was recorded with other settings than now")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, each with its share of cores")
    parser.add_argument("--busy", action="store_true", help="the machine does other work too: show no wall times")
    parser.add_argument(
        "--root", action="append", default=[], metavar="NAME=FOLDER",
        help="where a data set lies, e.g. mnist=/data/mnist; again for more",
    )  # fmt: skip
    parser.add_argument(
        "--workspace", type=Path, default=WORKSPACE, metavar="FOLDER", help="scratch, kept between runs"
    )
    parser.add_argument("--experiments", type=Path, default=FILE, metavar="FILE", help="instead of experiments.yaml")
    parser.add_argument("--records", type=Path, default=FOLDER, metavar="FOLDER", help="instead of docs/runs")
    found = parser.parse_args(words)
    if not found.names and not found.list:
        parser.error("which experiments? `--list` shows them; `results` and `ablations` are all of a group")
    if found.jobs < 1:
        parser.error(f"--jobs: must be >= 1; got {found.jobs}")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a mistake or a failure that is no result, 130 for Ctrl-C."""
    options = arguments(words)
    try:
        experiments = chosen(load_experiments(options.experiments), options.names)
        seeds = _numbers(options.seeds)
        if options.list:
            _print_list(experiments, options.records)
            return 0
        jobs = planned(experiments, options.records, _roots(options.root), seeds=seeds, again=options.again)
        if not jobs:
            print("everything is recorded")
            return 0
        return _record_all(jobs, options)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2


def planned(
    experiments: Sequence[Experiment],
    folder: Path,
    roots: dict[str, str],
    *,
    seeds: Sequence[int] | None = None,
    again: bool = False,
) -> list[Job]:
    """The runs without a record, the first seed of all experiments first; ExperimentsError for images without a place.

    Those recorded with other settings are said, and made again only if that is asked for.
    """
    found = []
    for experiment in experiments:
        records = read_records(experiment, folder)
        for seed in experiment.seeds:
            if seeds is not None and seed not in seeds:
                continue
            keys = changed_keys(records[seed].params, experiment.params(seed)) if seed in records else []
            if keys and not again:
                print(f"{records[seed].name}: recorded with other settings ({', '.join(keys)}); --again runs it anew")
            if seed not in records or (keys and again):
                found.append(Job(experiment, seed, _root(experiment, roots)))
    return sorted(found, key=lambda job: job.experiment.seeds.index(job.seed))


def _root(experiment: Experiment, roots: dict[str, str]) -> str | None:
    """Where its images lie: what --root says, else None for data sets that are downloaded."""
    data = experiment.params(experiment.seeds[0]).data.name
    name = experiment.root or data
    if name not in roots and data == "folder":
        raise ExperimentsError(f"experiment {experiment.name}: where are its images? --root {name}=FOLDER")
    return roots.get(name)


def _roots(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in given:
        name, equals, folder = word.partition("=")
        if not name or not equals or not Path(folder).expanduser().is_dir():
            raise ExperimentsError(f"--root: expected NAME=FOLDER with a folder that exists; got {word!r}")
        found[name] = str(Path(folder).expanduser().resolve())
    return found


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise ExperimentsError(f"--seeds: expected numbers such as 1,2,3; got {text!r}") from None


def _record_all(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    workspace = options.workspace
    workspace.mkdir(parents=True, exist_ok=True)
    (workspace / "logs").mkdir(exist_ok=True)
    try:
        with FileLock(workspace / "lock", timeout=0):
            commit, dirty = checkout_commit()
            shared = Circumstances(
                commit, dirty, options.jobs == 1 and not options.busy, hardware(), library_versions()
            )
            slots = _slots(workspace, min(options.jobs, len(jobs)), options.jobs, f"{commit}{'+' if dirty else ''}")
            return Recording(jobs, slots, shared, workspace / "logs", options.records).run()
    except Timeout:
        raise ExperimentsError(f"{workspace}: another recording runs there; take another --workspace") from None


def _slots(workspace: Path, count: int, jobs: int, commit: str) -> list[Slot]:
    """Projects to run in, all at the same commit."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, results.hardware()["cores"] // jobs))
    slots = [Slot(workspace, number, threads) for number in range(1, count + 1)]
    slots[0].copy_project(commit)
    for slot in slots[1:]:
        slot.copy_slot(slots[0])
    return slots


def hardware() -> dict[str, Any]:
    """What the runs are made on: the GPU is that which the stages would take."""
    import torch

    cpu = os.environ.get("DEEPCLUSTER_DEVICE", "").startswith("cpu") or not torch.cuda.is_available()
    return results.hardware() | {"gpu": None if cpu else torch.cuda.get_device_name()}


def library_versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _print_list(experiments: Sequence[Experiment], folder: Path) -> None:
    """A line an experiment: its seeds that are recorded, failed among them, outdated or missing."""
    for experiment in experiments:
        records = read_records(experiment, folder)
        missing = [seed for seed in experiment.seeds if seed not in records]
        failed = [seed for seed, record in records.items() if record.status == "failed"]
        keys = {
            seed: found
            for seed, each in records.items()
            if (found := changed_keys(each.params, experiment.params(seed)))
        }
        parts = [f"{len(records)} of {len(experiment.seeds)} recorded"]
        parts += [f"missing {_listed(missing)}"] if missing and records else []
        parts += [f"failed {_listed(failed)}"] if failed else []
        parts += [f"with other settings {_listed(list(keys))} ({', '.join(next(iter(keys.values())))})"] if keys else []
        print(f"{experiment.group:<10} {experiment.name:<32} {'; '.join(parts)}")


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


if __name__ == "__main__":
    sys.exit(main())
