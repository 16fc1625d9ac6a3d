"""`deepcluster prune`: feature dumps out of the workspace and DVC's cache, so that no run makes them again unasked."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepcluster import artifacts, layout
from deepcluster.errors import UserError
from deepcluster.locking import only_run
from deepcluster.mending import alone
from deepcluster.origins import Origin, origin
from deepcluster.params import PARAMS_FILE
from deepcluster.pruned import read_pruned, write_pruned
from deepcluster.references import contents, elsewhere_named, place


@dataclass(frozen=True)
class Dump:
    """A feature dump to free: its hash in dvc.lock, its files in the workspace, and in the cache what only it needs.

    objects: the folder's own object last, since a prune that is killed finds the others by it.
    """

    epoch: int
    path: Path
    md5: str
    files: Sequence[Path]
    objects: Sequence[Path]


@dataclass(frozen=True)
class Plan:
    """Dumps to free; epochs that stay because they were chosen; and by epoch what else needs a dump that stays."""

    dumps: Sequence[Dump]
    kept: Sequence[int]
    needed: Mapping[int, str]
    pruned_before: Sequence[int]

    def bytes_of(self, dumps: Sequence[Dump]) -> int:
        """What the disk gains: files without any link that stays, each counted once."""
        links = Counter[tuple[int, int]]()
        found: dict[tuple[int, int], os.stat_result] = {}
        for dump in dumps:
            for path in (*dump.files, *dump.objects):
                about = path.stat()
                links[about.st_dev, about.st_ino] += 1
                found[about.st_dev, about.st_ino] = about
        return sum(about.st_size for key, about in found.items() if links[key] >= about.st_nlink)


def chosen_epochs(epochs: Sequence[int], *, every: int | None, first: bool, last: bool, keep: str | None) -> list[int]:
    """Those of `epochs` (ascending) to keep; UserError for an epoch in `keep` that has no dump."""
    if every is not None and every < 1:
        raise UserError(f"--every: must be >= 1; got {every}")
    parts = [part.strip() for part in keep.split(",")] if keep is not None else []
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--keep: must be epochs with commas between, as in 3,7; got {keep!r}")
    named = {int(part) for part in parts}
    if unknown := sorted(named - set(epochs)):
        raise UserError(f"--keep: no feature dump of epoch {', '.join(map(str, unknown))} is in dvc.lock")
    ends = {*(epochs[:1] if first else ()), *(epochs[-1:] if last else ())}
    return [epoch for epoch in epochs if epoch in named | ends or (every is not None and epoch % every == 0)]


@contextmanager
def planned(*, every: int | None, first: bool, last: bool, keep: str | None, own_cache: bool) -> Iterator[Plan]:
    """What a prune would free, while nobody else works in this project.

    UserError for wrong options, outside a project, and for a cache outside its folder unless it is this project's own.
    """
    from dvc.exceptions import DvcException

    if not PARAMS_FILE.exists():
        raise UserError(f"{PARAMS_FILE}: not found; run this in the project's folder, the one with dvc.yaml")
    with only_run():
        try:
            with alone() as repo, origin(None) as source:
                cache = Path(repo.cache.local.path)
                if not own_cache and not cache.resolve().is_relative_to(Path.cwd().resolve()):
                    raise UserError(
                        f"prune: DVC's cache, {cache}, lies outside of this project: others may need what is in it; "
                        "--own-cache says that none does"
                    )
                yield _plan(source, cache, every=every, first=first, last=last, keep=keep)
        except DvcException as error:
            raise UserError(f"prune: {' '.join(str(error).split())}") from error


def carry_out(plan: Plan) -> None:
    """Free the dumps, the list of them first: a run after a prune that was killed makes nothing again either."""
    with origin(None) as source:
        listed = {dump: md5 for dump, md5 in source.pruned.items() if _same(source, dump, md5)}
    before = {dump: md5 for dump, md5 in listed.items() if not Path(dump).exists()}
    found = before | {dump.path.as_posix(): dump.md5 for dump in plan.dumps}
    write_pruned(dict(sorted(found.items(), key=lambda entry: int(Path(entry[0]).parent.name))))
    for dump in plan.dumps:
        artifacts.remove(dump.path)
        for path in dump.objects:
            path.unlink(missing_ok=True)


def _plan(source: Origin, cache: Path, *, every: int | None, first: bool, last: bool, keep: str | None) -> Plan:
    dumps = _dumps(source)
    kept = chosen_epochs(sorted(dumps), every=every, first=first, last=last, keep=keep)
    leaving = {epoch: md5 for epoch, md5 in dumps.items() if epoch not in kept}
    named = elsewhere_named(source, {layout.features(epoch).as_posix() for epoch in leaving})
    needed = {epoch: named[md5] for epoch, md5 in leaving.items() if md5 in named}
    shared = set(named).union(*(contents(cache, md5) for md5 in named))
    found = [_dump(epoch, md5, cache, shared) for epoch, md5 in leaving.items() if epoch not in needed]
    there = [dump for dump in found if dump.files or dump.objects]
    gone = [dump.epoch for dump in found if dump not in there]
    before = read_pruned()
    return Plan(there, kept, needed, [e for e in gone if layout.features(e).as_posix() in before])


def _dumps(source: Origin) -> dict[int, str]:
    """The hash of every feature dump in dvc.lock, by epoch, ascending."""
    found = {}
    for path, locked in source.lock.items():
        epoch = Path(path).parent.name
        if locked.md5 and epoch.isdecimal() and Path(path) == layout.features(int(epoch)):
            found[int(epoch)] = locked.md5
    if not found:
        raise UserError("prune: dvc.lock has no feature dump yet; `deepcluster run` makes them")
    return dict(sorted(found.items()))


def _dump(epoch: int, md5: str, cache: Path, shared: set[str]) -> Dump:
    path = layout.features(epoch)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [name for name in dict.fromkeys(contents(cache, md5)) if name not in shared]
    objects = [found for name in (*names, md5) if (found := place(cache, name)).exists()]
    return Dump(epoch, path, md5, files, objects)


def _same(source: Origin, path: str, md5: str) -> bool:
    locked = source.locked(Path(path))
    return locked is not None and locked.md5 == md5
