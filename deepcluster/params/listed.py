"""The part of params.yaml that DVC notes for a stage, as dvc.yaml lists it."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deepcluster.params.file import PARAMS_FILE, parse, read_text

PIPELINE = Path("dvc.yaml")


def listed_params(stage: str) -> dict[str, Any]:
    """The values that params.yaml has now, by the keys that dvc.yaml lists for `stage` (train, of all epochs).

    By section, where dvc.yaml lists the whole file, or is not there. None stands for what is missing.
    ParamsError if params.yaml cannot be read.
    """
    content = parse(read_text(PARAMS_FILE), PARAMS_FILE)
    return {key: _value(content, key) for key in _keys(stage) or map(str, content)}


def _keys(stage: str) -> list[str]:
    """As dvc.yaml lists them; none for the whole file."""
    if not PIPELINE.is_file():
        return []
    entry = YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8"))["stages"][stage]
    keys = entry.get("do", entry).get("params", [])
    return keys if all(isinstance(key, str) for key in keys) else []


def _value(content: dict[str, Any], key: str) -> Any:
    found: Any = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
