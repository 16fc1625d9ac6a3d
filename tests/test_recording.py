"""python -m benchmarks.record: what is planned, what counts as a result, what an interruption leaves; one for real."""

import json
import os
import re
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT, command_environment, write_images
from test_records import RECORD

from benchmarks import record, recording, records
from benchmarks.experiments import Experiment, ExperimentsError
from benchmarks.recording import Circumstances, Job, Recording
from benchmarks.workspace import FOLDERS, Outcome, Slot

SHARED = Circumstances(commit="abc", dirty=True, alone=True, hardware={"cores": 2}, versions={"torch": "9"})
COLLAPSE = "error: cluster@2: collapse: the largest of 4 clusters holds 90% of the images"


def experiment(name: str = "tiny", **changes: object) -> Experiment:
    return Experiment.model_validate({"name": name, "group": "results", "asks": "x", "seeds": [1], **changes})


def ended(status: int, *lines: str) -> Outcome:
    return Outcome(status, 1.0, 2.0, "".join(f"{line}\n" for line in lines))


class TestOutcome:
    @pytest.mark.parametrize(
        ("outcome", "error", "result"),
        [
            (ended(0, "[0:01] train@1"), None, False),
            (ended(2, "[0:01] cluster@2", COLLAPSE), COLLAPSE.removeprefix("error: "), True),
            (ended(2, "[0:01] train@1", "error: loss is nan at step 3"), "loss is nan at step 3", True),
            (ended(2, "[0:01] train@1", "error: loss is inf at step 3"), "loss is inf at step 3", True),
            (ended(1, "[1:00:01] train@1", "Traceback:", "torch.OutOfMemoryError: CUDA out of memory."),
             "torch.OutOfMemoryError: CUDA out of memory.", True),
            (ended(-9, "[0:01] evaluate"), "killed by signal 9, out of memory?", True),
            (ended(-15, "[0:01] evaluate"), "killed by signal 15", False),
            (ended(2, "[0:01] prepare", "error: images need about 9.00 GB of memory"),
             "images need about 9.00 GB of memory", False),  # says nothing about the settings that are compared
            (ended(2, "[0:01] train@1", "error: failed to reproduce 'train@1': No space left on device"),
             "failed to reproduce 'train@1': No space left on device", False),
            (ended(1, "[0:01] train@1", "KeyError: 'x'"), "KeyError: 'x'", False),
            (ended(2, "error: /x: no such folder"), "/x: no such folder", False),
            (ended(3), "exit status 3", False),
        ],
    )  # fmt: skip
    def test_what_is_said_and_whether_it_is_a_result(self, outcome, error, result):
        assert (outcome.error, outcome.negative_result) == (error, result)

    def test_stage_is_the_last_that_was_announced(self):
        assert ended(0, "[0:00] prepare", "prepare: 7 images", "[0:12] train@12", "x [0:13] no").stage == "train@12"


class TestPlan:
    def test_the_first_seed_of_all_before_the_second_of_any(self, tmp_path):
        entries = [experiment("a", seeds=[1, 2]), experiment("b", seeds=[5, 1])]
        records.write_record(
            replace(RECORD, experiment="b", seed=5, params=records.canonical(entries[1].params(5))), tmp_path
        )
        assert [job.name for job in record.planned(entries, tmp_path, {})] == ["a-s1", "a-s2", "b-s1"]
        assert [job.name for job in record.planned(entries, tmp_path, {}, seeds=[1])] == ["a-s1", "b-s1"]

    def test_other_settings_are_said_and_run_when_asked_for(self, tmp_path, capsys):
        now = records.canonical(experiment().params(1))
        old = now | {"cluster.k": 7, "epochs": 3}
        records.write_record(replace(RECORD, experiment="tiny", seed=1, params=old), tmp_path)
        assert record.planned([experiment()], tmp_path, {}) == []
        line = "tiny-s1: recorded with other settings (epochs, cluster.k); --again runs it anew\n"
        assert capsys.readouterr().out == line
        assert [job.name for job in record.planned([experiment()], tmp_path, {}, again=True)] == ["tiny-s1"]
        assert capsys.readouterr().out == ""

    def test_images_come_from_where_root_says(self, tmp_path):
        folder = experiment(set=["data.name=folder"], root="photos")
        (job,) = record.planned([folder], tmp_path, {"photos": "/p", "folder": "/f"})
        assert job.root == "/p"
        (job,) = record.planned([experiment(set=["data.name=mnist"])], tmp_path, {"mnist": "/m"})
        assert job.root == "/m"
        (job,) = record.planned([experiment(set=["data.name=mnist"])], tmp_path, {"photos": "/p"})
        assert job.root is None  # downloaded
        with pytest.raises(ExperimentsError, match=r"^experiment tiny: where are its images\? --root photos=FOLDER$"):
            record.planned([folder], tmp_path, {"folder": "/f"})


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path, capsys):
        (tmp_path / "e.yaml").write_text(
            "tiny: {group: results, asks: x, seeds: 2}\nbig: {group: ablations, asks: x, seeds: 1}\n"
        )

        def run(*words):
            given = ["--experiments", str(tmp_path / "e.yaml"), "--records", str(tmp_path / "runs")]
            status = record.main([*words, *given, "--workspace", str(tmp_path / "work")])
            return status, *capsys.readouterr()

        return run

    def test_list(self, run, tmp_path):
        params = records.canonical(experiment().params(1))
        for seed, change in ((1, {}), (2, {"cluster.k": 7})):
            given = replace(RECORD, experiment="tiny", seed=seed, params=params | change, status="failed")
            records.write_record(given, tmp_path / "runs")
        status, out, _ = run("--list")
        assert status == 0
        assert out.splitlines() == [
            f"results    {'tiny':<32} 2 of 2 recorded; failed 1, 2; with other settings 2 (cluster.k)",
            f"ablations  {'big':<32} 0 of 1 recorded",
        ]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("tinny",), "tinny: no such experiment; did you mean 'tiny'?"),
            (("tiny", "--seeds", "a"), "--seeds: expected numbers such as 1,2,3; got 'a'"),
            (("tiny", "--root", "x"), "--root: expected NAME=FOLDER with a folder that exists; got 'x'"),
            (
                ("tiny", "--root", "x=/no/where"),
                "--root: expected NAME=FOLDER with a folder that exists; got 'x=/no/where'",
            ),
        ],
    )
    def test_mistakes(self, run, tmp_path, words, message):
        assert run(*words) == (2, "", f"error: {message}\n")
        assert not (tmp_path / "work").exists()

    def test_without_a_name(self, run, capsys):
        with pytest.raises(SystemExit) as stop:
            run()
        assert stop.value.code == 2
        assert "which experiments? `--list` shows them" in capsys.readouterr().err

    def test_another_recording_in_the_same_workspace(self, run, tmp_path):
        from filelock import FileLock

        (tmp_path / "work").mkdir()
        with FileLock(tmp_path / "work/lock"):
            expected = f"error: {tmp_path / 'work'}: another recording runs there; take another --workspace\n"
            assert run("tiny") == (2, "", expected)

    def test_everything_is_recorded(self, run, tmp_path):
        params = records.canonical(experiment().params(1))
        records.write_record(replace(RECORD, experiment="big", seed=1, params=params), tmp_path / "runs")
        assert run("big") == (0, "everything is recorded\n", "")


class FakeSlot:
    """Ends every run as it is told to."""

    def __init__(self, root: Path, outcomes: dict[str, Outcome]) -> None:
        self.root, self.threads, self.outcomes = root, 1, outcomes
        self.saved: list[str] = []
        self.job, self.stopped = "", threading.Event()

    def reset(self) -> None:
        (self.root / "data/evaluation").mkdir(parents=True, exist_ok=True)

    def configure(self, experiment: Experiment, seed: int, root: str | None) -> None:
        self.job = records.run_name(experiment.name, seed)
        (self.root / "params.yaml").write_text(f"seed: {seed}\ndata: {{root: {root or 'data/raw'}}}\n")

    def command(self, *words: str, log: Path, seen: object) -> Outcome:
        if self.job not in self.outcomes:  # goes on until it is stopped
            os.kill(os.getpid(), signal.SIGINT)
            assert self.stopped.wait(10)
            return ended(-15, "[0:01] train@1")
        outcome = self.outcomes[self.job]
        if outcome.status == 0:
            (self.root / "data/evaluation/metrics.json").write_text('{"final": {"nmi": 0.5, "accuracy": 0.75}}')
            (self.root / "data/evaluation/epochs.csv").write_text("epoch,nmi\n1,0.123456\n")
        rows = "stage,epoch,seconds,peak_memory_mb\nprepare,,1.24,300\ntrain,1,2.0,500\ntrain,2,3.5,400\n"
        (self.root / "data/timings.csv").write_text(rows)
        return outcome

    def save(self, name: str) -> str | None:
        self.saved.append(name)
        return None

    def share(self, other: object) -> None:
        pass

    def stop(self) -> None:
        self.stopped.set()


def recorded(
    tmp_path: Path, outcomes: dict[str, Outcome], *seeds: int, root: str | None = None
) -> tuple[int, FakeSlot]:
    slot = FakeSlot(tmp_path / "slot", outcomes)
    (tmp_path / "slot").mkdir()
    jobs = [Job(experiment(seeds=list(seeds)), seed, root) for seed in seeds]
    return Recording(jobs, [slot], SHARED, tmp_path, tmp_path / "runs").run(), slot  # type: ignore[list-item]


@pytest.fixture
def interruptible():
    """A shell's background jobs ignore Ctrl-C, and Python then installs no handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class TestRecording:
    def test_a_run_that_ended_well(self, tmp_path, capsys):
        status, slot = recorded(tmp_path, {"tiny-s1": ended(0, "[0:01] report")}, 1, root="/some/where/images")
        found = records.read_record(tmp_path / "runs/tiny-s1.json")
        assert (status, slot.saved) == (0, ["tiny-s1"])
        assert (found.status, found.error, found.failed_at, found.commit, found.dirty) == (
            "finished",
            None,
            None,
            "abc",
            True,
        )
        assert (found.wall_seconds, found.cpu_seconds, found.alone, found.threads) == (1.0, 2.0, True, 1)
        assert (found.stages, found.peak_memory_mb) == ({"prepare": 1.2, "train": 5.5}, 500.0)
        assert (found.metric("final", "nmi"), found.epochs) == (0.5, ["epoch,nmi", "1,0.1235"])
        assert (found.params["seed"], found.params["data.root"]) == (1, "images")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
        assert capsys.readouterr().out == "tiny-s1: 1 s; accuracy 0.7500, NMI 0.5000\n"

    def test_a_collapse_is_recorded_and_the_next_one_run(self, tmp_path, capsys):
        fails = ended(2, "[0:01] cluster@2", f"{COLLAPSE} below /some/where/images")
        status, _ = recorded(tmp_path, {"tiny-s1": fails, "tiny-s2": ended(0)}, 1, 2, root="/some/where/images")
        found = records.read_record(tmp_path / "runs/tiny-s1.json")
        assert status == 0
        assert (found.status, found.failed_at) == ("failed", "cluster@2")
        assert found.error == f"{COLLAPSE.removeprefix('error: ')} below images"  # no place on a machine
        assert (found.metrics, found.epochs) == ({}, [])
        assert (tmp_path / "runs/tiny-s2.json").exists()
        assert capsys.readouterr().out.splitlines()[0] == f"tiny-s1: 1 s; failed: {found.error}"

    def test_another_failure_is_no_result_and_ends_the_recording(self, tmp_path):
        fails = ended(2, "[0:01] train@1", "error: dvc: no space left")
        with pytest.raises(ExperimentsError) as error:
            recorded(tmp_path, {"tiny-s1": ended(0), "tiny-s2": fails, "tiny-s3": ended(0)}, 1, 2, 3)
        log = tmp_path / "tiny-s2.log"
        assert str(error.value) == f"tiny-s2: failed, not recorded: dvc: no space left (all of it: {log})"
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-s1.json"]

    @pytest.mark.usefixtures("interruptible")
    def test_an_interruption_loses_what_is_in_flight(self, tmp_path, capsys):
        status, slot = recorded(tmp_path, {"tiny-s1": ended(0)}, 1, 2, 3)
        assert (status, slot.saved) == (130, ["tiny-s1"])
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-s1.json"]
        assert capsys.readouterr().err == "interrupted; what is recorded stays, the same command carries on\n"


class TestSlot:
    def test_is_the_checkouts_project_and_goes_back_to_it(self, tmp_path):
        slot = Slot(tmp_path / "a work space", 1, 1)
        slot.copy_project("abc+")
        assert slot.git("log", "--format=%s") == "The project at abc+\n"
        for name in ("params.yaml", "dvc.yaml", *(f"{folder}" for folder in FOLDERS)):
            assert (slot.root / name).exists()
        (slot.root / "params.yaml").write_text("changed")
        for name in (
            "dvc.lock",
            "params.before-recipe.yaml",
            "data/raw/kept",
            "data/epochs/1/x",
            ".dvc/cache/runs/x/y",
        ):
            (slot.root / name).parent.mkdir(parents=True, exist_ok=True)
            (slot.root / name).write_text("x")
        slot.reset()
        assert (slot.root / "params.yaml").read_bytes() == (CHECKOUT / "params.yaml").read_bytes()
        assert slot.git("status", "--porcelain") == ""
        assert [str(path.relative_to(slot.root)) for path in (slot.root / "data").rglob("*")] == [
            "data/raw",
            "data/raw/kept",
        ]
        assert not (slot.root / ".dvc/cache/runs").exists()
        slot.copy_project("abc+")  # nothing has changed
        assert slot.git("rev-list", "--count", "HEAD") == "1\n"
        other = Slot(tmp_path / "a work space", 2, 1)
        other.copy_slot(slot)
        assert other.git("rev-parse", "HEAD") == slot.git("rev-parse", "HEAD")

    def test_never_acts_on_a_repository_around_it(self, tmp_path):
        around = Slot(tmp_path, 1, 1)
        around._init()
        inside = Slot(around.root, 2, 1)
        inside.root.mkdir()
        with pytest.raises(ExperimentsError, match="not a git repository"):
            inside.git("clean", "--force", "-d")

    def test_what_is_started_after_a_stop_ends_at_once(self, tmp_path):
        slot = Slot(tmp_path, 1, 1)
        slot.root.mkdir()
        slot.stop()
        assert slot.command("timeit", "-n", "1", "import time; time.sleep(60)").status == -signal.SIGTERM

    def test_cache_keeps_the_tables_of_saved_experiments_alone(self, tmp_path):
        slot = Slot(tmp_path, 1, 1)
        slot.copy_project("abc")
        kept, other = "a" * 32, "b" * 32
        lines = ["    outs:", "    - path: data/evaluation/metrics.json", "      hash: md5", f"      md5: {kept}"]
        lines += ["    - path: data/evaluation/clusters.csv", "      hash: md5", f"      md5: {other}", ""]
        (slot.root / "dvc.lock").write_text("\n".join(lines))
        slot.git("add", "--force", "dvc.lock")
        slot.git("commit", "--quiet", "--message", "x")
        slot.git("update-ref", "refs/exps/ab/cdef/tiny-s1", "HEAD")
        cache = slot.root / ".dvc/cache/files/md5"
        for digest in (kept, other):
            (cache / digest[:2]).mkdir(parents=True)
            (cache / digest[:2] / digest[2:]).write_text("x")
        slot.prune()
        assert [path.parent.name + path.name for path in cache.glob("*/*")] == [kept]


def test_stage_seconds_of_a_run_that_timed_nothing():
    assert recording.stage_seconds("") == ({}, None)


@pytest.mark.slow
def test_a_real_recording_of_two_at_a_time_and_a_second_one(tmp_path, capfd, monkeypatch):
    """Finished and collapsed runs, recorded and listed by DVC; the same settings give the same numbers."""
    write_images(tmp_path / "images")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = ["data.name=folder", "data.image_size=8", "data.grayscale=true", "epochs=1", "pca.components=4"]
    small += ["cluster.k=4", "train.batch_size=16", "train.epoch_size=1.0", "evaluate.restarts=1"]
    tiny = f"{{group: results, asks: x, seeds: 2, root: images, set: {json.dumps(small)}}}"
    worse = "{group: ablations, asks: x, seeds: 1, base: tiny, set: [cluster.collapse.max_largest_share=0.01]}"
    (tmp_path / "e.yaml").write_text(f"tiny: {tiny}\nworse: {worse}\n")
    words = ["tiny", "worse", "--jobs", "2", "--root", f"images={tmp_path / 'images'}"]
    words += ["--experiments", str(tmp_path / "e.yaml"), "--records", str(tmp_path / "runs")]
    words += ["--workspace", str(tmp_path / "work space")]
    assert record.main(words) == 0, capfd.readouterr()
    found = {path.stem: records.read_record(path) for path in (tmp_path / "runs").iterdir()}
    assert sorted(found) == ["tiny-s1", "tiny-s2", "worse-s1"]
    assert [each.alone for each in found.values()] == [False] * 3
    assert (found["worse-s1"].status, found["worse-s1"].failed_at) == ("failed", "cluster@1")
    assert str(tmp_path) not in (tmp_path / "runs/tiny-s1.json").read_text()

    project = tmp_path / "work space/project-1"
    environment = command_environment(tmp_path)
    shown = subprocess.run(
        ["dvc", "exp", "show", "-A", "--json"], cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    saved = {each["name"]: each["revs"][0]["data"] for revision in json.loads(shown.stdout)
             for each in revision.get("experiments") or []}  # fmt: skip
    assert sorted(saved) == sorted(found)
    assert saved["tiny-s2"]["metrics"]["data/evaluation/metrics.json"]["data"]["final"]["nmi"] == found[
        "tiny-s2"
    ].metric("final", "nmi")
    assert len(list((project / ".dvc/cache/files/md5").glob("*/*"))) <= 4  # two tables for each that finished

    assert record.main(words) == 0
    assert capfd.readouterr().out.endswith("everything is recorded\n")
    (tmp_path / "runs/tiny-s1.json").unlink()
    assert record.main([*words, "--seeds", "1"]) == 0
    assert records.read_record(tmp_path / "runs/tiny-s1.json").metrics == found["tiny-s1"].metrics
