"""Who else needs an object of DVC's cache: other artifacts, other revisions, copies of the project that share it.

Read as text, not through DVC: loading the graph of one revision takes it seconds, and there may be thousands.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deepcluster import layout
from deepcluster.errors import UserError
from deepcluster.origins import LOCK, Origin

_MD5 = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")
_NOT_SEARCHED = {".git", ".dvc", ".venv", "__pycache__", "raw", layout.EPOCHS.name, layout.HISTORY.name}
_COPIES = ".dvc/tmp/exps/*/"  # where `dvc exp run --temp` and the queue's workers run


def elsewhere_named(source: Origin, leaving: set[str]) -> dict[str, str]:
    """Hashes that something besides the artifacts `leaving` (paths of the workspace) refers to; by each, what does.

    That is: other artifacts of this workspace; every dvc.lock and .dvc file of it and of the copies in it; every commit
    of a branch, a tag, an experiment or a stash that HEAD's own history does not have; every tag.
    UserError where git cannot tell.
    """
    found = {entry.md5: path for path, entry in source.lock.items() if entry.md5 and path not in leaving}
    for path in _files():
        found |= {md5: str(path) for md5 in _MD5.findall(path.read_text(encoding="utf-8", errors="replace"))}
    for commit, name in _commits().items():
        for text in _texts(commit):
            for md5 in _MD5.findall(text):
                found.setdefault(md5, name)
    return found


def contents(cache: Path, md5: str) -> list[str]:
    """Hashes of the files of a folder's object in the cache; none for a file's, and for one that is not there."""
    if not md5.endswith(".dir"):
        return []
    try:
        return [str(entry["md5"]) for entry in json.loads(place(cache, md5).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{place(cache, md5)}: damaged; run `deepcluster check --repair` first") from None


def place(cache: Path, md5: str) -> Path:
    """Where DVC keeps the object."""
    return cache / md5[:2] / md5[2:]


def _files() -> Iterator[Path]:
    """The dvc.lock and .dvc files of the project's folder, but for its own dvc.lock, and of copies that run in it."""
    for folder, folders, names in os.walk("."):
        folders[:] = [name for name in folders if name not in _NOT_SEARCHED]
        found = [Path(folder, name) for name in names if name == LOCK.name or name.endswith(".dvc")]
        yield from (path for path in found if path != LOCK)
    yield from Path().glob(f"{_COPIES}{LOCK}")


def _commits() -> dict[str, str]:
    """Commits that may need what this one prunes, and how to name each: a branch, a tag, or the commit itself."""
    if not _is_repository():
        return {}
    tips = [line.split() for line in _git("for-each-ref", "--format=%(objectname) %(refname:short) %(*objectname)")]
    names = {(peeled or [commit])[0]: name for commit, name, *peeled in tips}
    tagged = _git("for-each-ref", "--format=%(objectname) %(*objectname)", "refs/tags")
    has_head = bool(_git("rev-parse", "--verify", "--quiet", "HEAD", may_fail=True))
    others = _git("rev-list", "--all", *(["--not", "HEAD"] if has_head else []))
    commits = [*(line.split()[-1] for line in tagged), *others]
    return {commit: names.get(commit, f"commit {commit[:7]}") for commit in commits}


def _texts(commit: str) -> Iterator[str]:
    """The text of every dvc.lock and .dvc file in a commit."""
    for line in _git("ls-tree", "-r", "--full-tree", "-z", commit, separator="\0"):
        about, _, path = line.partition("\t")
        name = path.rpartition("/")[2]
        if name == LOCK.name or name.endswith(".dvc"):
            yield "\n".join(_git("cat-file", "blob", about.split()[2]))


def _is_repository() -> bool:
    if shutil.which("git") is None:
        if any(Path(folder, ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
            raise UserError("prune: git is not installed, so what other revisions need cannot be told")
        return False
    found = subprocess.run(["git", "rev-parse", "--git-dir"], capture_output=True)  # noqa: S607
    return found.returncode == 0


def _git(*arguments: str, separator: str = "\n", may_fail: bool = False) -> list[str]:
    """The parts of what git prints; UserError where it fails, since nothing may be deleted then."""
    command = ["git", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")  # noqa: S603
    if found.returncode and not may_fail:
        raise UserError(f"prune: `{' '.join(command)}` failed ({found.stderr.strip()}); nothing was deleted")
    return [part for part in found.stdout.split(separator) if part]
