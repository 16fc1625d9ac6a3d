"""Jobs run in the slots of a workspace, and the record of each."""

import csv
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.experiments import Experiment, ExperimentsError
from benchmarks.records import Record, canonical, params_sha256, rounded, run_name, write_record
from benchmarks.workspace import FINISHED, Outcome, Slot
from deepcluster.errors import UserError
from deepcluster.params import load_params


@dataclass(frozen=True)
class Job:
    """One run to make."""

    experiment: Experiment
    seed: int
    root: str | None

    @property
    def name(self) -> str:
        return run_name(self.experiment.name, self.seed)


@dataclass(frozen=True)
class Circumstances:
    """What all runs of one recording have in common."""

    commit: str | None
    dirty: bool
    alone: bool
    hardware: dict[str, Any]
    versions: dict[str, str]


class Recording:
    """Jobs handed out to slots, a thread for each; stops handing out when one fails in a way that is no result."""

    def __init__(
        self, jobs: Sequence[Job], slots: Sequence[Slot], shared: Circumstances, logs: Path, folder: Path
    ) -> None:
        self._pending, self._slots, self._shared = deque(jobs), slots, shared
        self._logs, self._folder = logs, folder
        self._saving, self._stopped = threading.Lock(), threading.Event()
        self._failure: str | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=len(jobs))

    def run(self) -> int:
        """Make all runs; the exit code."""
        threads = [threading.Thread(target=self._work, args=[slot]) for slot in self._slots]
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with self._bar:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.2)
        except KeyboardInterrupt:
            self._stopped.set()
            for slot in self._slots:
                slot.stop()
            for thread in threads:
                thread.join()
            print("interrupted; what is recorded stays, the same command carries on", file=sys.stderr)
            return 130
        finally:
            signal.signal(signal.SIGTERM, before)
        if self._failure is not None:
            raise ExperimentsError(self._failure)
        return 0

    def _work(self, slot: Slot) -> None:
        while not self._stopped.is_set():
            try:
                job = self._pending.popleft()
            except IndexError:
                return
            try:
                self._record(slot, job)
            except Exception as error:  # of a thread nobody would hear
                if self._stopped.is_set():
                    return
                self._failure = self._failure or (str(error) if isinstance(error, UserError) else repr(error))
                self._stopped.set()

    def _record(self, slot: Slot, job: Job) -> None:
        log = self._logs / f"{job.name}.log"
        slot.reset()
        slot.configure(job.experiment, job.seed, job.root)
        outcome = slot.command("deepcluster", "run", log=log, seen=self._show(job))
        if self._stopped.is_set() and outcome.status != FINISHED:
            return
        if outcome.status != FINISHED and not outcome.negative_result:
            raise ExperimentsError(f"{job.name}: failed, not recorded: {outcome.error} (all of it: {log})")
        record = made_record(job, slot, outcome, self._shared)
        with self._saving:
            problem = slot.save(job.name)
            if slot is not self._slots[0]:
                slot.share(self._slots[0])
            write_record(record, self._folder)
        self._bar.advance(self._task)
        print(in_one_line(record), flush=True)
        if problem is not None:
            print(f"{job.name}: not saved as a DVC experiment: {problem}", flush=True)

    def _show(self, job: Job) -> Callable[[str], None]:
        """Follows the stages of a run on the bar."""

        def show(line: str) -> None:
            if line.startswith("["):
                self._bar.update(self._task, description=f"{job.name} {line.partition('] ')[2].strip()}")

        return show


def made_record(job: Job, slot: Slot, outcome: Outcome, shared: Circumstances) -> Record:
    """The record of a run that has just ended in a slot."""
    params = load_params(slot.root / "params.yaml")
    metrics, epochs = (_read(slot.root / "data/evaluation" / name) for name in ("metrics.json", "epochs.csv"))
    seconds, peak = stage_seconds(_read(slot.root / "data/timings.csv"))
    error = outcome.error
    if error is not None and job.root is not None:
        error = error.replace(job.root, Path(job.root).name)
    return Record(
        experiment=job.experiment.name,
        seed=job.seed,
        status="finished" if outcome.status == FINISHED else "failed",
        error=error,
        failed_at=None if outcome.status == FINISHED else outcome.stage,
        date=time.strftime("%Y-%m-%d"),
        commit=shared.commit,
        dirty=shared.dirty,
        params_sha256=params_sha256(params),
        wall_seconds=round(outcome.wall, 1),
        cpu_seconds=round(outcome.cpu, 1),
        alone=shared.alone,
        threads=slot.threads,
        stages=seconds,
        peak_memory_mb=peak,
        hardware=shared.hardware,
        versions=shared.versions,
        metrics=json.loads(metrics or "{}"),
        epochs=rounded(epochs),
        params=canonical(params),
    )


def stage_seconds(timings: str) -> tuple[dict[str, float], float | None]:
    """Of data/timings.csv: seconds of each kind of stage, and the largest peak memory in MB."""
    rows = list(csv.DictReader(timings.splitlines()))
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["stage"]] = round(seconds.get(row["stage"], 0.0) + float(row["seconds"]), 1)
    return seconds, max((float(row["peak_memory_mb"]) for row in rows), default=None)


def in_one_line(record: Record) -> str:
    """`digits-s3: 41 s; accuracy 0.9677, NMI 0.9425`, or how it failed."""
    said = f"{record.name}: {record.wall_seconds:.0f} s"
    if record.status == "failed":
        return f"{said}; failed: {record.error}"
    scores = [("accuracy", record.metric("final", "accuracy")), ("NMI", record.metric("final", "nmi"))]
    return f"{said}; " + (
        ", ".join(f"{name} {value:.4f}" for name, value in scores if value is not None) or "no targets"
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
