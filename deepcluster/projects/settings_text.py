"""params.yaml for a new project: the shipped file with the choices in it, and above each of them the reason."""

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML

from deepcluster.params.edit import edited
from deepcluster.projects.choices import Choice
from deepcluster.projects.look import Look
from deepcluster.shipped import shipped_text

WIDTH = 120
MARK = "# new: "


def params_text(look: Look, chosen: Sequence[Choice]) -> str:
    """The text of params.yaml, valid as a whole."""
    text, _ = edited(shipped_text("params.yaml"), [f"{choice.key}={_in_yaml(choice.value)}" for choice in chosen])
    header = (
        f"Written by `deepcluster new` after a look at {look.looked:,} of {look.count:,} images; lines that begin with "
        f"`{MARK.strip()}` say why. Change what you know better: `deepcluster run` computes what that touches."
    )
    return "\n".join([*_comment(header, "# ", 0), with_reasons(text, chosen)])


def with_reasons(text: str, chosen: Sequence[Choice]) -> str:
    """A params file's text with a comment above each of these keys, which it must have."""
    root = YAML(typ="safe", pure=True).compose(text)
    lines = text.split("\n")
    placed = sorted(((_key_of(root, choice.key), choice.why) for choice in chosen), key=lambda pair: -pair[0].line)
    for mark, why in placed:
        lines[mark.line : mark.line] = _comment(why, MARK, mark.column)
    return "\n".join(lines)


def _key_of(node: Any, key: str) -> Any:
    """Where a dotted key stands in composed YAML."""
    mark = None
    for part in key.split("."):
        mark, node = next((name.start_mark, value) for name, value in node.value if name.value == part)
    return mark


def _comment(text: str, mark: str, column: int) -> list[str]:
    indent = " " * column
    return textwrap.wrap(
        "".join(letter if letter.isprintable() else "?" for letter in text),
        WIDTH,
        initial_indent=indent + mark,
        subsequent_indent=indent + "#" + " " * (len(mark) - 1),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _in_yaml(value: Any) -> str:
    """A value as a person would write it: text without quotes where that reads as the same text."""
    if isinstance(value, str) and re.fullmatch(r"[\w./+-]+", value) and YAML(typ="safe").load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
