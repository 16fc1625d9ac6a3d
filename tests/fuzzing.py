"""What the fuzz tests share: how many inputs, files with mistakes in them, and a count of what became of each.

`pytest` tries a few dozen inputs of each kind, always the same ones. FUZZ_INPUTS=10000 tries so many, other ones each
time; with FUZZ_RECORD=FILE.json what became of them is written there.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcluster.errors import UserError

INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))
REFUSED = "refused"
EDGES = (0, 1, 2, 127, 128, 255)


def outcomes(
    name: str, inputs: st.SearchStrategy[Any], act: Callable[[Any], str], *, quick: int, cost: int = 1
) -> Counter[str]:
    """Gives every input to `act`, and counts what that returns, a UserError as "refused"; all else fails the test.

    cost: where an input takes long, FUZZ_INPUTS is divided by it.
    """
    counts: Counter[str] = Counter()

    @settings(
        max_examples=INPUTS // cost or quick,
        derandomize=not INPUTS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def check(value: Any) -> None:
        try:
            outcome = act(value)
        except UserError as error:
            assert str(error).strip(), "a UserError that says nothing"
            outcome = REFUSED
        counts[outcome] += 1

    check()
    _record(name, counts)
    return counts


def _record(name: str, counts: Counter[str]) -> None:
    if target := os.environ.get("FUZZ_RECORD"):
        path = Path(target)
        found = json.loads(path.read_text()) if path.exists() else {}
        found[name] = {"inputs": counts.total()} | dict(sorted(counts.items()))
        path.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n")


@st.composite
def edited(draw: st.DrawFn, contents: st.SearchStrategy[bytes], *, most: int = 3) -> bytes:
    """A valid file with a few edits, or with none: bytes set, put in, taken out, repeated, or the end cut off."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["set", "edge", "insert", "delete", "repeat", "cut"])):
            case "set":
                run = draw(st.binary(min_size=1, max_size=4))
                content[at : at + len(run)] = run
            case "edge":
                content[at : at + 1] = bytes([draw(st.sampled_from(EDGES))])
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del content[at : at + draw(st.integers(1, 16))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 16))]
            case "cut":
                del content[at:]
    return bytes(content)


def files(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Files near valid ones, and now and then bytes of no meaning."""
    near = edited(valid)
    return st.one_of(near, near, near, st.binary(max_size=64))
