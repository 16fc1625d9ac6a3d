"""DVC's own files, cut short at any byte by a kill: afterwards DVC reads them."""

import json
import os
import shutil
from pathlib import Path

import pytest

from deepcluster.lockfile import join, split
from deepcluster.mending import mend

PIPELINE = "stages:\n" + "".join(
    f"  {name}:\n    cmd: echo {name}\n    outs:\n    - {name}\n" for name in ("a", "b", "c")
)
ENTRIES = {
    name: f"    cmd: echo {name}\n    outs:\n    - path: {name}\n      md5: {name * 32}\n      size: 1\n"
    for name in ("a", "b", "c")
}


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """DVC's `Repo` of a project with three stages, without git."""
    from dvc.repo import Repo

    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "a project"
    (root / ".dvc/tmp").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    monkeypatch.chdir(root)
    with Repo() as found:
        yield found


def test_dvc_reads_every_mended_lock_file_and_what_was_whole_is_in_it(repo):
    from dvc.dvcfile import Lockfile

    text, path = join(ENTRIES), Path("dvc.lock")
    said = set()
    for length in range(len(text) + 1):
        path.write_text(text[:length])
        lines = mend(repo)
        begun = [name for name in ENTRIES if length >= text.index(f"  {name}:\n") + len(f"  {name}:\n")]
        kept = split(path.read_text()) if path.exists() else {}
        if lines:
            assert kept == {name: ENTRIES[name] for name in begun[:-1]}, length
            count = len(begun[:-1])
            assert lines == [f"dvc.lock: left half written by a killed DVC; its {count} whole entries are kept"]
        assert Lockfile(repo, "dvc.lock").load().get("stages", {}).keys() >= set(begun[:-1]), length
        said.update(lines)
    assert len(said) == 3
    assert (lines, path.read_text()) == ([], text)


def test_a_lock_file_with_a_conflict_is_left_to_its_owner(repo):
    text = join(ENTRIES).replace("  b:\n", "<<<<<<< HEAD\n  b:\n")
    Path("dvc.lock").write_text(text)
    assert mend(repo) == []
    assert Path("dvc.lock").read_text() == text


def test_a_list_of_writers_cut_short_goes_and_a_whole_one_stays(repo):
    path = Path(".dvc/tmp/rwlock")
    entry = {"pid": 2**22 + 1, "cmd": "dvc repro"}
    text = json.dumps({"write": {"/a": entry}, "read": {"/b": [entry]}})
    for length in range(len(text)):
        path.write_text(text[:length])
        assert mend(repo) == ["rwlock: left half written by a killed DVC; removed"]
        assert not path.exists()
    path.write_text(text)
    assert mend(repo) == []
    assert path.read_text() == text
    shutil.rmtree(path.parent)
    assert mend(repo) == []


def test_a_dead_process_that_had_our_number_keeps_nothing_busy(repo):
    """As when a container starts anew: DVC would wait for this very process."""
    path = Path(".dvc/tmp/rwlock")
    other, ours = {"pid": 2**22 + 1, "cmd": "dvc repro"}, {"pid": os.getpid(), "cmd": "dvc repro"}
    path.write_text(json.dumps({"write": {"/a": ours, "/b": other}, "read": {"/c": [ours, other]}}))
    assert mend(repo) == []
    assert json.loads(path.read_text()) == {"write": {"/b": other}, "read": {"/c": [other]}}
