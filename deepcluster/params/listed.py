"""What dvc.yaml lists of a stage, and which of the params listed there have changed."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deepcluster.params.file import PARAMS_FILE, parse, read_text

PIPELINE = Path("dvc.yaml")


def listed(stage: str) -> dict[str, Any]:
    """What dvc.yaml says of a stage (train, of all epochs); nothing where there is no dvc.yaml."""
    if not PIPELINE.is_file():
        return {}
    entry: dict[str, Any] = _stages(PIPELINE.read_text(encoding="utf-8"))[stage]
    found: dict[str, Any] = entry.get("do", entry)
    return found


def changed_params(stage: str, before: str) -> list[str]:
    """Keys that dvc.yaml lists for `stage` and that have other values in params.yaml than in its text `before`.

    Sections, where dvc.yaml lists the whole file, or is not there. ParamsError if params.yaml cannot be read.
    """
    now = read_text(PARAMS_FILE)
    if now == before:
        return []
    was, found = (_values(stage, parse(text, PARAMS_FILE)) for text in (before, now))
    return [key for key in was | found if was.get(key) != found.get(key)]


@lru_cache(maxsize=1)
def _stages(text: str) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(text)["stages"]
    return stages


def _values(stage: str, content: dict[str, Any]) -> dict[str, Any]:
    """By the keys that dvc.yaml lists for the stage; None stands for what is missing."""
    keys = listed(stage).get("params", [])
    if not keys or not all(isinstance(key, str) for key in keys):  # the whole file
        keys = [str(key) for key in content]
    return {key: _value(content, key) for key in keys}


def _value(content: dict[str, Any], key: str) -> Any:
    found: Any = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
