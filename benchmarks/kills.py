"""Kills the pipeline at many points, runs the same command again, and compares what it ends with.

    python -m benchmarks.kills --record docs/reliability/kills.json
    python -m benchmarks.kills --per-stage 1 --ways run       a few minutes

A tiny project (48 images, 2 epochs) goes through the pipeline stage by stage. From the state before each stage copies
are taken; in each the command (`dvc repro STAGE` or `deepcluster run STAGE`) is ended at one point and started again,
as it is. All artifacts and dvc.lock must then be those of the undisturbed run, byte for byte, every object of DVC's
cache what its name says, and nothing of the killed process may be left. Exit code 1 if anything is lost.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_points import Event, Point, points, read_trace
from benchmarks.workspace import FILES, FOLDERS

CHECKOUT = Path(__file__).resolve().parents[1]
EPOCHS = 2
OF_AN_EPOCH = ("extract", "pca", "cluster", "train")
STAGES = (
    "prepare", "initialise", *(f"{name}@{epoch}" for epoch in range(1, EPOCHS + 1) for name in OF_AN_EPOCH),
    "evaluate", "report",
)  # fmt: skip
ORPHANED = ("prepare", "extract@1", "train@1", "evaluate")
COMMANDS = {"repro": ("dvc", "repro"), "run": ("deepcluster", "run")}
TINY = (
    f"epochs={EPOCHS}", "data.name=folder", "data.image_size=8", "data.grayscale=true", "pca.components=4",
    "refine.after=null", "cluster.k=4", "train.batch_size=16", "train.epoch_size=1.0", "train.schedule.name=constant",
    "evaluate.restarts=1",
)  # fmt: skip
EXPLAINED = re.compile(
    r"^(?:ERROR: )?(?:failed to reproduce '\S+': )?"
    r"(Unable to read RWLock-file '\S+'\. JSON structure is corrupted|'\S*dvc\.lock' (?:validation failed|is invalid))",
    flags=re.MULTILINE,
)
WAITING = "still works on it; waiting for it to end"
TIMEOUT = 900
LINGER = 60


@dataclass(frozen=True)
class Trial:
    """One kill and what came of it. `problems` is empty where nothing was lost."""

    way: str
    stage: str
    point: str
    process: str
    event: str
    moment: str
    action: str
    explained: str | None
    waited: bool
    problems: list[str]


class Bench:
    """A folder with the project as far as it has come, and the copies that are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hooks = folder / "hooks"
        self.hooks.mkdir(parents=True)
        shutil.copyfile(CHECKOUT / "benchmarks/kill_at.py", self.hooks / "sitecustomize.py")
        shell = folder / "a shell that stays"
        shell.write_text('#!/bin/sh\n/bin/sh "$@"\nexit $?\n')
        shell.chmod(0o755)
        self.shell = str(shell)

    def environment(self, root: Path, **variables: str) -> dict[str, str]:
        """This Python first, one thread, no GPU, nobody's own DVC or git settings."""
        foreign = ("DVC", "GIT_", "DEEPCLUSTER_", "PYTHONPATH", "COLUMNS", "KILLS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder / "none"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.folder / "none"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **variables,
        }

    def start(self, root: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=root, env=self.environment(root, **variables), text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, root: Path, *command: str, **variables: str) -> tuple[int, str]:
        """Exit code and output; processes of the command that outlive it are not waited for."""
        process = self.start(root, *command, **variables)
        return ended(process)

    def make_project(self) -> Path:
        """The checkout's pipeline and code with the tiny settings; nothing has run."""
        root = self.folder / "undisturbed" / "a project"
        for name in FILES:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, root / name)
        for name in FOLDERS:
            shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        write_images(self.folder / "images")
        settings = [word for setting in (*TINY, f"data.root={self.folder / 'images'}") for word in ("-S", setting)]
        for command in (("git", "init", "--quiet"), ("deepcluster", "plan", *settings)):
            status, output = self.run(root, *command)
            if status:
                raise RuntimeError(f"{' '.join(command)}:\n{output}")
        return root

    def copy(self, root: Path, name: str) -> Path:
        """The project and DVC's database beside it, under another name."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root.parent, target, symlinks=True)
        return target / root.name

    def traced(self, root: Path, way: str, stage: str | None) -> list[Event]:
        """Run a stage, or all, undisturbed; what happened. RuntimeError if it fails."""
        trace = self.folder / "trace"
        trace.unlink(missing_ok=True)
        status, output = self.run(root, *command(way, stage), PYTHONPATH=str(self.hooks), KILLS_TRACE=str(trace))
        if status:
            raise RuntimeError(f"{way} {stage}, undisturbed, fails:\n{output}")
        return read_trace(trace.read_text())

    def trial(self, root: Path, way: str, stage: str | None, point: Point, wanted: dict[str, str]) -> Trial:
        """Kill the command in a copy at a point, start it again, and look at what it ends with."""
        work, marker = self.copy(root, "killed"), self.folder / "marker"
        release = self.folder / "release"
        for path in (marker, release):
            path.unlink(missing_ok=True)
        lives_on = point.action == "dvc" and point.moment == "after"
        asked = {
            "process": point.event.process, "event": point.event.what, "number": point.event.number,
            "moment": "before" if lives_on else point.moment, "action": point.action, "marker": str(marker),
            "release": str(release) if lives_on else None,
        }  # fmt: skip
        shell = {"SHELL": self.shell} if lives_on else {}
        words = command(way, stage)
        first = self.start(work, *words, PYTHONPATH=str(self.hooks), KILLS_POINT=json.dumps(asked), **shell)
        first.wait(TIMEOUT)
        problems, waited, explained = [], False, None
        if not marker.exists():
            problems.append(f"the point was not reached; exit code {first.returncode}")
        second = self.start(work, *words)
        status, output = ended(second, until=WAITING if lives_on else None)
        if lives_on:
            waited = WAITING in output
            release.touch()
            status, rest = ended(second)
            output += rest
        if marker.exists():
            problems += gone(int(marker.read_text()))
        if found := EXPLAINED.search(output):
            explained = found[1]
            status, output = self.run(work, *command("run", stage))
        if status:
            problems.append(f"the same command again: exit code {status}: {output.strip()[-400:]}")
        if lives_on and not waited:
            problems.append("the second one did not wait for the stage left behind")
        problems += differences(work, wanted)
        action = point.action if point.action == "dvc" else signal.Signals(point.action).name
        return Trial(
            way, stage or "all", point.name, point.event.process, point.event.what, point.moment, str(action),
            explained, waited, problems,
        )  # fmt: skip


def command(way: str, stage: str | None) -> tuple[str, ...]:
    return (*COMMANDS[way], *([stage] if stage else []))


def ended(process: subprocess.Popen[str], *, until: str | None = None) -> tuple[int, str]:
    """Exit code and output of a process; with `until` only up to the line that has this text, if one does."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if until is not None and until in line:
            return 0, "".join(lines)
    return process.wait(TIMEOUT), "".join(lines)


def gone(process: int) -> list[str]:
    """Wait for a process that was killed or left behind; a sentence if it stays."""
    for _ in range(LINGER * 10):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return []
        with suppress(OSError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return []  # nobody waits for it
        time.sleep(0.1)
    return [f"process {process}, left behind, does not end"]


def digests(root: Path) -> dict[str, str]:
    """sha256 of every artifact and of dvc.lock. .gitignore files are DVC's own; no two runs take the same time."""
    files = [path for path in sorted((root / "data").rglob("*")) if path.is_file()]
    kept = [path for path in files if path.name not in (".gitignore", "timings.csv")] + [root / "dvc.lock"]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept if path.is_file()
    }


def differences(root: Path, wanted: dict[str, str]) -> list[str]:
    """What is not as it should be: artifacts, dvc.lock, the cache's objects, files left over."""
    found, problems = digests(root), []
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            problems.append(f"{path}: {'missing' if path not in found else 'left over or different'}")
    for path in (root / ".dvc/cache/files/md5").glob("??/*"):
        content = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if path.name.endswith((".tmp", ".partial")):
            continue
        if content != (path.parent.name + path.name).removesuffix(".dir"):
            problems.append(f"{path.relative_to(root)}: not what its name says")
    problems += [f"{path.relative_to(root)}: left over" for path in root.rglob("*.partial")]
    return problems


def write_images(folder: Path, *, count: int = 48) -> None:
    """Two class folders of grey 8x8 images: one class bright above, the other bright on the left."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(count):
        name = ("above", "left")[index % 2]
        pixels = rng.integers(0, 60, (8, 8)).astype(np.uint8)
        pixels[(slice(4), slice(None)) if name == "above" else (slice(None), slice(4))] += 150
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{index:03}.png")


def orphans(trace: Sequence[Event], stage: str) -> Iterator[Point]:
    """DVC alone is killed: as its stage starts, when it ends with DVC, and when a shell between keeps it alive."""
    of_stage = [event for event in trace if event.stage and event.what.startswith("read data/")]
    if not of_stage:
        return
    start = Event(of_stage[0].process, stage, "start", 1)
    yield Point("DVC is killed as the stage starts", start, "before", "dvc")
    yield Point("DVC is killed while the stage works", of_stage[-1], "before", "dvc")
    yield Point("DVC is killed and the stage lives on", of_stage[0], "after", "dvc")


def trials(
    bench: Bench, ways: Sequence[str], stages: Sequence[str], per_stage: int, whole: int, only: str = ""
) -> Iterator[Trial]:
    """Every kill, in order; `only` those whose names match. RuntimeError where even undisturbed runs fail or differ."""
    project, used = bench.make_project(), {way: Counter[str]() for way in COMMANDS}
    finished = None
    if whole and "run" in ways:
        undisturbed = bench.copy(project, "whole")
        trace = bench.traced(undisturbed, "run", None)
        finished = digests(undisturbed)
        for point in points(trace, whole, Counter()):
            yield bench.trial(project, "run", None, point, finished)
    for stage in STAGES[: 1 + max((STAGES.index(stage) for stage in stages), default=-1)]:
        chosen = [way for way in ways if stage in stages]
        after = [(way, *_ahead(bench, project, way, stage)) for way in chosen]
        for way, trace, wanted in after:
            found = [*points(trace, per_stage, used[way])]
            if way == "repro" and stage in ORPHANED:
                found += orphans(trace, stage)
            for point in found:
                if re.search(only, point.name):
                    yield bench.trial(project, way, stage, point, wanted)
        bench.traced(project, "repro", stage)
        if any(wanted != digests(project) for _, _, wanted in after):
            raise RuntimeError(f"{stage}: two undisturbed runs differ")
    if finished is not None and STAGES[-1] in stages and digests(project) != finished:
        raise RuntimeError("stage by stage and as a whole, undisturbed runs differ")


def _ahead(bench: Bench, project: Path, way: str, stage: str) -> tuple[list[Event], dict[str, str]]:
    """A stage in a copy: what happens, and what it ends with."""
    copy = bench.copy(project, "ahead")
    return bench.traced(copy, way, stage), digests(copy)


def summary(found: Sequence[Trial]) -> dict[str, Any]:
    """The counts that docs/reliability.md quotes. Every point has its own entry below them in the record."""
    by_action = Counter(trial.action for trial in found)
    return {
        "kills": len(found),
        "recovered": sum(not trial.problems for trial in found),
        "lost": sum(bool(trial.problems) for trial in found),
        "explained": sum(trial.explained is not None for trial in found),
        "waited": sum(trial.waited for trial in found),
        "actions": dict(sorted(by_action.items())),
        "ways": dict(sorted(Counter(trial.way for trial in found).items())),
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description=first, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--per-stage", type=int, default=4, metavar="N", help="points of each stage and way")
    parser.add_argument("--whole", type=int, default=8, metavar="N", help="points of `deepcluster run` as a whole")
    parser.add_argument("--ways", nargs="+", choices=[*COMMANDS], default=[*COMMANDS], help="which command to kill")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help="only in these")
    parser.add_argument("--only", default="", metavar="REGEX", help="points whose names match, e.g. dvc.lock")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what was found as JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave it, instead of a scratch")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 if nothing was lost."""
    options = arguments(words)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it, and theirs
    found = []
    with tempfile.TemporaryDirectory(prefix="deepcluster-kills-", ignore_cleanup_errors=True) as scratch:
        bench = Bench(options.keep.resolve() if options.keep else Path(scratch) / "kills")
        for trial in trials(bench, options.ways, options.stages, options.per_stage, options.whole, options.only):
            found.append(trial)
            said = "recovered" if not trial.problems else "LOST: " + "; ".join(trial.problems)
            said += f" (explained: {trial.explained})" if trial.explained else ""
            print(f"{len(found):3} {trial.way} {trial.stage}: {trial.point}, {trial.action}: {said}", flush=True)
    counts = summary(found)
    print(json.dumps(counts))
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        content = counts | {"points": [asdict(trial) for trial in found]}
        options.record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if counts["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
