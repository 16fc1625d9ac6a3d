"""benchmarks.kills: where it kills, that it does, and that it sees what is lost; as a slow test the pipeline itself."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import kill_at, kills
from benchmarks.kill_points import KINDS, Event, Kind, find, points, read_trace

TRACE = "\n".join(
    f"{process}\t{stage}\t{what}\t{number}"
    for process, stage, what, number in [
        ("dvc", "", "write .dvc/tmp/rwlock", 1),
        ("stages.pca", "pca@1", "read data/epochs/1/features.zarr/zarr.json", 1),
        ("stages.pca", "pca@1", "mkdir data/epochs/1/.pca.zarr.*.partial", 1),
        ("stages.pca", "pca@1", "rename data/epochs/1/pca.zarr", 1),
        ("dvc", "", "write .dvc/tmp/rwlock", 2),
        ("dvc", "", "write dvc.lock", 1),
    ]
)


def test_points_are_found_in_what_an_undisturbed_run_did():
    trace = read_trace(TRACE)
    assert trace[3] == Event("stages.pca", "pca@1", "rename data/epochs/1/pca.zarr", 1)
    named = {kind.name: find(trace, kind) for kind in KINDS}
    assert named["just before it publishes"] == trace[3]
    assert named["as it begins to write"] == trace[2]
    assert named["DVC's list is half written"] == trace[4]
    assert named["dvc.lock is empty"] == trace[5]
    assert named["first file into the cache"] is None
    assert find(trace, Kind("x", False, "write", "first", "before")) == trace[0]
    assert find(trace, Kind("x", False, "write", "middle", "before")) == trace[4]


def test_over_some_stages_every_kind_comes_up_and_every_signal():
    trace, used = read_trace(TRACE), Counter()
    there = {kind.name for kind in KINDS if find(trace, kind)}
    chosen = [point for _ in range(len(there)) for point in points(trace, 2, used)]
    assert set(Counter(point.name for point in chosen).values()) == {2}
    assert {point.name for point in chosen} == there
    assert {point.action for point in chosen} == {signal.SIGKILL, signal.SIGINT, signal.SIGTERM}


SCRIPT = """
import os, sys
from pathlib import Path
Path("data").mkdir()
with open("data/a", "w") as file:
    file.write("whole")
os.rename("data/a", "data/b")
Path("data/c").write_text("whole")
print("ended")
"""


@pytest.fixture
def hooked(tmp_path):
    """Runs SCRIPT as if it was `deepcluster run`, with benchmarks/kill_at.py as its sitecustomize."""
    (tmp_path / "hooks").mkdir()
    shutil.copyfile(kills.CHECKOUT / "benchmarks/kill_at.py", tmp_path / "hooks/sitecustomize.py")
    (tmp_path / "deepcluster.py").write_text(SCRIPT)
    root = tmp_path / "a project"

    def run(**variables):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        (tmp_path / "marker").unlink(missing_ok=True)
        return subprocess.run(
            [sys.executable, str(tmp_path / "deepcluster.py"), "run"], cwd=root, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "hooks"), **variables}, start_new_session=True,
        )  # fmt: skip

    return root, run


def test_what_a_process_does_is_written_down(hooked, tmp_path):
    _, run = hooked
    assert run(KILLS_TRACE=str(tmp_path / "trace")).stdout == "ended\n"
    found = [(event.what, event.number) for event in read_trace((tmp_path / "trace").read_text())]
    assert found == [
        ("start", 1), ("mkdir data", 1), ("write data/a", 1), ("rename data/b", 1), ("write data/c", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "called"),
    [
        ("data/.pca.zarr.4711.partial/zarr.json", "data/.pca.zarr.*.partial/zarr.json"),
        ("data/x/zarr.3a071be54f0e436a9f94af33b16c8cef.partial", "data/x/zarr.*.partial"),
        ("data/.a.12.old.partial", "data/.a.*.old.partial"),
        ("data/epochs/12/train.json", "data/epochs/12/train.json"),
        (".dvc/cache/files/md5/ab/cdef", ".dvc/cache/files/md5/*"),
    ],
)
def test_what_is_drawn_at_random_is_no_part_of_a_point(monkeypatch, path, called):
    monkeypatch.setattr(kill_at, "ROOT", "/a project")
    assert kill_at.place(f"/a project/{path}") == called


@pytest.mark.parametrize(
    ("event", "moment", "left"),
    [
        ("start", "before", {}),
        ("mkdir data", "after", {}),
        ("write data/a", "before", {}),
        ("write data/a", "after", {"a": ""}),
        ("write data/a", "half", {"a": "wh"}),
        ("rename data/b", "before", {"a": "whole"}),
        ("rename data/b", "after", {"b": "whole"}),
        ("write data/c", "after", {"b": "whole", "c": ""}),
    ],
)
def test_a_process_is_killed_there_and_then(hooked, tmp_path, event, moment, left):
    root, run = hooked
    marker = tmp_path / "marker"
    point = {
        "process": "run", "event": event, "number": 1, "moment": moment, "action": int(signal.SIGKILL),
        "marker": str(marker), "release": None,
    }  # fmt: skip
    assert run(KILLS_POINT=json.dumps(point)).returncode == -signal.SIGKILL
    assert marker.exists()
    assert {path.name: path.read_text() for path in root.glob("data/*")} == left
    assert run(KILLS_POINT=json.dumps(point | {"number": 2})).stdout == "ended\n"
    assert not marker.exists()


def test_what_is_lost_is_seen(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("data/a", "one")
    write("data/timings.csv", "not compared")
    write("dvc.lock", "lock")
    digest = hashlib.md5(b"object", usedforsecurity=False).hexdigest()
    cached = f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}"
    write(cached, "object")
    wanted = kills.digests(tmp_path)
    assert sorted(wanted) == ["data/a", "dvc.lock"]
    assert kills.differences(tmp_path, wanted) == []
    write("data/timings.csv", "other")
    assert kills.differences(tmp_path, wanted) == []
    write("data/a", "two")
    write("data/.b.1.partial", "")
    write(cached, "other")
    Path(tmp_path / "dvc.lock").unlink()
    assert kills.differences(tmp_path, wanted) == [
        "data/.b.1.partial: left over or different",
        "data/a: left over or different",
        "dvc.lock: missing",
        f"{cached}: not what its name says",
        "data/.b.1.partial: left over",
    ]


@pytest.mark.slow
def test_killed_anywhere_the_same_command_again_ends_as_if_nothing_had_happened(tmp_path):
    record = tmp_path / "kills.json"
    assert kills.main(["--per-stage", "1", "--whole", "2", "--record", str(record)]) == 0
    found = json.loads(record.read_text())
    assert found["kills"] == found["recovered"] == len(found["points"]) >= 2 + 2 * len(kills.STAGES)
