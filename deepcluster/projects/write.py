"""A project written to disk, whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deepcluster import artifacts, layout
from deepcluster.errors import UserError
from deepcluster.fingerprints import CODE_FILE, code_text
from deepcluster.plan import schedule_text
from deepcluster.projects.choices import Choice, choices, final_clusters_of
from deepcluster.projects.git import check_git, commit, initialise
from deepcluster.projects.look import Look, look_at
from deepcluster.projects.pipeline import pipeline_text
from deepcluster.projects.settings_text import params_text
from deepcluster.shipped import shipped, shipped_text

IGNORED_BY_GIT = """\
# Everything in data/ belongs to DVC or can be made again.
/data/*
# What `deepcluster bundle`, `sort` and `assign` write under the names that the documentation uses, and what
# `deepcluster recipe` keeps of the settings before.
/bundle/
/sorted/
/labels.csv
/params.before-recipe*.yaml
__pycache__/
/.venv/
"""
FIRST_COMMIT = "Project made by `deepcluster new`"


def new_project(folder: Path, images: Path, *, follow_links: bool = False) -> tuple[Look, list[Choice], bool]:
    """Make a project in `folder`, which must not exist or be empty, for the images in another folder.

    What was seen, what was chosen, and whether there is a first commit (not where git knows no author).
    UserError before anything is written if folder, images or git will not do; afterwards nothing half made stays.
    """
    from deepcluster.progress import reporting

    check_git()
    folder, images = Path(os.path.abspath(folder)), Path(os.path.abspath(images.expanduser()))
    refuse_place(folder, images)
    with reporting("look at the images", "images") as report:
        look = look_at(images, follow_links=follow_links, progress=report)
    chosen = choices(look)
    text, name = params_text(look, chosen), readme(folder.name, look, chosen)
    with _whole(folder) as partial:
        _write_files(partial, text, name, epochs=next(choice.value for choice in chosen if choice.key == "epochs"))
        initialise(partial)
        committed = commit(partial, FIRST_COMMIT)
    return look, chosen, committed


def refuse_place(folder: Path, images: Path) -> None:
    """UserError for a project's folder that is taken, cannot be written, or lies among the images."""
    for path in (folder, images):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(path)!r}: name is not UTF-8, which params.yaml cannot hold") from None
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is not a folder; name one that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a folder that does not exist yet, or an empty one")
    if folder.resolve().is_relative_to(images.resolve()):
        raise UserError(f"{folder}: lies in the folder of images, which then would hold the project's own pictures")
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{above}: cannot be written to; name another place for the project")


def readme(name: str, look: Look, chosen: Sequence[Choice]) -> str:
    """README.md of the project: what it is, and the next commands."""
    value = {choice.key: choice.value for choice in chosen}
    as_many = "a cluster for each subfolder" if look.classes else "as many as pseudo-labels"
    return f"""\
# {name}

Groups, pseudo-labels and a pretrained backbone for the {look.count:,} images in `{look.root}`, by deepcluster.
`params.yaml` holds every setting; the comments that begin with `# new:` say why it was chosen.

```console
$ deepcluster doctor      # what is wrong with machine or project, if anything is
$ deepcluster estimate    # time, disk and memory of the whole run, after ten seconds of measuring
$ deepcluster run         # {value["epochs"]} epochs; after Ctrl-C the same command carries on
$ deepcluster summary     # the table of epochs, and where clusters.csv and the report lie
```

Training is on `cluster.k` = {value["cluster.k"]} pseudo-labels. The result, `data/evaluation/clusters.csv`, has
`evaluate.k` clusters: null, so {final_clusters_of(look)}, {as_many}. `deepcluster set evaluate.k=NUMBER` and
`deepcluster run` make another number of them, and train nothing anew.

After adding images to the folder run `dvc repro -s -f prepare`, then `deepcluster run`; after installing another
version of deepcluster only `deepcluster run`, which computes again what its code changed. `deepcluster recipe` lists
other settings.
"""


def _write_files(root: Path, params: str, about: str, *, epochs: int) -> None:
    """Everything but git's and DVC's own."""
    (root / layout.SCHEDULE.parent).mkdir(parents=True)
    files = {
        "params.yaml": params,
        "dvc.yaml": pipeline_text(),
        str(layout.SCHEDULE): schedule_text(epochs),
        str(CODE_FILE): code_text(),
        ".gitignore": IGNORED_BY_GIT,
        ".dvcignore": shipped_text(".dvcignore"),
        "README.md": about,
    }
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8", newline="\n")
    shutil.copytree(shipped("recipes"), root / "recipes")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, whose content is `folder`'s when the block ends; after an error there is none of it.

    An empty folder stays the same one, since somebody may be in it.
    """
    try:
        if not folder.exists():
            with artifacts.publishing(folder) as partial:
                partial.mkdir()
                yield partial
            return
        partial = folder / f".new.{os.getpid()}.partial"
        partial.mkdir()
        try:
            yield partial
            for child in list(partial.iterdir()):
                child.rename(folder / child.name)
            partial.rmdir()
        except BaseException:
            for child in folder.iterdir():
                artifacts.remove(child)
            raise
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
