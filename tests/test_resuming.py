"""Train killed on the way: it goes on where it stopped, and ends with the bytes of an undisturbed run."""

import errno
import fcntl
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKOUT, Project, command_environment, digests, edit_params, write_images
from ruamel.yaml import YAML
from test_v2_stages import PARAMS as V2

from deepcluster import artifacts, layout, resuming, training, training_v2
from deepcluster.errors import UserError
from deepcluster.plan import plan
from stages import resuming as stages_resuming
from stages.cluster import cluster
from stages.extract import extract
from stages.initialise import initialise
from stages.pca import pca
from stages.prepare import prepare
from stages.train import train

STEPS, IMAGES = 6, 48
PARAMS: dict[str, Any] = {
    "epochs": 1,
    "data": {"name": "folder", "root": "images", "image_size": 8, "grayscale": True},
    "extract": {"batch_size": 5},
    "pca": {"components": 4},
    "cluster": {"k": 4, "fail_on_collapse": False},
    "train": {"batch_size": 8, "epoch_size": 1.0, "schedule": {"name": "cosine", "epochs": 2}},
    "augment": {"crop": False, "flip": False, "rotation": 10.0, "translate": 0.1, "vertical_flip": True},
    "evaluate": {"restarts": 1},
}
CHANGES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {
        "train.optimizer": {"name": "adam", "lr": 0.003},
        "train.average": 0.9,
        "train.clip_norm": 1.0,
        "train.contrastive": {"strategy": "two_views", "projection": 8},
        "train.head": {"momentum": 0.9, "carry_optimizer": True},
    },
    "frozen": {"train.freeze": ["body"], "train.optimizer": {"name": "lars", "lr": 1.0}, "train.keep": 0.5},
}
OUTPUTS = ("data/epochs/1/checkpoint", "data/history/1/train.json", "data/history/1/steps.csv")


class Killed(BaseException):
    """As if the process had been killed there."""


def made(root: Path, params: dict[str, Any]) -> Path:
    """A folder in which all has run that comes before train@1."""
    root.mkdir()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DEEPCLUSTER_DEVICE", "cpu")
        patch.delenv("DVC_STAGE", raising=False)
        write_images(Path("images"))
        with Path("params.yaml").open("w") as file:
            YAML(typ="safe").dump(params, file)
        plan()
        prepare()
        initialise()
        for stage in (extract, pca, cluster):
            stage(1)
    torch.set_num_threads(before)
    return root


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    return made(tmp_path_factory.mktemp("ready") / "a run", PARAMS)


@pytest.fixture(scope="module")
def ready_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("v2") / "a run", V2 | {"train": V2["train"] | {"batch_size": 8}, "epochs": 1})


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Progress is kept after every step."""
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    monkeypatch.setenv("DEEPCLUSTER_PROGRESS_SECONDS", "0")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(artifacts.publish, "_fsync", lambda path: None)  # a disk may be busy
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder as current folder, to change at will."""
    monkeypatch.chdir(shutil.copytree(ready, tmp_path / "a copy"))
    return tmp_path / "a copy"


@pytest.fixture
def run_v2(ready_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(ready_v2, tmp_path / "a copy"))
    return tmp_path / "a copy"


@contextmanager
def in_step(number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Training does something in the middle of a step, counted from 1 in this process; the steps begun."""
    begun: list[int] = []
    original = training.update

    def update(*arguments: Any) -> None:
        begun.append(len(begun) + 1)
        if begun[-1] == number:
            action()
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, training_v2):
            patch.setattr(module, "update", update)
        yield begun


def kill() -> None:
    raise Killed


@contextmanager
def monkeypatched(owner: Any, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def killed_in(number: int) -> None:
    """Train, killed in this step; then what DVC does before it runs a stage again."""
    with in_step(number, kill), pytest.raises(Killed):
        train(1)
    forget()


def forget() -> None:
    for output in OUTPUTS:
        artifacts.remove(Path(output))


def result() -> dict[str, str]:
    """Digests of what the stages make from here on; nothing else is left."""
    assert not layout.PROGRESS.exists()
    return digests(Path(), *OUTPUTS)


def undisturbed(stage: Callable[[int], None] = train) -> dict[str, str]:
    stage(1)
    found = result()
    forget()
    return found


def set_params(**changes: Any) -> None:
    edit_params(Path("params.yaml"), {key.replace("__", "."): value for key, value in changes.items()})


STATE = layout.progress("train", 1) / "state.safetensors"


class TestTrain:
    @pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
    def test_killed_in_every_step_it_ends_with_the_same_bytes(self, run, changes, capsys):
        edit_params(Path("params.yaml"), changes)
        self.killed_again_and_again(capsys)

    def test_so_does_deepcluster_v2(self, run_v2, capsys):
        self.killed_again_and_again(capsys)

    def killed_again_and_again(self, capsys):
        expected = undisturbed()
        assert len(Path("data/history/1").name) == 1
        capsys.readouterr()
        killed_in(1)
        assert not layout.PROGRESS.exists()
        killed_in(2)  # one step is done
        for done in range(1, STEPS - 1):
            killed_in(2)
            assert f"train@1: continues at step {done} of {STEPS}\n" in capsys.readouterr().err
        with in_step(0, kill) as begun:
            train(1)
        assert f"train@1: continues at step {STEPS - 2} of {STEPS}\n" in capsys.readouterr().err
        assert begun == [1, 2]
        assert result() == expected

    def test_killed_while_it_publishes_it_only_publishes_again(self, run):
        expected = undisturbed()
        with monkeypatched(artifacts, "write_text", lambda *_: kill()), pytest.raises(Killed):
            train(1)
        with in_step(0, kill) as begun:
            train(1)
        assert begun == []
        assert result() == expected

    def test_the_progress_line_counts_what_is_new(self, run, capsys):
        killed_in(4)
        capsys.readouterr()
        train(1)
        assert re.search(r"^train@1: 24 images(, [\d,]+/s)?, [\d.]+ s$", capsys.readouterr().err, flags=re.MULTILINE)

    def test_short_stages_keep_nothing(self, run, monkeypatch):
        monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
        killed_in(5)
        assert not layout.PROGRESS.exists()


def starts_over(capsys: pytest.CaptureFixture[str], expected: dict[str, str], because: str) -> None:
    """Train takes every step, says why in one line, and ends with these bytes."""
    capsys.readouterr()
    with in_step(0, kill) as begun:
        train(1)
    assert len(begun) == STEPS
    assert [line for line in capsys.readouterr().err.splitlines() if "starts over" in line] == [
        f"train@1: starts over: {because}"
    ]
    assert result() == expected


class TestStartingOver:
    def test_other_params(self, run, capsys):
        set_params(train__optimizer={"lr": 0.01})
        expected = undisturbed()
        set_params(train__optimizer={"lr": 0.02})
        killed_in(4)
        set_params(train__optimizer={"lr": 0.01})
        starts_over(capsys, expected, "what an interrupted run left was of other params")

    def test_params_that_training_does_not_read_change_nothing(self, run, capsys):
        killed_in(4)
        set_params(extract__batch_size=7, evaluate__restarts=3)
        train(1)
        assert "train@1: continues at step 3 of 6\n" in capsys.readouterr().err

    def test_other_inputs(self, run, capsys):
        killed_in(4)
        set_params(cluster__k=3)
        cluster(1)
        expected = undisturbed_elsewhere(run)
        starts_over(capsys, expected, "what an interrupted run left was of other clusters")

    def test_inputs_written_anew_with_the_same_bytes_are_the_same(self, run, capsys):
        """As when DVC fetches them from its run-cache."""
        killed_in(4)
        for path in (layout.clusters(1), layout.IMAGES, layout.checkpoint(0)):
            path.rename(path.with_name("old"))
            shutil.copytree(path.with_name("old"), path)
            shutil.rmtree(path.with_name("old"))
        train(1)
        assert "train@1: continues at step 3 of 6\n" in capsys.readouterr().err

    def test_another_release_of_the_contrastive_losses(self, run, capsys, monkeypatch):
        expected = undisturbed()
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name: "0.0")
            killed_in(4)
        starts_over(capsys, expected, "what an interrupted run left was of other versions")

    def test_other_code_versions_and_threads(self, run, capsys, monkeypatch):
        expected = undisturbed()
        with monkeypatch.context() as patch:
            patch.setattr(stages_resuming, "_versions", dict)
            patch.setattr(stages_resuming, "_machine", dict)
            patch.setattr(stages_resuming, "code", lambda: "0")
            killed_in(4)
        starts_over(capsys, expected, "what an interrupted run left was of other code, machine, versions")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        killed_in(4)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        starts_over(capsys, expected, "what an interrupted run left was of other machine")

    @pytest.mark.parametrize("damage", ["flipped", "another file"])
    def test_damage(self, run, capsys, damage):
        expected = undisturbed()
        killed_in(4)
        written = bytearray(STATE.read_bytes())
        written[-100] ^= 1
        contents = {"flipped": written, "another file": b"x" * 999}
        STATE.write_bytes(contents[damage])
        starts_over(capsys, expected, "what an interrupted run left is damaged")

    def test_a_kill_while_it_is_written_leaves_the_one_before(self, run, monkeypatch, capsys):
        expected = undisturbed()
        with monkeypatch.context() as patch:
            original = os.replace

            def third(self, target, calls=[]):  # noqa: B006 - counts
                calls.append(target)
                if len(calls) == 3:
                    kill()
                return original(self, target)

            patch.setattr(Path, "replace", third)
            with pytest.raises(Killed):
                train(1)
        train(1)
        assert "train@1: continues at step 2 of 6\n" in capsys.readouterr().err
        assert result() == expected


def undisturbed_elsewhere(run: Path) -> dict[str, str]:
    """The same, without touching the progress that is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(run, run.parent / "elsewhere"))
        shutil.rmtree(layout.PROGRESS)
        return undisturbed()


class TestSignals:
    """In the middle of a step; progress is not kept by time."""

    @pytest.fixture(autouse=True)
    def _seldom(self, monkeypatch):
        monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.handlers = {number: signal.getsignal(number) for number in before}
        yield
        assert {number: signal.getsignal(number) for number in before} == self.handlers
        for number, handler in before.items():
            signal.signal(number, handler)

    @pytest.mark.parametrize(
        ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["int", "term"]
    )
    def test_it_stops_after_the_step_and_goes_on_there(self, run, capfd, number, error):
        expected = undisturbed()
        with in_step(3, lambda: signal.raise_signal(number)) as begun, pytest.raises(error):
            train(1)
        assert begun == [1, 2, 3]
        assert capfd.readouterr().err.splitlines()[-1] == "train@1: stops after this step; once more stops at once"
        with in_step(0, kill) as begun:
            train(1)
        assert begun == [1, 2, 3]
        assert "train@1: continues at step 3 of 6\n" in capfd.readouterr().err
        assert result() == expected

    def test_a_second_one_stops_at_once(self, run):
        def twice():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

        with in_step(3, twice) as begun, pytest.raises(KeyboardInterrupt):
            train(1)
        assert begun == [1, 2, 3]

    @pytest.mark.parametrize("step", [5, 6])
    def test_in_the_last_steps_nothing_is_lost(self, run, step):
        expected = undisturbed()
        with in_step(step, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            train(1)
        with in_step(0, kill) as begun:
            train(1)
        assert begun == []
        assert result() == expected

    def test_one_after_the_last_step_is_not_lost(self, run):
        progress = resuming.Progress("train@1", layout.progress("train", 1), resuming.Key({}, {}))
        with pytest.raises(KeyboardInterrupt), progress.catching():
            signal.raise_signal(signal.SIGINT)

    def test_what_is_ignored_stays_ignored(self, run):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.handlers[signal.SIGINT] = signal.SIG_IGN
        with in_step(3, lambda: signal.raise_signal(signal.SIGINT)) as begun:
            train(1)
        assert len(begun) == STEPS


class TestKeeping:
    def test_a_full_disk_is_said_once_and_training_goes_on(self, run, monkeypatch, capsys):
        expected = undisturbed()
        capsys.readouterr()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(artifacts, "write_progress", full)
        train(1)
        assert capsys.readouterr().err.count("train@1: cannot keep its progress: No space left on device\n") == 1
        assert result() == expected

    def test_inputs_that_change_meanwhile_are_no_longer_those_of_the_run(self, run):
        def touched():
            os.utime(layout.clusters(1) / "zarr.json", ns=(1, 1))

        with in_step(1, touched), monkeypatched(artifacts, "write_text", lambda *_: kill()), pytest.raises(Killed):
            train(1)
        assert not STATE.exists()

    def test_progress_that_another_process_holds_is_left_alone(self, run, capsys, monkeypatch):
        monkeypatch.setattr(resuming, "PATIENCE", 0.0)
        expected = undisturbed()
        killed_in(4)
        before = STATE.read_bytes()
        capsys.readouterr()
        with (STATE.parent / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with in_step(0, kill) as begun:
                train(1)
        assert len(begun) == STEPS
        held = "train@1: starts over: data/progress/train-1 is in use by another process\n"
        assert held in capsys.readouterr().err
        assert STATE.read_bytes() == before
        assert digests(Path(), *OUTPUTS) == expected

    def test_progress_that_cannot_be_locked_is_not_said_to_be_in_use(self, run, capsys, monkeypatch):
        killed_in(4)

        def refused(_: Path) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(resuming, "_locked", refused)
        capsys.readouterr()
        with in_step(0, kill):
            train(1)
        said = "train@1: starts over: data/progress/train-1 cannot be locked (Permission denied)\n"
        assert said in capsys.readouterr().err

    def test_a_lock_that_is_freed_in_a_moment_is_waited_for(self, run, monkeypatch, capsys):
        killed_in(4)
        with (STATE.parent / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            monkeypatch.setattr(resuming, "PATIENCE", 1e9)
            monkeypatch.setattr(resuming.time, "sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))
            train(1)
        assert "train@1: continues at step 3 of 6\n" in capsys.readouterr().err

    def test_it_is_kept_at_most_a_fiftieth_of_the_time(self, run, monkeypatch):
        monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
        now, kept = [0.0], []

        def slow(path, arrays, key):
            kept.append(now[0])
            now[0] += 10.0

        monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(artifacts, "write_progress", slow)
        progress = resuming.Progress("train@1", layout.progress("train", 1), resuming.Key({}, {}))
        with progress:
            for _ in range(1000):
                progress.boundary(dict)
                now[0] += 1.0
        assert kept == [60.0, 570.0]

    def test_plan_removes_that_of_epochs_beyond_the_last(self, run):
        for name in ("train-1", "train-2", "extract-12", "own-notes"):
            (layout.PROGRESS / name).mkdir(parents=True)
        plan()
        assert sorted(os.listdir(layout.PROGRESS)) == ["own-notes", "train-1"]

    @pytest.mark.parametrize("text", ["-1", "often", "nan"])
    def test_another_interval_is_refused(self, run, monkeypatch, text):
        monkeypatch.setenv("DEEPCLUSTER_PROGRESS_SECONDS", text)
        with pytest.raises(UserError) as error:
            train(1)
        assert str(error.value) == f"DEEPCLUSTER_PROGRESS_SECONDS: must be a number from 0 on; got {text!r}"


SCRIPT = """
import os, signal
from deepcluster import training
original, begun = training.update, []
def update(*arguments):
    begun.append(1)
    if len(begun) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    original(*arguments)
training.update = update
from stages.train import train
train(1)
"""


def test_a_process_killed_by_the_system_is_continued_by_another(run, capsys):
    expected = undisturbed()
    environment = command_environment(run) | {"PYTHONPATH": str(CHECKOUT), "DEEPCLUSTER_DEVICE": "cpu"}
    environment["DEEPCLUSTER_PROGRESS_SECONDS"] = "0"
    killed = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train(1)
    assert "train@1: continues at step 3 of 6\n" in capsys.readouterr().err
    assert result() == expected


KILLED_ONCE = """

_boundary = Progress.boundary


def _killed_once(self: Progress, arrays: Callable[[], Arrays]) -> None:
    _boundary(self, arrays)
    if self.label == "train@2" and not os.path.exists("killed"):
        open("killed", "x").close()
        os.kill(os.getpid(), signal.SIGKILL)


Progress.boundary = _killed_once
"""


def kill_once(project: Project) -> None:
    """In the project's own copy of a module that no stage depends on."""
    with (project.root / "deepcluster/resuming.py").open("a") as file:
        file.write(KILLED_ONCE)


def goes_on(project: Project, *command: str) -> None:
    assert project.run(*command, status=None, DEEPCLUSTER_PROGRESS_SECONDS="0").returncode != 0
    assert (project.root / "data/progress/train-2/state.safetensors").exists()
    assert "train@2: continues at step 1 of 3\n" in project.run(*command).stderr


@pytest.mark.slow
def test_repro_goes_on_in_the_middle_of_a_stage_and_ends_with_the_same_bytes(project, finished):
    kill_once(project)
    goes_on(project, "dvc", "repro", "--single-item", "--force", "train@2")
    assert project.digests() == finished.digests()


@pytest.mark.slow
def test_run_goes_on_in_the_middle_of_a_stage_and_ends_with_the_same_bytes(unstarted, finished, tmp_path):
    project = unstarted.clone(tmp_path / "a clone")
    kill_once(project)
    goes_on(project, "deepcluster", "run")
    assert project.digests() == finished.digests()
