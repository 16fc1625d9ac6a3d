"""Where artifacts are read from: the workspace, or a git revision through DVC; and what dvc.lock says of them there."""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster import artifacts, layout
from deepcluster.errors import ArtifactError, UserError, in_ranges
from deepcluster.params import PARAMS_FILE
from deepcluster.pruned import bring_back, read_pruned

LOCK = Path("dvc.lock")
HEAD = "schema: '2.0'\nstages:\n"
ENTRY = re.compile(r"^  [^\s-].*$", flags=re.MULTILINE)  # the line that begins a stage's entry, or what there is of it
TEMPORARY = Path(".dvc/tmp")  # on the same disk as the cache, and ignored by git and DVC
Fetch = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Locked:
    """What dvc.lock says of an output: the stage that made it, its hash, and the hashes of what that read in data/.

    settings: the values of params.yaml that the stage was run with, by dotted key.
    """

    stage: str
    md5: str | None
    parents: Mapping[str, str | None]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Artifacts by their place in the workspace. `root`: the folder that `layout`'s paths are relative to.

    revision: as the user named it; None for the workspace. lock: by path. fetch: puts an artifact of a revision below
    `root`. pruned: the hash of each dump that was pruned, by path.
    """

    revision: str | None
    root: Path
    lock: Mapping[str, Locked]
    fetch: Fetch | None = field(default=None, repr=False)
    pruned: Mapping[str, str] = field(default_factory=dict)

    def named(self, path: Path) -> str:
        """The path as messages name it, the revision in front."""
        return str(path) if self.revision is None else f"{self.revision}: {path}"

    def has(self, path: Path) -> bool:
        """Whether there is such an artifact: in the workspace on the disk, in a revision in its dvc.lock."""
        return path.exists() if self.revision is None else self.locked(path) is not None

    def place(self, path: Path, *, made_by: str) -> Path:
        """Where the artifact can be read; UserError if it is not there, or its files are in no cache."""
        if not self.has(path):
            self.refuse_pruned(path, made_by=made_by)
            if self.revision is None:
                raise artifacts.missing(path, made_by)
            raise ArtifactError(
                f"{self.named(path)}: not found; run `dvc repro {made_by}` with {self.revision} checked out"
            )
        here = self.root / path
        if self.fetch is not None and not here.exists():
            try:
                self.fetch(path, here)
            except ArtifactError:
                self.refuse_pruned(path, made_by=made_by)
                raise
        return here

    def refuse_pruned(self, path: Path, *, made_by: str) -> None:
        """ArtifactError, with the way back, if `path` was pruned as dvc.lock names it."""
        locked = self.locked(path)
        if locked is not None and locked.md5 is not None and self.pruned.get(path.as_posix()) == locked.md5:
            there = "" if self.revision is None else f" with {self.revision} checked out"
            raise ArtifactError(f"{self.named(path)}: {bring_back(path, made_by)}{there}")

    def place_of_file(self, path: Path) -> Path:
        """Where a file that is in git, such as params.yaml, can be read."""
        here = self.root / path
        if self.fetch is not None and not here.exists():
            self.fetch(path, here)
        return here

    def store(
        self, path: Path, schema: str, *, made_by: str, ids: str | None = None, epoch: int | None = None
    ) -> artifacts.Store:
        """The store at `path`; the same refusals as `artifacts.open_store`."""
        with self._said():
            place = self.place(path, made_by=made_by)
            return artifacts.open_store(place, schema, made_by=made_by, ids=ids, epoch=epoch)

    def checkpoint(self, epoch: int) -> artifacts.CheckpointFiles:
        """The checkpoint of an epoch; the same refusals as `artifacts.read_checkpoint`."""
        made_by = layout.made_by_checkpoint(epoch)
        with self._said():
            place = self.place(layout.checkpoint(epoch), made_by=made_by)
            return artifacts.read_checkpoint(place, made_by=made_by, epoch=epoch)

    def epochs(self, locate: Callable[[int], Path]) -> list[int]:
        """The epochs that have the artifact whose path `locate` gives, ascending."""
        if self.revision is None:
            names = [entry.name for folder in (layout.EPOCHS, layout.HISTORY) for entry in folder.glob("*")]
        else:
            names = [part for path in self.lock for part in Path(path).parts]
        return sorted(epoch for epoch in {int(name) for name in names if name.isdecimal()} if self.has(locate(epoch)))

    def locked(self, path: Path) -> Locked | None:
        """What dvc.lock says of the artifact, or None if it says nothing."""
        return self.lock.get(path.as_posix())

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Errors name an artifact of a revision by its place there, not by that of its temporary copy."""
        try:
            yield
        except ArtifactError as error:
            if self.fetch is None:
                raise
            raise ArtifactError(str(error).replace(f"{self.root}/", f"{self.revision}: ")) from error


@contextmanager
def origin(revision: str | None) -> Iterator[Origin]:
    """The workspace for None, else a git revision (branch, tag, commit, DVC experiment), its files fetched when asked.

    UserError outside a project's folder, for an unknown revision, and without git.
    """
    if not PARAMS_FILE.exists():
        raise UserError(f"{PARAMS_FILE}: not found; run this in the project's folder, the one with dvc.yaml")
    if revision is None:
        text = LOCK.read_bytes().decode(errors="replace") if LOCK.is_file() else ""
        yield Origin(None, Path(), _parsed(text, str(LOCK)), pruned=read_pruned())
        return
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        files = DVCFileSystem(".", rev=revision)
        text = files.read_text(LOCK.as_posix()) if files.exists(LOCK.as_posix()) else ""
        files.repo  # noqa: B018 - `exists` is silent about an unknown revision, this is not
    except DvcException as error:
        raise UserError(f"{revision}: not a revision of this project: {error}") from None
    if not text and not Path(".git").exists():
        raise UserError(
            f"{revision}: revisions are read only where the project is the top folder of its git repository"
        )
    if not text:
        raise UserError(f"{revision}: no {LOCK} there, so nothing was run; commit it with git after a run")
    TEMPORARY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deepcluster-", dir=TEMPORARY) as folder:
        try:
            lock = _parsed(text, f"{revision}: {LOCK}")
            yield Origin(revision, Path(folder), lock, _fetcher(files, revision), read_pruned())
        finally:
            files.close()


def chosen_epoch(
    source: Origin, locate: Callable[[int], Path], epoch: int | None, *, option: str, least: int = 1
) -> int:
    """`epoch`, or the last one that has the artifact `locate` gives; UserError, which names those there are, if none.

    least: 1, or 0 where the untrained backbone's counts.
    """
    if epoch is not None and epoch >= least and not source.has(locate(epoch)):
        locked = source.locked(locate(epoch))
        source.refuse_pruned(locate(epoch), made_by=locked.stage if locked else "")
    there = [found for found in source.epochs(locate) if found >= least]
    if not there:
        where = "" if source.revision is None else f"{source.revision}: "
        raise UserError(f"{where}no epoch has {locate(least).name} yet; `deepcluster run` makes them")
    if epoch is None:
        return there[-1]
    if epoch not in there:
        at = "" if source.revision is None else f" at {source.revision}"
        zero = "; 0 is the untrained backbone" if 0 in there else ""
        raise UserError(f"{option}: must be one that was run{at} ({in_ranges(there)}{zero}); got {epoch}")
    return epoch


def dvc_md5(path: Path) -> str:
    """The hash that dvc.lock would record for a file or a folder: md5, of a folder over the files' hashes and names."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listed = json.dumps([{"md5": dvc_md5(path / name), "relpath": name} for name in names])
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _fetcher(files: Any, revision: str) -> Fetch:
    """Copies an artifact of the revision out of DVC's cache, or out of the remote if it is there alone."""

    def fetch(path: Path, target: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc_data.index import DataIndexDirError

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.get(path.as_posix(), str(target), recursive=True)
        except (DvcException, DataIndexDirError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise UserError(f"{revision}: {path} cannot be fetched: {error.strerror}") from None
            raise ArtifactError(
                f"{revision}: {path}: not in DVC's cache; run `dvc fetch --all-commits {path}` where a remote has it, "
                f"else `dvc repro` with {revision} checked out"
            ) from None

    return fetch


def _parsed(text: str, name: str) -> dict[str, Locked]:
    """By path, what a dvc.lock says of each output. Entries that are cut short, as while DVC writes, are left out."""
    try:
        content = _loaded(text)
    except YAMLError:
        raise UserError(f"{name}: not YAML; run `git checkout {LOCK}`, or wait until DVC has written it") from None
    found: dict[str, Locked] = {}
    for stage, entry in _mapping(_mapping(content).get("stages")).items():
        deps, outs = _hashes(_mapping(entry).get("deps")), _hashes(_mapping(entry).get("outs"))
        parents = {path: md5 for path, md5 in deps.items() if path.startswith(f"{layout.DATA}/")}
        settings = dict(_mapping(_mapping(_mapping(entry).get("params")).get(PARAMS_FILE.as_posix())))
        found |= {path: Locked(str(stage), md5, parents, settings) for path, md5 in outs.items()}
    return found


def _loaded(text: str) -> object:
    """The YAML; of a text that ends within an entry, and is none for that, what stands before that entry."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError:
        begun = [match.start() for match in ENTRY.finditer(text)]
        if not begun and not HEAD.startswith(text):
            raise
        return YAML(typ="safe").load(text[: begun[-1]] if begun else "")


def _hashes(records: object) -> dict[str, str | None]:
    listed = records if isinstance(records, list) else []
    return {str(record["path"]): record.get("md5") for record in listed if "path" in _mapping(record)}


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
