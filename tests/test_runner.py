"""`deepcluster run`: one process, and everything as after `dvc repro`.

A run from nothing, interrupted runs and runs beside each other are processes of their own; the others run in this one.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import edit_params
from ruamel.yaml import YAML

import stages.extract
from deepcluster import lockfile, runner
from deepcluster.errors import RunnerError


def locked(project):
    return YAML(typ="safe").load((project.root / "dvc.lock").read_text())


def ran_in_process(output):
    return re.findall(r"^\[\d+:\d\d\] (.+)$", output, flags=re.MULTILINE)


@pytest.fixture
def fresh(unstarted, tmp_path):
    return unstarted.clone(tmp_path / "a fresh clone")


@pytest.mark.slow
def test_run_gives_the_bytes_and_the_lock_of_repro_and_each_leaves_the_other_nothing_to_do(fresh, project, said):
    assert len(ran_in_process(said)) == 2 + 2 * 4 + 2
    assert len(fresh.repro()) == 2 + 2 * 4 + 2
    assert project.digests() == fresh.digests()
    assert (project.root / "dvc.lock").read_bytes() == (fresh.root / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date" in project.dvc("status").stdout
    assert project.repro() == []


def test_run_shows_a_row_of_the_epoch_table_as_each_epoch_ends(finished, said):
    project, lines = finished, said.splitlines()
    headers = [index for index, line in enumerate(lines) if line.split()[:2] == ["epoch", "loss"]]
    first, second = (lines[index + 1].split() for index in headers)
    assert [first[0], second[0]] == ["1/2", "2/2"]
    rows = list(csv.DictReader((project.root / "data/evaluation/epochs.csv").open()))
    for shown, row in zip((first, second), rows, strict=True):
        assert float(shown[1]) == pytest.approx(float(row["loss"]), abs=1e-4)
        assert [shown[4], shown[5]] == [row["smallest"], row["largest"]]
    assert first[3] == "-"
    assert float(second[3]) == pytest.approx(float(rows[1]["nmi_previous"]), abs=1e-3)
    assert first[-1] != "0:00" or float(first[-3]) < 0.5
    assert second[-1] == "0:00"
    assert next(line for line in lines if re.match(r"\[\d+:\d\d\] ", line)).endswith("] prepare")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds, text):
    assert runner._clock(seconds) == text


PLAIN = "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    deps:\n    - path: p\n  b@1:\n    cmd: y\n"


def test_a_lock_file_is_split_into_its_entries():
    entries = lockfile.split(PLAIN)
    assert entries == {"a": "    cmd: x\n    deps:\n    - path: p\n", "b@1": "    cmd: y\n"}
    assert lockfile.join(entries) == PLAIN
    assert lockfile.join(entries | {"a": "    cmd: z\n"}).index("cmd: z") < PLAIN.index("b@1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        PLAIN.rstrip("\n"),
        PLAIN + "datasets:\n- name: d\n",
        PLAIN.replace("  b@1", "# mine\n  b@1"),
        PLAIN.replace("'2.0'", "'3.0'"),
        PLAIN.replace("  b@1", "<<<<<<< HEAD\n  b@1"),
        PLAIN.replace("b@1", "a"),
    ],
)
def test_a_lock_file_that_is_not_plain_is_left_to_dvc(text):
    assert lockfile.split(text) is None


def test_of_a_lock_file_cut_short_anywhere_the_whole_entries_are_kept():
    entries = {name: f"    cmd: {name}\n    deps:\n    - path: p\n      md5: 0a\n" for name in ("a", "b@1", "c")}
    text = lockfile.join(entries)
    for length in range(len(text)):
        found = lockfile.salvaged(text[:length])
        begun = [name for name in entries if text.index(f"  {name}:\n") + len(f"  {name}:\n") <= length]
        assert found == {name: entries[name] for name in begun[:-1]}, length


@pytest.mark.parametrize("text", ["mine\n", PLAIN + "<<<<<<< HEAD\n", PLAIN.replace("  b@1", "<<<<<<< HEAD\n  b@1")])
def test_a_lock_file_with_something_else_in_it_is_not_cut(text):
    assert lockfile.salvaged(text) is None


@pytest.mark.slow
def test_a_comment_in_the_lock_file_survives_a_run(project, here):
    path = project.root / "dvc.lock"
    path.write_text(path.read_text().replace("  prepare:\n", "  # a remark\n  prepare:\n"))
    project.set_params(evaluate__gallery=3)
    here(project, "run")
    assert "  # a remark\n  prepare:\n" in path.read_text()
    assert project.repro() == []


@pytest.mark.slow
def test_after_repro_run_has_nothing_to_do_and_does_what_a_change_touches(project, here):
    assert "everything is up to date" in here(project, "run")
    project.set_params(evaluate__gallery=3)
    assert ran_in_process(here(project, "run")) == ["evaluate", "report"]
    here(project, "plan", "--epochs", "3")
    expected = ["extract@3", "pca@3", "cluster@3", "train@3", "evaluate", "report"]
    assert ran_in_process(here(project, "run")) == expected
    assert project.repro() == []


def test_run_takes_targets(fresh, here):
    assert ran_in_process(here(fresh, "run", "pca@1")) == ["prepare", "initialise", "extract@1", "pca@1"]
    missing = here(fresh, "run", "nothing@9", status=2)
    assert missing.startswith("error: dvc: ")
    assert "Traceback" not in missing


def test_a_failing_stage_is_one_line_and_keeps_what_was_finished(fresh, finished, here):
    fresh.set_params(cluster__collapse__max_largest_share=0.1)
    failed = here(fresh, "run", status=2)
    (error,) = [line for line in failed.splitlines() if line.startswith("error")]
    assert error.startswith("error: cluster@1: collapse: the largest of 4 clusters holds ")
    assert "Traceback" not in failed
    assert set(locked(fresh)["stages"]) == {"prepare", "initialise", "extract@1", "pca@1"}
    fresh.set_params(cluster__collapse__max_largest_share=0.5)
    assert ran_in_process(here(fresh, "run"))[0] == "cluster@1"
    assert fresh.digests("data/epochs", "data/history") == finished.digests("data/epochs", "data/history")


@pytest.fixture
def interruptible():
    """A shell's background jobs, and what they start, ignore Ctrl-C; what these tests start must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_with(project, stage, action, *targets):
    """`deepcluster run` in which a stage first does `action`, a line of Python: nothing depends on the clock."""
    script = (
        "import json, os, shutil, signal, subprocess, sys\n"
        "from deepcluster import runner\n"
        f"original = runner.STAGES['stages.{stage}']\n"
        "def acting(**arguments):\n"
        f"    {action}\n"
        "    original(**arguments)\n"
        f"runner.STAGES['stages.{stage}'] = acting\n"
        f"sys.argv = ['deepcluster', 'run', *{targets}]\n"
        "from deepcluster.cli import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=project.root, env=project.environment, capture_output=True, text=True,
        start_new_session=True, timeout=300,
    )  # fmt: skip


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_run_is_carried_on_by_either_command(fresh, finished, here, how):
    process = run_with(fresh, "cluster", f"os.kill(os.getpid(), {int(how)})")
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in process.stderr
    if how == signal.SIGINT:
        assert process.stderr.endswith("interrupted; what was published before stays, the same command carries on\n")
    else:
        assert {"prepare", "initialise", "extract@1", "pca@1"}.isdisjoint(fresh.repro("train@1"))
    assert "prepare" not in ran_in_process(here(fresh, "run"))
    assert fresh.digests() == finished.digests()
    assert locked(fresh) == locked(finished)


def test_params_that_change_meanwhile_are_refused(fresh, here, monkeypatch):
    changed = fresh.root / "params.new"
    shutil.copyfile(fresh.root / "params.yaml", changed)
    edit_params(changed, {"cluster.k": 3})
    original = runner.STAGES["stages.extract"]

    def extract(**arguments):
        os.replace("params.new", "params.yaml")  # at once, as editors do
        original(**arguments)

    monkeypatch.setitem(runner.STAGES, "stages.extract", extract)
    refusal = "error: params.yaml changed during the run; finished stages are kept: start it again"
    assert refusal in here(fresh, "run", status=2)
    assert set(locked(fresh)["stages"]) == {"prepare", "initialise", "extract@1"}


def test_params_that_change_while_a_stage_runs_are_not_recorded_with_what_it_made(fresh, here, monkeypatch):
    changed = fresh.root / "params.new"
    shutil.copyfile(fresh.root / "params.yaml", changed)
    edit_params(changed, {"extract.batch_size": 3})
    original = stages.extract._write_computed

    def write_computed(*arguments):
        os.replace("params.new", "params.yaml")
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages.extract, "_write_computed", write_computed)
        refusal = (
            "error: params.yaml: changed while extract@1 ran, in what that stage reads (extract); what it made does not"
        )
        assert refusal in here(fresh, "run", "extract@1", status=2)
    assert set(locked(fresh)["stages"]) == {"prepare", "initialise"}
    assert ran_in_process(here(fresh, "run", "extract@1")) == ["extract@1"]
    assert locked(fresh)["stages"]["extract@1"]["params"]["params.yaml"]["extract"]["batch_size"] == 3


def test_what_starts_beside_a_run_is_refused_before_it_changes_anything_and_the_run_goes_on(fresh):
    """Both within the first stage: another run with other settings, and `dvc repro`."""
    before = (fresh.root / "params.yaml").read_text()
    action = (
        "found = [subprocess.run(words.split(), capture_output=True, text=True) for words in "
        "('deepcluster run -S cluster.k=3', 'dvc repro prepare')]; "
        "open('beside', 'w').write(json.dumps([os.getpid(), *[[one.returncode, one.stderr] for one in found]]))"
    )
    first = run_with(fresh, "prepare", action, "prepare")
    assert (first.returncode, first.stderr.count("error")) == (0, 0), first.stderr
    process, run, repro = json.loads((fresh.root / "beside").read_text())
    refusal = f"error: process {process} is a `deepcluster run` in this project; wait until it has ended, or end it\n"
    assert run == [2, refusal]
    assert (fresh.root / "params.yaml").read_text() == before
    assert repro[0] == 255
    assert f"is busy, it is being blocked by:\n  (PID {process}): " in repro[1]
    assert set(locked(fresh)["stages"]) == {"prepare"}
    assert "everything is up to date" in fresh.run("deepcluster", "run", "prepare").stdout


def test_a_run_beside_dvc_repro_is_refused_and_dvc_repro_goes_on(fresh):
    stage = fresh.root / "stages/prepare.py"
    call = (
        "import subprocess\n    found = subprocess.run(['deepcluster', 'run'], capture_output=True, text=True)\n"
        "    open('beside', 'w').write(f'{found.returncode}\\n{found.stderr}')\n    main(prepare)"
    )
    stage.write_text(stage.read_text().replace("main(prepare)", call))
    fresh.dvc("repro", "prepare")
    status, said = (fresh.root / "beside").read_text().split("\n", 1)
    assert status == "2"
    pattern = (
        r"error: process \d+ \(`.*dvc repro prepare`\) works in this project; wait until it has ended, or end it\n"
    )
    assert re.fullmatch(pattern, said), said


def test_a_run_waits_for_dvcs_lock_as_long_as_a_push_may_hold_it(fresh):
    """By itself DVC tries seven times within three seconds, and then fails: here it gets the lock at the twentieth."""
    action = (
        "from dvc import lock; held = lock.Lock('.dvc/tmp/lock'); held.lock(); tried = []; "
        "lock.time.sleep = lambda seconds: tried.append(seconds) or (held.unlock() if len(tried) == 20 else None)"
    )
    found = run_with(fresh, "prepare", action, "prepare")
    assert found.returncode == 0, found.stderr


def test_what_a_killed_dvc_leaves_half_written_is_mended(project, finished):
    lock = project.root / "dvc.lock"
    text = lock.read_text()
    lock.write_text(text[: text.index("    - path", text.index("  train@2:")) + 8])
    (project.root / ".dvc/tmp/rwlock").write_text('{"write": {')
    leaving = project.root / f"data/history/1/.train.json.{2**22 + 1}.partial"
    leaving.write_text("half")
    lines = project.run("deepcluster", "run").stdout.splitlines()
    assert lines[:2] == [
        "rwlock: left half written by a killed DVC; removed",
        "dvc.lock: left half written by a killed DVC; its 9 whole entries are kept",
    ]
    assert not leaving.exists()
    assert (project.digests(), lock.read_text()) == (finished.digests(), text)


def test_an_untested_dvc_is_refused_with_the_other_way(monkeypatch):
    import dvc

    monkeypatch.setattr(dvc, "__version__", "4.0.1")
    with pytest.raises(RunnerError, match=r"dvc 4\.0\.1: .* tested with dvc 3\.67 only; use `dvc repro` instead"):
        runner.check_dvc()


def test_a_dvc_without_what_is_needed_is_refused(monkeypatch):
    import dvc.stage.run

    monkeypatch.setattr(dvc.stage.run, "cmd_run", lambda command: None)
    with pytest.raises(RunnerError, match=r"lacks dvc\.stage\.run\.cmd_run; use `dvc repro`"):
        runner.check_dvc()


@pytest.mark.parametrize(
    ("command", "module", "arguments"),
    [
        ("python -m stages.prepare", "stages.prepare", {}),
        ("python -m stages.train --epoch 12", "stages.train", {"epoch": 12}),
        ("python -m stages.train --epoch x", None, {}),
        ("echo hello", None, {}),
        (["python -m stages.prepare"], None, {}),
    ],
)
def test_only_our_own_commands_are_called_in_process(command, module, arguments):
    assert runner._parse(command) == (runner.STAGES.get(module), arguments)


@pytest.mark.slow
def test_a_file_of_weights_that_has_changed_is_refused_before_any_work(project, here):
    shutil.copyfile(project.root / "data/epochs/2/checkpoint/model.safetensors", project.root / "w.safetensors")
    here(project, "run", "initialise", "-S", "model.weights=w.safetensors")
    assert "everything is up to date" in here(project, "run", "initialise")
    shutil.copyfile(project.root / "data/epochs/1/checkpoint/model.safetensors", project.root / "w.safetensors")
    assert here(project, "run", status=2) == (
        "error: model.weights: w.safetensors has changed since `initialise` read it, which DVC does not see; run "
        "`dvc repro -s -f initialise` first\n"
    )
    project.repro("-s", "-f", "initialise")
    here(project, "run", "extract@1")
    (project.root / "w.safetensors").unlink()  # no longer needed
    assert "everything is up to date" in here(project, "run", "extract@1")


def test_what_dvc_keeps_of_finished_stages_is_let_go():
    """Its listings of folders, of which it lays another copy into a memory of its own: they would grow to the end."""
    from types import SimpleNamespace

    from dvc_objects.fs import MemoryFileSystem

    from deepcluster.runner import _let_go

    staged = MemoryFileSystem().fs
    staged.pipe_file("memory://folder/listing", b"[]")
    stage = SimpleNamespace(outs=[SimpleNamespace(obj=1)], deps=[SimpleNamespace(obj=2), SimpleNamespace(obj=None)])
    _let_go([stage])
    assert [item.obj for item in (*stage.outs, *stage.deps)] == [None, None, None]
    assert MemoryFileSystem().fs.find("/") == []
