"""What DVC looks at again for every stage, and no run changes, looked at once: params.yaml, and the code of the stages.

At 200 epochs that is 804 readings of params.yaml and 7,000 hashes of code, two thirds of the time in which
`deepcluster run` finds nothing to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from deepcluster import layout
from deepcluster.params import PARAMS_FILE


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Inside, DVC gets params.yaml and hashes of dependencies outside of data/ as they were at the first look.

    Who changes them meanwhile changes the next run: this one has loaded its params and its code.
    """
    import dvc.dependency.param as params
    from dvc.dependency import Dependency

    load, get_hash = params.load_path, Dependency.get_hash
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

    params.load_path, Dependency.get_hash = load_once, get_hash_once
    try:
        yield
    finally:
        params.load_path, Dependency.get_hash = load, get_hash
