"""Files that come with the package: dvc.yaml, params.yaml, recipes. In a checkout they are those of its root."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
IN_WHEEL = _PACKAGE / "project_files"  # where pyproject.toml puts them
CODE = _PACKAGE.parent  # what the paths of code in dvc.yaml are relative to, installed or not


def shipped(name: str) -> Path:
    """Where the shipped file or folder `name` lies."""
    return (IN_WHEEL if IN_WHEEL.is_dir() else CODE) / name


def shipped_text(name: str) -> str:
    """The text of a shipped file."""
    return shipped(name).read_text(encoding="utf-8")
