"""What the shell offers behind Tab: epochs that exist, recipes, keys of params.yaml. Quick, and never an error.

A shell asks in whatever folder it is; where there is no project there is nothing to offer.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps

import typer

from deepcluster import layout

Offers = list[tuple[str, str]]


def _silent(complete: Callable[[str], Offers]) -> Callable[[str], Offers]:
    """Nothing in the place of an error, which the shell would write into the line that is being typed."""

    @wraps(complete)
    def offered(incomplete: str) -> Offers:
        with suppress(Exception):
            return [offer for offer in complete(incomplete) if offer[0].startswith(incomplete)]
        return []

    return offered


@_silent
def epochs(incomplete: str) -> Offers:
    """The epochs that have artifacts, from 1 on, with the names of these."""
    found: dict[int, list[str]] = {}
    for folder in (layout.EPOCHS, layout.HISTORY):
        for path in sorted(folder.glob("*/*")):
            if path.parent.name.isdigit() and int(path.parent.name) and not path.name.startswith("."):
                found.setdefault(int(path.parent.name), []).append(path.stem)
    return [(str(epoch), ", ".join(found[epoch])) for epoch in sorted(found)]


@_silent
def epochs_and_untrained(incomplete: str) -> Offers:
    """The epochs that have a backbone; 0 is the untrained one."""
    numbers = [path.parent.name for path in layout.EPOCHS.glob("*/checkpoint") if path.parent.name.isdigit()]
    return [(number, "untrained" if number == "0" else "checkpoint") for number in sorted(numbers, key=int)]


def epochs_shown(ctx: typer.Context, incomplete: str) -> Offers:
    """The epochs that have the artifact that the line names for `show`; those with a backbone while it names none."""
    what = ctx.params.get("what") or next(
        iter(ctx.args), None
    )  # click parses no argument before an option without value
    if what in (None, "checkpoint"):
        return epochs_and_untrained(incomplete)
    return [offer for offer in epochs(incomplete) if what in offer[1].split(", ")]


@_silent
def recipes(incomplete: str) -> Offers:
    """The recipes, with what each is."""
    from deepcluster.settings import recipes as found

    return list(found().items())


@_silent
def settings(incomplete: str) -> Offers:
    """`KEY=` for every key of params.yaml; behind the `=` the words that a key takes, where these are few."""
    from deepcluster.params.edit import leaves

    key, equals, _ = incomplete.partition("=")
    if equals:
        return [(f"{key}={word}", "") for word in _words(key)]
    return [(f"{leaf}=", "") for leaf in leaves()]


def _words(key: str) -> list[str]:
    """The values of a key that is one of some words, or true or false; null among them where it may be."""
    from types import NoneType, UnionType
    from typing import Union, get_args, get_origin

    from deepcluster.params import Params

    section: type[Params] | None = Params
    annotation: object = None
    for part in key.split("."):
        assert section is not None
        annotation = section.model_fields[part].annotation
        section = annotation if isinstance(annotation, type) and hasattr(annotation, "model_fields") else None
    words: list[str] = []
    for kind in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,):
        if kind is bool:
            words += ["true", "false"]
        elif kind is NoneType:
            words.append("null")
        else:
            words += [word for word in get_args(kind) if isinstance(word, str)]
    return words if words != ["null"] else []
