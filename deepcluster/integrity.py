"""Every artifact, and every file of DVC's cache, read and compared with the hash that it was saved under.

DVC looks at times and sizes: bytes that changed by themselves, on a failing disk, are the same to it. It also takes a
read-only file of its cache for whole, so that a damaged one would come back with every `dvc checkout`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcluster import artifacts
from deepcluster.errors import ArtifactError, RunnerError
from deepcluster.origins import dvc_md5, origin
from deepcluster.progress import reporting

_OBJECT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")
REMEDY = (
    "delete it with `deepcluster check --repair`; the next `deepcluster run` or `dvc repro` restores or makes it anew"
)


@dataclass(frozen=True)
class Item:
    """A file or folder, and the hash of DVC's kind that it should have. in_cache: of DVC's cache, no artifact."""

    path: Path
    md5: str
    in_cache: bool


def check_project(*, repair: bool) -> list[str]:
    """What to print: how much was read, with `repair` also what was deleted.

    ArtifactError, a line for each damaged file, if there are any and `repair` is false.
    """
    items = [*outputs(), *cached()]
    with reporting("check", "files") as report:
        damaged = []
        for number, item in enumerate(items, start=1):
            if not is_whole(item):
                damaged.append(item)
            report(number, len(items))
    found = f"{sum(not item.in_cache for item in items)} artifacts, {sum(item.in_cache for item in items)} cached files"
    if damaged and not repair:
        raise ArtifactError("\n".join(f"{item.path}: damaged ({_reason(item)}); {REMEDY}" for item in damaged))
    return [*_deleted(damaged), f"{found}: " + ("the others are as they were saved" if damaged else "all as saved")]


def outputs() -> list[Item]:
    """The artifacts of the workspace that dvc.lock knows."""
    with origin(None) as source:
        locked = [(Path(path), entry.md5) for path, entry in sorted(source.lock.items())]
    return [Item(path, md5, in_cache=False) for path, md5 in locked if md5 and path.exists()]


def cached() -> list[Item]:
    """The files of DVC's cache, whose names are their hashes. RunnerError if DVC cannot say where it is."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            root = Path(repo.cache.local.path)
    except DvcException as error:
        raise RunnerError(f"dvc: {error}") from error
    return [Item(path, path.parent.name + path.name, in_cache=True) for path in _objects(root)]


def is_whole(item: Item) -> bool:
    """Whether what lies there has its hash; true of what has gone meanwhile."""
    try:
        found = dvc_md5(item.path)
    except FileNotFoundError:
        return True
    return found.removesuffix(".dir") == item.md5.removesuffix(".dir")


def _objects(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.glob("??/*")) if _OBJECT.fullmatch(path.relative_to(root).as_posix()))


def _reason(item: Item) -> str:
    return "its name says another hash" if item.in_cache else "not what dvc.lock says"


def _deleted(damaged: Sequence[Item]) -> Iterator[str]:
    for item in damaged:
        artifacts.remove(item.path)
        yield f"deleted: {item.path} ({_reason(item)})"
