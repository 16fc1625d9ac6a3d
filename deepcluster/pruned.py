"""stages/pruned.yaml: which feature dumps `deepcluster prune` has freed, and the hash that each had in dvc.lock.

It lies in git beside the schedule, so that clones know it too. An entry stands for that one content: once dvc.lock
names another hash, it says nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster import artifacts, layout
from deepcluster.errors import ArtifactError

HEADER = """\
# Written by `deepcluster prune`: feature dumps that were freed, and the hash that each had in dvc.lock. They are not
# made again until a stage needs them, or `deepcluster run extract@E` asks for one. Keep this file in git.
"""


def read_pruned(path: Path = layout.PRUNED) -> dict[str, str]:
    """The hash, as in dvc.lock, of every pruned dump by its path; ArtifactError if the file is not a list of such."""
    try:
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (YAMLError, UnicodeDecodeError):
        found = None
    if isinstance(found, dict) and all(isinstance(text, str) for entry in found.items() for text in entry):
        return found
    raise ArtifactError(
        f"{path}: not a list of pruned dumps; run `git checkout {path}`, or delete it and have them made again"
    )


def write_pruned(dumps: Mapping[str, str], path: Path = layout.PRUNED) -> None:
    """Replace the list; without entries there is no file."""
    if dumps:
        artifacts.write_text(path, HEADER + "".join(f"{dump}: {md5}\n" for dump, md5 in dumps.items()))
    else:
        artifacts.remove(path)


def bring_back(path: Path, stage: str) -> str:
    """The rest of a line about a dump that was pruned."""
    return (
        f"pruned by `deepcluster prune`; `deepcluster run {stage}` makes it again, with the same bytes, and "
        f"`dvc pull {path}` fetches it where a remote has it"
    )
