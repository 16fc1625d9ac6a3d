"""Single values changed in the text of params.yaml: every other line stays as it is, to the byte.

YAML tells where a value stands in the text, and only that piece is exchanged; a comment behind it keeps its column if
there is room. A library that reads and dumps the whole file would lay out other lines anew.
"""

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from deepcluster.errors import ParamsError, nearest
from deepcluster.params.file import PARAMS_FILE, known_keys, parse, validated
from deepcluster.params.sections import Params

TIDY = re.compile(r"[\w./+\-\[\], ]+")  # what is written as it was typed; all else as JSON, which is YAML as well
GAP = 2  # spaces in front of a comment, at least
MISSING = object()


Setting = tuple[tuple[str, ...], str, Any]
"""Key, value as it was typed, and value of one override."""


@dataclass(frozen=True)
class Change:
    """A key with its value before and after; `given`: whether the file named it before (else it was the default)."""

    key: str
    before: Any
    after: Any
    given: bool = True

    def __str__(self) -> str:
        default = "" if self.given else " (the default)"
        if _same(self.before, self.after):
            return f"{self.key}: {_shown(self.after)} already{default}"
        return f"{self.key}: {_shown(self.before)}{default} -> {_shown(self.after)}"


def edited(text: str, overrides: Sequence[str], path: Path = PARAMS_FILE) -> tuple[str, list[Change]]:
    """A params file's text after overrides `KEY=VALUE`, values in YAML, and what they change, in that order.

    A key that the text leaves to its default is added to its section, unless the value is that default. ParamsError
    with every mistake, in overrides and of the whole afterwards, one a line, each naming `path`.
    """
    content = parse(text, path)
    params, settings = _overridden(content, overrides, path)
    changes = []
    for parts, typed, value in settings:
        change = _change(content, parts, value)
        if not _same(change.before, change.after):
            _put(content, parts, value)
            text = _rewritten(text, parts, typed, value, content, path)
        changes.append(change)
    assert validated(content, path) == params
    return text, changes


def overridden(content: dict[str, Any], overrides: Sequence[str], path: Path = PARAMS_FILE) -> Params:
    """What `edited` makes of the sections `content`, without their text; ParamsError as there."""
    return _overridden(content, overrides, path)[0]


def _overridden(content: dict[str, Any], overrides: Sequence[str], path: Path) -> tuple[Params, list[Setting]]:
    """The params after the overrides, and these, parsed."""
    mistakes, settings = list[str](), list[Setting]()
    for override in overrides:
        try:
            settings.append(_parsed(override, path))
        except ParamsError as error:
            mistakes.append(str(error))
    wanted = deepcopy(content)
    for parts, _, value in settings:
        _put(wanted, parts, value)
    return validated(wanted, path, mistakes), settings


def leaves(section: type[BaseModel] = Params, prefix: str = "") -> Iterator[str]:
    """The dotted name of every key that holds a value, in the schema's order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _parsed(override: str, path: Path) -> Setting:
    """Key, value as it was typed and value of one override, the key being one that holds a value."""
    key, equals, typed = (part.strip() for part in override.partition("="))
    if not key or not equals:
        raise ParamsError(f"{override!r}: expected KEY=VALUE, such as cluster.k=50")
    known, parts = list(leaves()), tuple(key.split("."))
    if key not in known:
        raise ParamsError(f"{path}: {_no_value(parts, known)}")
    try:
        return parts, typed, YAML(typ="safe").load(typed)
    except (YAMLError, ValueError):  # ValueError: what looks like a date and is none
        raise ParamsError(f"{path}: {key}: not a value in YAML; got {typed!r}") from None


def _no_value(parts: tuple[str, ...], leaves: Sequence[str]) -> str:
    """Why this key holds no value: a section, or unknown."""
    inside = [leaf for leaf in leaves if leaf.startswith(".".join(parts) + ".")]
    if inside:
        return f"{'.'.join(parts)}: is a section; set its keys one by one, such as {inside[0]}"
    depth = 0
    while any(leaf.startswith(".".join(parts[: depth + 1]) + ".") for leaf in leaves):
        depth += 1
    key, name = ".".join(parts[: depth + 1]), parts[depth]
    if key in leaves:  # cluster.k.x
        return f"{'.'.join(parts)}: unknown key; {key} holds a value, not a section"
    elsewhere = [leaf for leaf in leaves if leaf.endswith(f".{name}")]
    if not depth and elsewhere:
        return f"{key}: unknown key; did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"{key}: unknown key{nearest(name, known_keys(parts[:depth]))}"


def _put(content: Any, parts: Sequence[str], value: Any) -> None:
    """Set a value in nested dicts; what is no dict on the way stays, for the validation to name."""
    for part in parts[:-1]:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            return
    content[parts[-1]] = value


def _change(content: Any, parts: tuple[str, ...], value: Any) -> Change:
    key = ".".join(parts)
    default: Any = Params().model_dump(mode="json")
    for part in parts:
        default = default[part]
        content = content.get(part, MISSING) if content is not MISSING else MISSING
    if content is not MISSING:
        return Change(key, content, value)
    same = isinstance(default, float) and not isinstance(value, bool) and value == default  # 1 for 1.0
    return Change(key, default, default if same else value, given=False)


def _same(one: Any, other: Any) -> bool:
    """Equal in YAML, where 1 is neither true nor 1.0."""
    return json.dumps(one, sort_keys=True, default=repr) == json.dumps(other, sort_keys=True, default=repr)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rewritten(text: str, parts: tuple[str, ...], typed: str, value: Any, wanted: Any, path: Path) -> str:
    """The text with one value written, in the first spelling with which it reads as `wanted` does."""
    quoted = json.dumps(value, ensure_ascii=False)
    written = "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
    for spelling in [typed, written] if TIDY.fullmatch(typed) else [written]:
        attempt = _with_value(text, parts, spelling)
        try:
            if _same(parse(attempt, path), wanted):
                return attempt
        except ParamsError:
            continue
    # an alias, which stands for a piece of text elsewhere, or a layout that nobody has thought of
    raise ParamsError(f"{path}: {'.'.join(parts)}: cannot be changed without touching another key; edit it by hand")


def _with_value(text: str, parts: tuple[str, ...], new: str) -> str:
    section = YAML(typ="safe", pure=True).compose(text)
    for depth, part in enumerate(parts):
        pair = next(((key, value) for key, value in section.value if key.value == part), None)
        if pair is None:
            return _with_key(text, section, parts, depth, new)
        key, section = pair
    return _with_node(text, key, section, new)


def _with_node(text: str, key: Node, node: Node, new: str) -> str:
    """The text with `node`, the value of `key`, written as `new` on the key's line."""
    colon = text.index(":", key.end_mark.index) + 1
    start, end = node.start_mark.index, _end(text, node)
    if node.start_mark.index == node.end_mark.index:  # an empty value, which YAML may mark behind a comment
        return _line_with(text, colon, colon, f" {new}") + text[_line_end(text, colon) :]
    if "\n" in text[colon:start]:  # a list below its key; what stands behind the key is a comment
        return _line_with(text, colon, colon, f" {new}") + text[_line_end(text, end) :]
    return _line_with(text, start, end, new) + text[_line_end(text, end) :]


def _line_with(text: str, start: int, end: int, new: str) -> str:
    """The text to the end of the line, `new` for text[start:end]; a comment behind that keeps its column if it can."""
    rest = text[end : _line_end(text, end)]
    comment = rest.lstrip(" ")
    if comment.startswith("#"):
        column = end + len(rest) - len(comment) - _line_start(text, end)
        room = column - (start - _line_start(text, start) + len(new))
        rest = " " * max(room, GAP) + comment
    return text[:start] + new + rest


def _with_key(text: str, section: MappingNode, parts: tuple[str, ...], depth: int, new: str) -> str:
    """The text with parts[depth:], which `section` lacks, added behind those of its keys that the schema has before."""
    names = parts[depth:]
    if section.flow_style:
        entry = "".join(f"{name}: {{" for name in names[:-1]) + f"{names[-1]}: {new}" + "}" * (len(names) - 1)
        at = _end(text, section.value[-1][1]) if section.value else section.start_mark.index + 1
        return text[:at] + (", " if section.value else "") + entry + text[at:]
    order, column = known_keys(parts[:depth]), section.value[0][0].start_mark.column
    before = order[: order.index(names[0])]
    earlier = [value for key, value in section.value if key.value in before]
    at = _behind(text, earlier[-1], column) if earlier else section.value[0][0].start_mark.index - column
    line_break = "\r\n" if "\r\n" in text else "\n"
    lines = [" " * (column + 2 * level) + f"{name}:" for level, name in enumerate(names)]
    lines[-1] += f" {new}"
    if depth == 0 and len(names) > 1:  # sections of their own stand apart
        lines.insert(0 if earlier else len(lines), "")
    unended = line_break if earlier and not text[:at].endswith("\n") else ""
    return text[:at] + unended + "".join(line + line_break for line in lines) + text[at:]


def _behind(text: str, node: Node, column: int) -> int:
    """Where the line after a value begins, and after the comments that go on below it, deeper than its key."""
    following = text.find("\n", _end(text, node)) + 1 or len(text)
    comments = re.compile(rf"(?: {{{column + 1},}}#[^\n]*(?:\n|\Z))*").match(text, following)
    return comments.end() if comments else following


def _end(text: str, node: Node) -> int:
    """Where the text of a node ends; YAML's own mark of a block lies at what follows it."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    start = node.start_mark.index
    return int(start + len(text[start : node.end_mark.index].rstrip()))


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _line_end(text: str, at: int) -> int:
    """Where the line's text ends, in front of \\n or \\r\\n."""
    found = text.find("\n", at)
    end = len(text) if found < 0 else found
    return end - 1 if end > at and text[end - 1] == "\r" else end
