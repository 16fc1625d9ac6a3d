"""dvc.lock, entry by entry, in DVC's own text.

DVC parses and writes the whole file for every change, in pure Python to keep comments: at 100 epochs that is seconds a
time. Entries are independent blocks of text, so here only those that changed are made anew, by DVC's own dumper.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcluster.artifacts import write_text
from deepcluster.errors import RunnerError

_HEAD = "schema: '2.0'\nstages:\n"
_START = re.compile(r"^  (?! |- ).+:\n", flags=re.MULTILINE)
_REST = re.compile(r"(?:   .*\n|  - .*\n)*")
_OTHER_HASH = re.compile(r"^ +(?:- )?hash: (?!md5$)(.*)\n", flags=re.MULTILINE)  # a line cut short is for `mending`
_ENTRY = re.compile(r"^  (?! )(.+):\n((?:   .*\n|  - .*\n)*)", flags=re.MULTILINE)


def write_entries(lockfile: Any, stages: Sequence[Any]) -> None:
    """Put the entries of these DVC stages into `lockfile` (`dvc.dvcfile.Lockfile`), as its `dump_stages` would.

    Same bytes as DVC's, with an atomic rename. A file not as DVC writes it (comments, other sections) is left to DVC.
    """
    path = Path(lockfile.path)
    entries = split(path.read_text(encoding="utf-8")) if path.exists() else {}
    if entries is None:
        lockfile.dump_stages(stages)
        return
    for stage in stages:
        entries |= entry(stage)
    write_text(path, join(entries))
    lockfile.repo.scm_context.track_file(lockfile.relpath)


def check_lock(path: Path = Path("dvc.lock")) -> None:
    """RunnerError for what DVC fails on without a word of its own: no text, or the name of a hash that is not md5."""
    if not path.exists():
        return
    remedy = f"run `git checkout {path}`, or delete it: DVC finds again in its run-cache what was run"
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise RunnerError(f"{path}: not UTF-8 text; {remedy}") from None
    if found := _OTHER_HASH.search(text):
        raise RunnerError(f"{path}: damaged (hash: expected md5, got {found[1]!r}); {remedy}")


def split(text: str) -> dict[str, str] | None:
    """The text below each stage's name, by name; None if the file is not in DVC's plain form."""
    if not text.startswith(_HEAD):
        return None
    entries = dict(_ENTRY.findall(text.removeprefix(_HEAD)))
    return entries if join(entries) == text else None


def join(entries: dict[str, str]) -> str:
    """What `split` took apart."""
    return _HEAD + "".join(f"  {name}:\n{body}" for name, body in entries.items())


def salvaged(text: str) -> dict[str, str] | None:
    """The entries that are whole in a file which DVC was killed while writing; None if it is not such a file.

    DVC writes from the first entry on, so all are but the last, in which the text ends. What is not plain (merge
    conflicts, for one) was made by someone else.
    """
    whole = text[: text.rfind("\n") + 1]  # a line cut short may hold anything
    starts = list(_START.finditer(whole))
    if not starts:
        return {} if _HEAD.startswith(whole) else None
    return split(whole[: starts[-1].start()]) if _REST.fullmatch(whole[starts[-1].end() :]) else None


def entry(stage: Any) -> dict[str, str]:
    """A stage's entry as text, by its name."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    found = split(_HEAD + dumps_yaml({"stages": to_lockfile(stage)}).removeprefix("stages:\n"))
    if found is None:
        raise ValueError(f"{stage.addressing}: its lock entry is not plain text")
    return found
