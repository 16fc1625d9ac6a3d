"""params.yaml written: single keys set, or the whole replaced by a recipe; nothing at all if anything is invalid."""

import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from deepcluster import artifacts
from deepcluster.errors import ParamsError, nearest
from deepcluster.params import PARAMS_FILE
from deepcluster.params.edit import Change, edited
from deepcluster.params.file import read_text

RECIPES = Path("recipes")


def set_params(overrides: Sequence[str]) -> list[Change]:
    """Set keys in params.yaml, `KEY=VALUE` each; what that changes. See `params.edit.edited`."""
    before = read_text(PARAMS_FILE)
    text, changes = edited(before, overrides)
    if text != before:
        _write(text)
    return changes


def recipes() -> dict[str, str]:
    """The names of the recipes, sorted, each with the comment in the first line of its file."""
    files = sorted(RECIPES.glob("*.yaml"), key=lambda file: file.stem)
    return {file.stem: read_text(file).partition("\n")[0].lstrip("#").strip() for file in files}


def use_recipe(name: str, overrides: Sequence[str] = ()) -> tuple[list[Change], Path | None]:
    """Replace params.yaml by a recipe with these overrides; what they change in it, and where the old file was kept.

    The whole is replaced, `data` too: a recipe's settings belong together. A params.yaml that differs is copied first,
    never over another copy; not if it is a recipe as it stands, which can be taken again.
    """
    known = recipes()
    if name not in known:
        listed = f"there are {', '.join(known)}" if known else f"{RECIPES} holds none"
        raise ParamsError(f"{name}: no such recipe{nearest(name, known)}; {listed}")
    recipe = RECIPES / f"{name}.yaml"
    text, changes = edited(read_text(recipe), overrides, recipe)
    try:
        if PARAMS_FILE.exists() and PARAMS_FILE.read_bytes() == text.encode():
            return changes, None
        kept = _keep(PARAMS_FILE) if PARAMS_FILE.exists() and not _is_recipe(PARAMS_FILE) else None
    except OSError as error:
        raise ParamsError(f"{PARAMS_FILE}: cannot be read: {error.strerror}") from None
    _write(text)
    return changes, kept


def _write(text: str) -> None:
    """Publish params.yaml where it lies, if it is a link, and with the permissions that it has."""
    target = PARAMS_FILE.resolve()
    mode = target.stat().st_mode if target.exists() else None
    artifacts.write_text(target, text)
    if mode is not None:
        target.chmod(mode)


def _is_recipe(path: Path) -> bool:
    content = path.read_bytes()
    return any(recipe.read_bytes() == content for recipe in RECIPES.glob("*.yaml"))


def _keep(path: Path) -> Path:
    """A copy of `path` beside it, under the first name that is free or that holds the same already."""
    content = path.read_bytes()
    for number in count(1):
        copy = path.with_name(f"{path.stem}.before-recipe{'' if number == 1 else f'-{number}'}{path.suffix}")
        if not copy.exists():
            with artifacts.publishing(copy) as partial:
                shutil.copyfile(path, partial)
            return copy
        if copy.is_file() and copy.read_bytes() == content:
            return copy
    raise AssertionError("count never ends")
