"""git and DVC put under a new project. Only programs that are installed, nothing from the network."""

import logging
import os
import shutil
import subprocess
from pathlib import Path

from deepcluster.errors import UserError

DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
[cache]
    type = "reflink,hardlink,copy"
"""
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set where a git hook runs us; they name another repository


def check_git() -> None:
    """UserError if there is no git."""
    if shutil.which("git") is None:
        raise UserError("git: not found; install it, since DVC keeps a project's history with it")


def initialise(root: Path) -> None:
    """`git init` and `dvc init` in a folder, with this project's settings for the cache. Stages DVC's own files."""
    git(root, "init", "--quiet")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    log = logging.getLogger("dvc")
    level = log.level
    log.setLevel(logging.WARNING)  # what to do next is said by us
    try:
        Repo.init(str(root)).close()
    except DvcException as error:
        raise UserError(f"dvc init: {error}") from error
    finally:
        log.setLevel(level)
    (root / ".dvc/config").write_text(DVC_CONFIG, encoding="utf-8")


def commit(root: Path, message: str) -> bool:
    """Stage everything and commit it; False, with everything staged, if git knows nobody to commit as."""
    git(root, "add", "--all")
    try:
        git(root, "var", "GIT_AUTHOR_IDENT")
        git(root, "var", "GIT_COMMITTER_IDENT")
    except UserError:
        return False
    git(root, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message", message)
    return True


def git(root: Path, *arguments: str) -> str:
    """What git prints; UserError with its own last words if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(  # noqa: S603 - arguments of ours, no shell
        ["git", *arguments],  # noqa: S607 - whichever git is on PATH, as for a person
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        command = next(name for name in arguments if name in ("init", "add", "var", "commit", "status"))
        raise UserError(f"git {command}: {words[-1]}")
    return done.stdout
