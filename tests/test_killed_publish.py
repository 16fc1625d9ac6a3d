"""Publishing, killed before every single thing that it does to the file system: the old artifact, the new, or none."""

import os
import shutil
import signal
import sys
import warnings

import pytest

from deepcluster import artifacts
from deepcluster.artifacts.publish import publishing, remove_leavings, write_text

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree")
OLD, NEW = {"a": "old", "b/c": "old"}, {"a": "new", "b/d": "new"}


def write_folder(target, content):
    with publishing(target) as partial:
        for name, text in content.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(text)


def read(target):
    """What lies at the target: a file's text, a folder's files, or None."""
    if target.is_file():
        return target.read_text()
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    return {str(path.relative_to(target)): path.read_text() for path in files} if target.is_dir() else None


def killed(work, number):
    """Whether `work`, in a process of its own, came to its `number`-th event, before which that process is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, none of which this uses
        process = os.fork()
    if process == 0:
        count = 0

        def kill(event, arguments):
            nonlocal count
            count += event in EVENTS
            if event in EVENTS and count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    ("write", "old", "new", "between"),
    [
        (write_text, None, "new", []),
        (write_text, "old", "new", []),
        (write_folder, None, NEW, []),
        (write_folder, OLD, NEW, [None]),  # rename does not replace a folder
    ],
    ids=["new file", "replaced file", "new folder", "replaced folder"],
)
def test_killed_anywhere_it_leaves_the_old_the_new_or_none_and_the_next_one_cleans_up(
    write, old, new, between, tmp_path
):
    found, number = [], 0
    while True:
        number += 1
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        target = tmp_path / "x.zarr"
        if old is not None:
            write(target, old)
        was_killed = killed(lambda target=target: write(target, new), number)
        assert read(target) in [old, new, *between], number
        found.append(read(target))
        leavings = len(list(tmp_path.iterdir())) - target.exists()
        if number % 2:
            write(target, new)
            assert (read(target), os.listdir(tmp_path)) == (new, ["x.zarr"]), number
        else:
            remove_leavings(tmp_path.parent, depth=1)
            assert len(list(tmp_path.iterdir())) == target.exists(), number
        if not was_killed:
            break
        assert leavings or read(target) in (old, new)
    assert number >= 5
    assert {repr(one) for one in found} == {repr(one) for one in [old, new, *between]}


def test_an_error_between_the_renames_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "x"
    write_folder(target, OLD)
    rename = os.rename

    def refusing(source, place, **named):
        if str(source).endswith(f".{os.getpid()}.partial"):
            raise KeyboardInterrupt
        rename(source, place, **named)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(KeyboardInterrupt):
        write_folder(target, NEW)
    assert (read(target), os.listdir(tmp_path)) == (OLD, ["x"])


def test_leavings_of_the_dead_go_from_folders_below_and_all_else_stays(tmp_path):
    dead, living = 2**22 + 1, os.getppid()
    kept = [
        f".a.{living}.partial", f"1/.a.zarr.{living}.old.partial", ".download-x1.partial", "a.1.partial",
        f"1/deep/.a.{dead}.partial",
    ]  # fmt: skip
    gone = [f".a.{dead}.partial", f"1/.a.zarr.{dead}.old.partial", f"1/.b.{os.getpid()}.partial"]
    for name in [*kept, *gone]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "link").symlink_to(tmp_path / "1/deep")
    artifacts.remove_leavings(tmp_path, depth=1)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    artifacts.remove_leavings(tmp_path / "nothing there", depth=1)
