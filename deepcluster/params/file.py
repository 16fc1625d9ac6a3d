"""params.yaml read and validated: every mistake is reported at once, with file, key, expected and found."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster.errors import ParamsError, nearest
from deepcluster.params.contradictions import contradictions
from deepcluster.params.sections import Params

PARAMS_FILE = Path("params.yaml")
MOST_VALUES = 10_000  # of a params.yaml, which has about 150; aliases of aliases could stand for billions


def load_params(path: Path = PARAMS_FILE) -> Params:
    """The validated contents of `path`; ParamsError with every mistake, one a line, if there is any."""
    return validated(parse(read_text(path), path), path)


def validated(content: dict[str, Any], path: Path, mistakes: Sequence[str] = ()) -> Params:
    """The params in `content`, said to lie at `path`; ParamsError with `mistakes` and every one found, one a line."""
    lines = list(mistakes)
    try:
        params = Params.model_validate(content)
        lines += [f"{path}: {line}" for line in contradictions(params)]
    except ValidationError as error:
        lines += [_describe(path, mistake) for mistake in error.errors()]
    if lines:
        raise ParamsError("\n".join(lines))
    return params


def as_yaml(params: Params) -> str:
    """The params with every default spelled out, as YAML."""
    text = StringIO()
    YAML(typ="safe").dump(params.model_dump(mode="json"), text)
    return text.getvalue()


def read_text(path: Path) -> str:
    """The text of `path` with the line ends that it has; ParamsError if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this in the project's folder, the one with dvc.yaml") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None


def parse(text: str, path: Path) -> dict[str, Any]:
    """The sections in a text of YAML that lies at `path`, not yet validated; ParamsError if there are none."""
    try:
        content = YAML(typ="safe").load(text)
        count = _count(content, {})
    except (YAMLError, ValueError) as error:  # ValueError: what looks like a date or number and is none
        raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ParamsError(f"{path}: nested too deeply") from None
    if count > MOST_VALUES:
        raise ParamsError(f"{path}: holds over {MOST_VALUES:,} values, aliases (*name) written out; expected about 150")
    if content is None:
        raise ParamsError(f"{path}: empty; expected sections such as data, model, cluster")
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected sections such as data, model, cluster; got a {type(content).__name__}")
    return content


def _count(tree: Any, counted: dict[int, int]) -> int:
    """How many values a tree of YAML holds with its aliases written out; too many for one that holds itself."""
    if not isinstance(tree, dict | list):
        return 1
    if id(tree) not in counted:
        counted[id(tree)] = MOST_VALUES + 1  # until it is counted, so that an alias of itself ends here
        inner = tree.values() if isinstance(tree, dict) else tree
        counted[id(tree)] = 1 + sum(_count(value, counted) for value in inner)
    return counted[id(tree)]


def _describe(path: Path, mistake: Any) -> str:
    """`params.yaml: cluster.k: must be >= 2; got 1` of one pydantic error."""
    *parent, name = mistake["loc"]
    found = mistake["input"]
    if mistake["type"] == "extra_forbidden":
        shown = name if name and name.isprintable() else repr(name)
        return f"{path}: {'.'.join([*parent, shown])}: unknown key{nearest(name, known_keys(parent))}"
    if mistake["type"] == "invalid_key":
        section = f"{'.'.join(parent)}: " if parent else ""
        return f"{path}: {section}keys must be words; got {found!r}"
    location = [part for part in mistake["loc"] if not str(part).startswith(("function-", "constrained-"))]
    location = [part for part in location if part not in ("int", "float", "none")]
    if location and isinstance(location[-1], int):  # an element of a list: name the list
        location.pop()
    key = ".".join(str(part) for part in location)
    shown = list(found) if isinstance(found, tuple) else found
    return f"{path}: {key}: {_expected(mistake)}; got {shown!r}"


def _expected(mistake: Any) -> str:
    context = mistake.get("ctx", {})
    match mistake["type"]:
        case "greater_than_equal":
            return f"must be >= {context['ge']}"
        case "greater_than":
            return f"must be > {context['gt']}"
        case "less_than_equal":
            return f"must be <= {context['le']}"
        case "less_than":
            return f"must be < {context['lt']}"
        case "literal_error":
            return f"must be one of {context['expected']}{_suggest(mistake)}"
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_type":
            return "must be a number"
        case "finite_number":
            return "must be finite"
        case "bool_type":
            return "must be true or false"
        case "string_type" if isinstance(mistake["loc"][-1], int):
            return "must be a list of names"
        case "string_type":
            return "must be text"
        case "none_required":
            return "or must be null"
        case "model_type" | "dict_type":
            return "must be a section with keys of its own"
        case "tuple_type" if mistake["loc"][-1] == "freeze":
            return "must be a list of names"
        case "tuple_type" | "missing" | "too_long" | "too_short":
            return "must be a list of two numbers"
        case "value_error":
            return str(context["error"])
        case _:
            return str(mistake["msg"])


def _suggest(mistake: Any) -> str:
    choices = [choice.strip(" '") for choice in mistake["ctx"]["expected"].replace(" or ", ", ").split(",")]
    return nearest(str(mistake["input"]), choices)


def known_keys(location: Sequence[Any]) -> list[str]:
    """The keys that the section at `location` knows."""
    model: Any = Params
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
