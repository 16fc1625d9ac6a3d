"""The parts of params.yaml and of the code that DVC notes for a stage, as dvc.yaml lists them."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deepcluster.params.file import PARAMS_FILE, parse, read_text

PIPELINE = Path("dvc.yaml")
CODE = ("deepcluster/", "stages/")


def listed_params(stage: str) -> dict[str, Any]:
    """The values that params.yaml has now, by the keys that dvc.yaml lists for `stage` (train, of all epochs).

    By section, where dvc.yaml lists the whole file, or is not there. None stands for what is missing.
    ParamsError if params.yaml cannot be read.
    """
    content = parse(read_text(PARAMS_FILE), PARAMS_FILE)
    return {key: _value(content, key) for key in _keys(stage) or map(str, content)}


def changed_code(stage: str) -> list[str]:
    """Files of the code that dvc.yaml lists for `stage` which are not as `code_at_start` saw them, in order."""
    before, now = code_at_start(Path.cwd()), _code(Path.cwd())
    listed = [dep for dep in _entry(stage).get("deps", []) if dep.startswith(CODE)]
    ours = [name for name in before | now if any(name == dep or name.startswith(f"{dep}/") for dep in listed)]
    return sorted(name for name in ours if before.get(name) != now.get(name))


@cache
def code_at_start(project: Path) -> dict[str, str]:
    """sha256 of every file of a project's code, by its path, as it was when this process first asked."""
    return _code(project)


def _code(project: Path) -> dict[str, str]:
    files = [path for folder in CODE for path in (project / folder).rglob("*.py")]
    return {path.relative_to(project).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _keys(stage: str) -> list[str]:
    """As dvc.yaml lists them; none for the whole file."""
    keys = _entry(stage).get("params", [])
    return keys if all(isinstance(key, str) for key in keys) else []


def _entry(stage: str) -> dict[str, Any]:
    """What dvc.yaml says of a stage; nothing where there is no dvc.yaml."""
    if not PIPELINE.is_file():
        return {}
    entry: dict[str, Any] = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"][stage]
    found: dict[str, Any] = entry.get("do", entry)
    return found


def _value(content: dict[str, Any], key: str) -> Any:
    found: Any = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
