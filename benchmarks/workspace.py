"""The scratch copy of the project in which experiments run, each saved there as a DVC experiment.

A workspace holds one project for each run at a time (`project-1`, `project-2`), and the outputs of the runs (`logs`).
Every run starts from nothing, so that its time is that of the whole; downloads in data/raw stay. Of a run's artifacts
DVC's cache keeps what `dvc exp show` needs: a hundred runs would fill the disk with feature dumps.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiments import CHECKOUT, Experiment, ExperimentsError
from benchmarks.records import run_name

FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
FOLDERS = ("stages", "deepcluster", "recipes")
EXPERIMENTS, CACHE = "refs/exps", ".dvc/cache/files/md5"
KEPT = re.compile(r"path: data/evaluation/(?:metrics\.json|epochs\.csv)\n +hash: md5\n +md5: ([0-9a-f]{32})\n")
"""What dvc.lock says of the two files that DVC's tables are made of."""
FINISHED = 0
IN_AN_EPOCH = ("extract@", "pca@", "cluster@", "train@", "evaluate")
RESULT = re.compile(r"collapse|one cluster|alone in their cluster|\bnan\b|\binf|must be finite|memory", re.IGNORECASE)
"""What errors say that come from the settings; another one, such as a full disk, is mended and the run repeated."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit status (negative: the signal), seconds, and what it printed."""

    status: int
    wall: float
    cpu: float
    output: str

    @property
    def stage(self) -> str:
        """The last stage that `deepcluster run` announced."""
        found = re.findall(r"^\[[\d:]+\] (\S+)$", self.output, flags=re.MULTILINE)
        return found[-1] if found else ""

    @property
    def error(self) -> str | None:
        """The line that says what happened, or None."""
        if self.status == FINISHED:
            return None
        if self.status < 0:
            return f"killed by signal {-self.status}" + (", out of memory?" if self.status == -signal.SIGKILL else "")
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return said[0] if said else lines[-1] if lines else f"exit status {self.status}"

    @property
    def negative_result(self) -> bool:
        """Whether it failed in a way that says something about the settings, and not about the machine or the code."""
        return self.stage.startswith(IN_AN_EPOCH) and RESULT.search(self.error or "") is not None


class Slot:
    """One project of the workspace; one run at a time."""

    def __init__(self, workspace: Path, number: int, threads: int) -> None:
        self.root = workspace.resolve() / f"project-{number}"
        self.threads = threads
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def copy_project(self, commit: str) -> None:
        """The checkout's pipeline, code and recipes as they are now, committed in a repository of the slot's own."""
        self._init()
        self.git("clean", "--quiet", "--force", "-d")
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, self.root / name)
        for name in FOLDERS:
            shutil.rmtree(self.root / name, ignore_errors=True)
            shutil.copytree(CHECKOUT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.git("add", "--all")
        if self.git("status", "--porcelain"):
            self.git("commit", "--quiet", "--message", f"The project at {commit}")

    def copy_slot(self, first: "Slot") -> None:
        """The same commit as another slot's, so that experiments saved here are ones of it."""
        self._init()
        self.git("fetch", "--quiet", str(first.root), "HEAD")
        self.git("reset", "--quiet", "--hard", "FETCH_HEAD")

    def _init(self) -> None:
        if not (self.root / ".git").exists():
            self.root.mkdir(parents=True, exist_ok=True)
            self.git("init", "--quiet")

    def reset(self) -> None:
        """As it was committed: no artifact, no run in DVC's memory; downloads and saved experiments stay."""
        self.git("checkout", "--quiet", "--force", ".")
        self.git("clean", "--quiet", "--force", "-d")
        for path in [*(self.root / "data").glob("*"), self.root / ".dvc/cache/runs", self.root / ".dvc/tmp/rwlock"]:
            if path.is_dir() and path != self.root / "data/raw":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()

    def prune(self) -> None:
        """Take from DVC's cache all but the tables of the saved experiments."""
        locks = [self.git("show", f"{reference}:dvc.lock") for reference in self._saved()]
        kept = {digest for lock in locks for digest in KEPT.findall(lock)}
        for path in (self.root / CACHE).glob("*/*"):
            if path.parent.name + path.name not in kept:
                path.unlink()

    def configure(self, experiment: Experiment, seed: int, root: str | None) -> None:
        """Write params.yaml and the schedule; ExperimentsError where they are refused."""
        overrides = experiment.overrides(seed, root)
        settings = [argument for override in overrides for argument in ("-S", override)]
        words = ["plan"] if experiment.recipe in (None, "params") else ["recipe", experiment.recipe]
        done = self.command("deepcluster", *words, *settings)
        if done.status != FINISHED:
            raise ExperimentsError(f"{run_name(experiment.name, seed)}: {done.error}")

    def save(self, name: str) -> str | None:
        """Save what is there as a DVC experiment; what went wrong, or None."""
        target = "evaluate" if (self.root / "data/evaluation/metrics.json").exists() else "prepare"
        done = self.command("dvc", "exp", "save", target, "--name", name, "--force")
        self.prune()
        return done.error

    def share(self, other: "Slot") -> None:
        """Put the saved experiments, and what DVC's tables read of them, into another slot."""
        for path in (self.root / CACHE).glob("*/*"):
            copy = other.root / CACHE / path.parent.name / path.name
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        if saved := self._saved():
            self.git("push", "--quiet", "--force", str(other.root), *(f"{name}:{name}" for name in saved))

    def _saved(self) -> list[str]:
        """The git references of the saved experiments."""
        found = self.git("for-each-ref", "--format=%(refname)", EXPERIMENTS).splitlines()
        return [name for name in found if not name.startswith(f"{EXPERIMENTS}/exec/")]

    def command(self, *words: str, log: Path | None = None, seen: Callable[[str], None] | None = None) -> Outcome:
        """Run `python -m WORDS` here to its end; every line goes to `log`, and to `seen`."""
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.root, env=self._environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._running = process
        if self._stopped:  # before this one began
            self.stop()
        assert process.stdout is not None
        lines = []
        with open(log or os.devnull, "w", encoding="utf-8") as file:
            for line in process.stdout:
                lines.append(line)
                file.write(line)
                file.flush()
                if seen is not None:
                    seen(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        self._running = None
        wall = time.perf_counter() - started
        return Outcome(process.returncode, wall, usage.ru_utime + usage.ru_stime, "".join(lines))

    def stop(self) -> None:
        """End what runs here, and whatever would be run."""
        self._stopped = True
        if (process := self._running) is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGTERM)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, env=self._environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise ExperimentsError(f"{self.root}: git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        """This Python first, threads as asked, output as it comes, nobody's own DVC or git settings."""
        foreign = ("DVC", "GIT_", "PYTHONPATH")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        tool = {"NAME": "deepcluster", "EMAIL": "deepcluster@localhost"}
        return kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root / ".git/dvc-site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CEILING_DIRECTORIES": str(self.root.parent),  # a slot without a repository must not act on ours
            **{f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in tool.items()},
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
        }


def checkout_commit(paths: Sequence[str] = (*FILES, *FOLDERS)) -> tuple[str | None, bool]:
    """The checkout's commit, and whether what a run uses of it differs from that; (None, False) without git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return git("rev-parse", "--short=10", "HEAD"), bool(git("status", "--porcelain", "--", *paths))
