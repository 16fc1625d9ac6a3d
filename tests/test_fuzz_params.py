"""params.yaml: whatever it holds, it is a valid configuration or a ParamsError that names the file."""

import functools
import io
from typing import Any

import pytest
from conftest import CHECKOUT
from fuzzing import REFUSED, edited, outcomes
from hypothesis import strategies as st
from ruamel.yaml import YAML

from deepcluster.errors import ParamsError
from deepcluster.params import PARAMS_FILE, Params, as_yaml, at_epoch, final_k, load_params, misfits
from deepcluster.params.edit import edited as with_overrides
from deepcluster.params.edit import leaves
from deepcluster.params.file import parse, validated

SHIPPED = (CHECKOUT / "params.yaml").read_bytes()
KEYS = [key.split(".") for key in leaves()]
WORDS = [
    "",
    "digits",
    "folder",
    "sgd",
    "adam",
    "random",
    "k-means++",
    "pic",
    "spectral",
    "deepcluster_v2",
    "null",
    "1",
    "\ud800",
    "\0",
]
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 10, -1, 2**31, 2**64, 10**30, 0.5, 1.0, -0.0, 1e-9, 1e308, float("inf"), float("nan")]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["k", "name", "lr", "x", 1, None, True, 0.5]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def near_the_schema(draw: st.DrawFn) -> Any:
    """The shipped settings with a few values exchanged, keys taken out, misspelt, added or put elsewhere."""
    tree = YAML(typ="safe").load(SHIPPED.decode())
    defaults = Params().model_dump(mode="json")
    for _ in range(draw(st.integers(0, 4))):
        parts = draw(st.sampled_from(KEYS))
        section: Any = tree
        for part in parts[:-1]:
            inner = section.get(part)
            if not isinstance(inner, dict):
                break
            section = inner
        key = parts[-1]
        match draw(
            st.sampled_from(["default", "default", "drop", "drop", "number", "value", "misspell", "add", "section"])
        ):
            case "default":
                section[key] = functools.reduce(lambda inner, part: inner[part], parts, defaults)
            case "value":
                section[key] = draw(VALUES)
            case "number":
                section[key] = draw(NUMBERS)
            case "drop":
                section.pop(key, None)
            case "misspell":
                section[f"{key}s"] = section.pop(key, None)
            case "add":
                section[draw(st.sampled_from([1, None, True, 1.5, "x", "k", "", "none", "int", "function-x"]))] = draw(
                    VALUES
                )
            case "section":
                tree[parts[0]] = draw(VALUES)
    return tree


def checked(params: Params) -> str:
    """What is asked of every valid configuration: it is written and read back, and all that asks it gets an answer."""
    assert validated(parse(as_yaml(params), PARAMS_FILE), PARAMS_FILE) == params
    for epoch in (None, 1, params.epochs):
        at_epoch(params, epoch)
    assert final_k(params, classes=0) >= 2
    list(misfits(params, images=100, features=32))
    return "valid"


def refusing(act: Any) -> str:
    """Every line of what refuses the settings names the file, as a person needs it."""
    try:
        return checked(act())
    except ParamsError as error:
        for line in str(error).splitlines():
            assert line.startswith("params.yaml: "), line
            assert not line.startswith("params.yaml: :"), line
        raise


def test_any_structure_near_the_schema():
    counts = outcomes(
        "params: structures",
        near_the_schema(),
        lambda tree: refusing(lambda: validated(tree, PARAMS_FILE)),
        quick=50,
    )
    assert counts["valid"] >= counts.total() // 10
    assert counts[REFUSED] >= counts.total() // 10


def test_any_yaml_that_a_library_would_write():
    def act(tree: Any) -> str:
        text = io.StringIO()
        try:
            YAML(typ="safe").dump(tree, text)
        except UnicodeEncodeError:  # surrogates, which it refuses to write
            return "not written"
        return refusing(lambda: validated(parse(text.getvalue(), PARAMS_FILE), PARAMS_FILE))

    outcomes("params: values", VALUES, act, quick=50)


SNIPPETS = [
    b"2001-99-99", b"0o9", b"0x", b"!!int x", b"!!float x", b"!!binary '&'", b"!!timestamp x", b"!!python/name:os.x",
    b"? [a]\n: b", b"? {a: b}\n: c", b"<<: 3", b"&a [*a]", b"*b", b"%YAML 9.9\n---\n", b"---\n", b"...\n",
    b"\xef\xbb\xbf", b"\t", b"9" * 5000, b"1e9999", b"[" * 3000, b"{a: " * 3000, b"'",
    b"\"\\ud800\"", b"|\n  x", b"!!set {a}", b"1: 2",
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """The shipped text with edits of bytes, and with pieces that YAML readers are known to stumble over."""
    content = draw(edited(st.just(SHIPPED), most=2))
    for _ in range(draw(st.integers(0, 2))):
        starts = [0, *(at + 1 for at, byte in enumerate(content) if byte in b"\n:")]
        at = draw(st.sampled_from(starts))
        content = content[:at] + b" " + draw(st.sampled_from(SNIPPETS)) + content[at:]
    return content


def test_any_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def act(content: bytes) -> str:
        PARAMS_FILE.write_bytes(content)
        return refusing(load_params)

    counts = outcomes("params: texts", texts(), act, quick=50)
    assert counts["valid"] >= counts.total() // 20


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_what_yaml_readers_stumble_over(tmp_path, monkeypatch, snippet):
    monkeypatch.chdir(tmp_path)
    for content in (snippet, b"data: " + snippet, b"data: {root: " + snippet + b"}", b"data:\n  root: " + snippet):
        PARAMS_FILE.write_bytes(content)
        try:
            refusing(load_params)
        except ParamsError as error:
            assert str(error)


def test_any_override():
    overrides = st.tuples(
        st.sampled_from([".".join(parts) for parts in KEYS]),
        st.sampled_from(SNIPPETS).map(lambda snippet: snippet.decode("utf-8", "replace")) | st.text(max_size=8),
    ).map("=".join)

    def act(override: str) -> str:
        text, _ = with_overrides(SHIPPED.decode(), [override])
        return checked(validated(parse(text, PARAMS_FILE), PARAMS_FILE))

    outcomes("params: overrides", overrides | st.text(max_size=12), act, quick=50)
