"""Code as a dependency of stages in projects that have no code of their own: stages/code.yaml.

In the source tree dvc.yaml lists the modules that decide a stage's result. A project made by `deepcluster new` uses
the installed package, which DVC cannot see; its stages depend instead on a key of stages/code.yaml, the sha256 over the
same modules. So a new version of the package makes those stages stale whose code differs, and no other.

A process runs the code that it has read; DVC notes the code that lies there when a stage has ended. So a stage whose
code changed meanwhile must not count (`changed_code`).
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster.artifacts import write_text
from deepcluster.errors import ScheduleError
from deepcluster.params import listed
from deepcluster.shipped import CODE, shipped_text

CODE_FILE = Path("stages/code.yaml")
ALL_CODE = ("deepcluster", "stages")
DIGITS = 16
HEADER = """\
# Written by `deepcluster plan` and `deepcluster run`: for each stage a digest of the installed modules that decide its
# result, as the stages of dvc.yaml depend on them. A new version of deepcluster changes those whose code differs.
"""


@functools.cache
def fingerprints() -> Mapping[str, str]:
    """Of every stage of the shipped dvc.yaml, 16 hexadecimal digits over the installed code that it lists.

    Once a process, whose code stays what it was when it started.
    """
    stages: dict[str, Any] = YAML(typ="safe").load(shipped_text("dvc.yaml"))["stages"]
    return {
        name: digest_of_code(code_of(definition.get("do", definition)))[:DIGITS] for name, definition in stages.items()
    }


def code_of(definition: dict[str, Any]) -> list[str]:
    """The dependencies of one stage that are code."""
    return [dependency for dependency in definition.get("deps", ()) if is_code(dependency)]


def is_code(dependency: object) -> bool:
    """Whether a dependency in dvc.yaml is code of ours."""
    return isinstance(dependency, str) and re.match(r"deepcluster/|stages/\w+\.py$", dependency) is not None


def code_text() -> str:
    """What stages/code.yaml should hold now."""
    return HEADER + "".join(f'{stage}: "{digest}"\n' for stage, digest in fingerprints().items())


def refresh(path: Path = CODE_FILE) -> list[str]:
    """Bring stages/code.yaml up to the installed code, if the project has one; the stages whose code is another."""
    changed = changed_stages(path)
    if path.is_file() and path.read_bytes() != (text := code_text()).encode():
        write_text(path, text)
    return changed


def changed_stages(path: Path = CODE_FILE) -> list[str]:
    """The stages whose installed code is not what stages/code.yaml says; none for a project without that file."""
    if not path.is_file():
        return []
    try:
        known = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError):
        known = None
    known = known if isinstance(known, dict) else {}
    return [stage for stage, digest in fingerprints().items() if known.get(stage) != digest]


def check_code(path: Path = CODE_FILE) -> None:
    """ScheduleError unless stages/code.yaml stands for the installed code, by which DVC decides what is stale."""
    if changed := changed_stages(path):
        raise ScheduleError(
            f"{path}: deepcluster was changed since (stages {', '.join(changed)}); run `deepcluster plan`, then go on"
        )


def digest_of_code(code: Iterable[str] = ALL_CODE) -> str:
    """sha256 (hex) over the names and contents of these installed modules, and of all in these packages."""
    digest = hashlib.sha256()
    for file in _files(CODE, code):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(CODE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def changed_code(stage: str) -> list[str]:
    """Files of code that dvc.yaml lists for `stage` and that are not as `code_at_start` saw them, in order."""
    code, project = code_of(listed(stage)), Path.cwd()
    before = {
        name: digest
        for name, digest in code_at_start(project).items()
        if any(name == place or name.startswith(f"{place}/") for place in code)
    }
    now = _digests(project, code)
    return sorted(name for name in before | now if before.get(name) != now.get(name))


@functools.cache
def code_at_start(project: Path) -> dict[str, str]:
    """sha256 of every file of a project's own code, by its path, as it was when this process first asked."""
    return _digests(project, ALL_CODE)


def _digests(root: Path, code: Iterable[str]) -> dict[str, str]:
    files = (file for file in _files(root, code) if file.is_file())
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _files(root: Path, code: Iterable[str]) -> Iterator[Path]:
    """These modules, and all in these packages, in the order of their names."""
    for name in sorted(code):
        path = root / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]
