"""Who may work in a project at the same time; whoever is killed frees what it held."""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import edit_params

from deepcluster import locking, processes
from deepcluster.commands.check import check
from deepcluster.errors import BusyError, RunnerError
from deepcluster.fingerprints import code_at_start
from deepcluster.params import load_params
from deepcluster.plan import schedule_text
from stages.common import remove_leavings, stage

HOLD = """
import sys
from deepcluster import locking
lock = locking.only_run() if sys.argv[1] == "run" else locking.only_writer(sys.argv[1])
with lock:
    print("held", flush=True)
    sys.stdin.read()
"""
CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with DVC, as current folder."""
    (tmp_path / "a project/.dvc").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a project")


@pytest.fixture
def holder(project):
    """Starts a process that holds a lock until its standard input ends."""
    started = []

    def start(lock):
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, lock],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_and_one_after_a_killed_run_is_not(holder):
    first = holder("run")
    with pytest.raises(BusyError) as refused, locking.only_run():
        pass
    assert str(refused.value) == (
        f"process {first.pid} is a `deepcluster run` in this project; wait until it has ended, or end it"
    )
    first.kill()
    first.wait()
    with locking.only_run():
        assert (locking.FOLDER / "run").read_text() == f"{os.getpid()}\n"
    assert (locking.FOLDER / "run").read_text() == ""


def test_a_stage_that_dvc_starts_beside_a_run_is_refused_but_not_the_run_s_own(holder):
    locking.refuse_beside_run("train@1")
    with locking.only_run():
        locking.refuse_beside_run("train@1")
    first = holder("run")
    with pytest.raises(BusyError) as refused:
        locking.refuse_beside_run("train@1")
    assert str(refused.value) == (
        f"train@1: process {first.pid} is a `deepcluster run` in this project; wait until it has ended"
    )


def test_a_stage_waits_for_the_one_that_was_left_behind(holder, monkeypatch, capsys):
    left, flock = holder("train@1"), fcntl.flock

    def ending(file, how):
        if not how & fcntl.LOCK_NB:  # it has begun to wait
            assert capsys.readouterr().err == (
                f"train@1: process {left.pid} still works on it; waiting for it to end\n"
            )
            left.kill()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", ending)
    with locking.only_writer("train@2"):
        assert capsys.readouterr().err == ""
    with locking.only_writer("train@1"):
        assert (locking.FOLDER / "train@1").read_text() == f"{os.getpid()}\n"
        assert left.wait() == -signal.SIGKILL


def test_a_glance_at_the_lock_does_not_refuse_a_run(project, monkeypatch):
    locking.FOLDER.mkdir(parents=True)
    glance = os.open(locking.FOLDER / "run", os.O_RDWR | os.O_CREAT)
    fcntl.flock(glance, fcntl.LOCK_EX)
    monkeypatch.setattr(locking.time, "sleep", lambda seconds: os.close(glance))
    with locking.only_run():
        assert (locking.FOLDER / "run").read_text() == f"{os.getpid()}\n"


def test_without_dvc_or_where_nothing_can_be_written_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locking.only_run(), locking.only_run(), locking.only_writer("train@1"):
        assert list(tmp_path.iterdir()) == []
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/tmp").write_text("in the way")
    with locking.only_run(), locking.only_run(), locking.only_writer("train@1"):
        pass


def test_where_files_cannot_be_locked_there_are_no_locks(project, monkeypatch):
    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locking.only_run(), locking.only_run(), locking.only_writer("train@1"):
        pass


def test_ancestors_are_this_process_its_parent_and_so_on():
    found = processes.ancestors()
    assert found[:2] == [os.getpid(), os.getppid()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("owners", "parent", "orphan"),
    [
        ([], 1, False),  # nobody is known to have started it
        (["ours"], 1, False),
        ([2**22 + 1], 1, True),
        ([2**22 + 1], os.getppid(), False),  # as under a batch system, on another machine
    ],
)
def test_a_stage_is_an_orphan_if_its_dvc_is_none_of_its_ancestors_and_init_has_taken_it_in(
    owners, parent, orphan, monkeypatch
):
    owners = [os.getpid() if owner == "ours" else owner for owner in owners]
    monkeypatch.setattr(os, "getppid", lambda: parent)
    assert processes.orphaned(owners) is orphan


def test_who_writes_by_dvcs_own_list(tmp_path):
    path = tmp_path / "rwlock"
    assert processes.dvc_writers(path) == {}
    path.write_text('{"write": {"/a": {"pid": 12, "cmd": "dvc repro"}, "/b": {}}, "read": {"/c": [{"pid": 13}]}}')
    assert processes.dvc_writers(path) == {12: "dvc repro"}
    for torn in ("", '{"write"', "[]", '{"write": 3}', '{"write": {"/a": {"pid": "x"}}}'):
        path.write_text(torn)
        assert processes.dvc_writers(path) == {}


@pytest.fixture
def stage_of_dvc(project, monkeypatch):
    """A project's settings, and the environment that DVC gives a stage."""
    shutil.copyfile(CHECKOUT / "params.yaml", "params.yaml")
    Path("stages").mkdir()
    Path("stages/schedule.yaml").write_text(schedule_text(load_params().epochs))
    monkeypatch.setenv("DVC_STAGE", "train@1")


def test_a_stage_whose_dvc_was_killed_does_nothing(stage_of_dvc, monkeypatch):
    monkeypatch.setattr(processes, "orphaned", lambda owners: True)
    with pytest.raises(BusyError) as refused, stage("train", 1):
        raise AssertionError("it worked")
    assert str(refused.value) == "train@1: the DVC that started it has ended; nothing was done"


def test_a_stage_holds_its_lock_and_is_refused_beside_a_run(stage_of_dvc, holder):
    with stage("train", 1):
        assert (locking.FOLDER / "train@1").read_text() == f"{os.getpid()}\n"
    with stage("report"):
        assert (locking.FOLDER / "report").read_text() == f"{os.getpid()}\n"
    first = holder("run")
    with pytest.raises(BusyError, match=rf"^train@1: process {first.pid} is a `deepcluster run`"), stage("train", 1):
        raise AssertionError("it worked")


def test_a_check_is_refused_beside_a_run(project, holder):
    first = holder("run")
    with pytest.raises(BusyError, match=rf"^check: process {first.pid} is a `deepcluster run`"):
        check(repair=True)


def test_params_that_a_stage_does_not_read_may_change_while_it_runs(stage_of_dvc):
    shutil.copyfile(CHECKOUT / "dvc.yaml", "dvc.yaml")
    with stage("train", 1):
        edit_params(Path("params.yaml"), {"cluster.k": 7, "report.map": "tsne"})
    with (
        pytest.raises(
            RunnerError,
            match=r"^params.yaml: changed while train@1 ran, in what that stage reads \(seed, train\); what",
        ),
        stage("train", 1),
    ):
        edit_params(Path("params.yaml"), {"train.batch_size": 7, "seed": 9})
    for name, key in (("evaluate", "cluster.k"), ("report", "cluster")):  # one key of a section; the whole file
        with pytest.raises(RunnerError, match=rf"changed while {name} ran, .* \({key}\);"), stage(name):
            edit_params(Path("params.yaml"), {"cluster.k": len(name), "cluster.restarts": len(name)})


def test_code_that_a_stage_reads_must_not_change_while_it_runs(stage_of_dvc):
    shutil.copyfile(CHECKOUT / "dvc.yaml", "dvc.yaml")
    for name in ("stages/pca.py", "deepcluster/reduction/pca.py", "deepcluster/show/text.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x = 1\n")
    code_at_start.cache_clear()
    with stage("pca", 1):
        Path("deepcluster/show/text.py").write_text("x = 2\n")  # none of its own
    with (
        pytest.raises(RunnerError, match=r"^deepcluster/reduction/new.py, stages/pca.py: changed since this process"),
        stage("pca", 1),
    ):
        Path("stages/pca.py").write_text("x = 2\n")
        Path("deepcluster/reduction/new.py").write_text("")
    with pytest.raises(RunnerError, match=r", and pca@1 reads it; what it made does not count"), stage("pca", 1):
        pass  # the process still has the old code
    with stage("cluster", 1):
        pass
    code_at_start.cache_clear()


def test_leavings_go_wherever_the_pipeline_publishes_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [
        ".",
        "stages",
        "data",
        "data/dataset",
        "data/epochs/3",
        "data/history/3",
        "data/evaluation",
        "data/report",
    ]
    leavings = [Path(folder, f".x.{2**22 + 1}.partial") for folder in [*folders, "data/raw/images", "mine"]]
    for path in leavings:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    remove_leavings()
    assert [str(path.parent) for path in leavings if path.exists()] == ["data/raw/images", "mine"]


CHILD = "import sys; from deepcluster import processes; {} print('ready', flush=True); sys.stdin.read()"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent on request, others do not")
def test_a_stage_ends_with_the_dvc_that_started_it():
    """Its output ends when the last process that could write there does; its input never does."""
    script = CHILD.format("processes.end_with_parent();")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    ended, _, _ = select.select([parent.stdout], [], [], 60)
    parent.stdin.close()  # ends it in any case
    assert ended, "it lives on"
    assert parent.stdout.read() == ""
    parent.wait()
