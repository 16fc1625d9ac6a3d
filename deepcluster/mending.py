"""What a killed DVC leaves half written of its own files, made good before the next run.

DVC writes dvc.lock and the list of who reads and writes what (.dvc/tmp/rwlock) in place. Killed meanwhile, it refuses
all work afterwards until someone mends the file. Only for who holds DVC's own lock, under which it writes both.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepcluster.artifacts import write_text
from deepcluster.errors import BusyError
from deepcluster.lockfile import join, salvaged
from deepcluster.processes import RWLOCK, alive, dvc_writers


@contextmanager
def alone() -> Iterator[Any]:
    """DVC's `Repo`, its lock held but while stages work, and waited for: `dvc push` beside a run holds it for long.

    BusyError where a `dvc repro` is in the middle of a stage: it gives up if it does not get its lock back in seconds.
    """
    from dvc.repo import Repo, lock_repo

    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        for process, command in dvc_writers(Path(repo.tmp_dir) / RWLOCK.name).items():
            if process != os.getpid() and alive(process):
                raise BusyError(
                    f"process {process} (`{command}`) works in this project; wait until it has ended, or end it"
                )
        for line in mend(repo):
            print(line, flush=True)
        yield repo


def mend(repo: Any) -> list[str]:
    """Bring both files of a `dvc.repo.Repo` into a state that DVC reads; a line for each that was not."""
    return [*_mend_rwlock(Path(repo.tmp_dir) / "rwlock"), *_mend_lock_file(repo)]


def _mend_rwlock(path: Path) -> list[str]:
    """Removed where it cannot be read. Entries with this process's number are of one that had it before."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        found = SCHEMA(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (ValueError, Invalid):
        path.unlink()
        return [f"{path.name}: left half written by a killed DVC; removed"]
    ours = os.getpid()
    kept = {
        "write": {path: entry for path, entry in found["write"].items() if entry["pid"] != ours},
        "read": {path: [one for one in several if one["pid"] != ours] for path, several in found["read"].items()},
    }
    if kept != found:
        write_text(path, json.dumps(kept))
    return []


def _mend_lock_file(repo: Any) -> list[str]:
    """Cut back to the entries that are whole; what the others stood for comes from the run-cache, or runs again."""
    from dvc.dvcfile import LOCK_FILE, Lockfile
    from dvc.exceptions import DvcException

    path = Path(repo.root_dir) / LOCK_FILE
    try:
        Lockfile(repo, str(path)).load()
    except DvcException:
        entries = salvaged(path.read_text(encoding="utf-8", errors="replace"))
        if entries is None:  # not what a killed DVC leaves: DVC says what is wrong
            return []
        if entries:
            write_text(path, join(entries))
        else:  # DVC reads no file without entries
            path.unlink()
        return [f"{path.name}: left half written by a killed DVC; its {len(entries)} whole entries are kept"]
    return []
