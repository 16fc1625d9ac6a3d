"""What DVC looks at again and again, and no run changes, looked at once: params.yaml, dvc.lock, the code of the stages.

At 200 epochs that is 804 readings of params.yaml, three of a dvc.lock of 72,000 lines, which are seconds each, and
7,000 hashes of code (docs/remotes.md has what it saves).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from deepcluster import layout
from deepcluster.params import PARAMS_FILE


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Inside, DVC gets params.yaml and hashes of dependencies outside of data/ as they were at the first look.

    dvc.lock is parsed again once its file is another. Who changes the others meanwhile changes the next run: this one
    has loaded its params and its code, and `stages.common.stage` refuses what would be noted with others.
    """
    import dvc.dependency.param as params
    from dvc.dependency import Dependency
    from dvc.dvcfile import Lockfile

    load, get_hash, load_lock = params.load_path, Dependency.get_hash, Lockfile.load
    locks: dict[tuple[str, int, int, int], Any] = {}
    contents: dict[str, Any] = {}
    hashes: dict[str, Any] = {}

    def load_once(path: str, fs: Any, **options: Any) -> Any:
        if not str(path).endswith(PARAMS_FILE.name) or fs.protocol != "local" or options:
            return load(path, fs, **options)
        if path not in contents:
            contents[path] = load(path, fs)
        return deepcopy(contents[path])

    def get_hash_once(dependency: Any) -> Any:
        if dependency.protocol != "local" or dependency.def_path.startswith(f"{layout.DATA}/"):
            return get_hash(dependency)
        if dependency.fs_path not in hashes:
            hashes[dependency.fs_path] = get_hash(dependency)
        return hashes[dependency.fs_path]

    def load_lock_once(lockfile: Any, **options: Any) -> Any:
        try:
            about = os.stat(lockfile.path)
        except OSError:
            return load_lock(lockfile, **options)
        key = (str(lockfile.path), about.st_ino, about.st_mtime_ns, about.st_size)
        if options or key not in locks:
            found = load_lock(lockfile, **options)
            return found if options else locks.setdefault(key, found)
        return locks[key]

    params.load_path, Dependency.get_hash, Lockfile.load = load_once, get_hash_once, load_lock_once
    try:
        yield
    finally:
        params.load_path, Dependency.get_hash, Lockfile.load = load, get_hash, load_lock
