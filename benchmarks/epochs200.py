"""What DVC and `deepcluster run` cost in a project of 200 epochs in which nothing is left to do.

`python -m benchmarks.epochs200`. Nothing is trained: every output is a few bytes in as many files as a real one has,
and `dvc commit` records them, so dvc.lock, cache and graph are those of a finished run of that length.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.project import TRIVIAL, TRIVIAL_IMAGES, Project, set_params, temporary_project
from benchmarks.results import table

FILES_OF_AN_ARRAY = ("zarr.json", "values/zarr.json", "values/c/0/0")
FILES_OF_A_CHECKPOINT = ("checkpoint.json", "model.safetensors", "optimizer.safetensors")
COMMANDS = {
    "dvc status": ("dvc", "status"),
    "dvc status train@1": ("dvc", "status", "train@1"),
    "dvc repro (nothing to do)": ("dvc", "repro"),
    "deepcluster run (nothing to do)": ("python", "-m", "deepcluster", "run"),
    "deepcluster prune --dry-run": ("python", "-m", "deepcluster", "prune", "--every", "10", "--dry-run"),
    "deepcluster --help": ("python", "-m", "deepcluster", "--help"),
    "dvc --version": ("dvc", "--version"),
}


@dataclass(frozen=True)
class Cost:
    """Of one command at so many epochs: seconds of processor time and of the clock, medians of `rounds`."""

    command: str
    epochs: int
    cpu: float
    wall: float
    rounds: int


def finished_project(project: Project, epochs: int) -> None:
    """Bring a fresh project into the state after a run of so many epochs, with outputs of a few bytes."""
    from dvc.repo import Repo

    project.plan(epochs)
    with Repo(str(project.root)) as repo:
        outputs = [Path(out.fs_path) for stage in repo.index.stages for out in stage.outs]
    for path in outputs:
        write_output(path)
    project.run("dvc", "commit", "--force")


def write_output(path: Path) -> None:
    """A stand-in for an artifact; each has content of its own, as real ones have."""
    if path.suffix == ".zarr":
        names: Sequence[str] = FILES_OF_AN_ARRAY
    elif path.name == "checkpoint":
        names = FILES_OF_A_CHECKPOINT
    else:
        names = ("",)
    for name in names:
        place = path / name if name else path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"stands for": "/".join(place.parts[-5:])}), encoding="utf-8")


def costs(project: Project, epochs: int, rounds: int, commands: dict[str, tuple[str, ...]]) -> list[Cost]:
    """Every command `rounds` times, after one that is not counted."""
    found = []
    for name, command in commands.items():
        done = [project.run(*command) for _ in range(rounds + 1)][1:]
        found.append(
            Cost(
                name,
                epochs,
                statistics.median(one.cpu for one in done),
                statistics.median(one.wall for one in done),
                rounds,
            )
        )
        print(f"  {name}, {epochs} epochs: {found[-1].cpu:.1f} s of processor time", flush=True)
    return found


def measure(epochs: Sequence[int], rounds: int, commands: dict[str, tuple[str, ...]]) -> list[Cost]:
    """All commands at all numbers of epochs, ascending, in one project that grows."""
    from benchmarks.data import noise

    found: list[Cost] = []
    with temporary_project(noise(TRIVIAL_IMAGES, 8, 8), TRIVIAL) as project:
        (project.root / ".dvc/.gitignore").write_text("/tmp\n/cache\n/site\n", encoding="utf-8")
        set_params(project.root / "params.yaml", {"refine.after": None})
        for count in sorted(epochs):
            shutil.rmtree(project.root / "data", ignore_errors=True)
            finished_project(project, count)
            found += costs(project, count, rounds, commands)
    return found


def cost_table(found: Sequence[Cost]) -> str:
    counts = sorted({cost.epochs for cost in found})
    rows = []
    for name in dict.fromkeys(cost.command for cost in found):
        each = {cost.epochs: cost for cost in found if cost.command == name}
        rows.append((f"`{name}`", *(f"{each[count].cpu:.1f} ({each[count].wall:.1f})" for count in counts)))
    return table(("CPU s (wall s)", *(f"{count} epochs" for count in counts)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs200", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[50, 200], help="lengths of the run")
    parser.add_argument("--rounds", type=int, default=3, help="measured calls of each command; one more warms up")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="commands whose name contains one of these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    words = parser.parse_args()
    commands = {
        name: command for name, command in COMMANDS.items() if not words.only or any(one in name for one in words.only)
    }
    found = measure(words.epochs, words.rounds, commands)
    print("\n" + cost_table(found))
    if words.json:
        words.json.write_text(json.dumps([asdict(cost) for cost in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
