"""`deepcluster new`."""

from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; must not exist, or be empty.")],
    images: Annotated[
        Path,
        typer.Option("--images", metavar="FOLDER", help="Your images, or folders of them.", show_default=False),
    ],
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Read what links to files and folders elsewhere lead to, also later.")
    ] = False,
) -> None:
    """Make a project for a folder of images: settings from a look at them, git and DVC initialised.

    Reads names of all images and decodes at most 256; neither copies nor changes any. Writes params.yaml with a reason
    beside every choice, dvc.yaml, recipes and a README with the next commands. Needs no network.
    """
    from deepcluster.projects.write import new_project

    look, chosen, committed = new_project(folder, images, follow_links=follow_links)
    print(f"{look.root}: {look.count:,} images, {len(look.unreadable)} of {look.looked:,} looked at cannot be read")
    for choice in chosen:
        print(f"  {choice.key}: {_shown(choice.value)} ({choice.why})")
    print(f"{folder}: project made" + ("" if committed else "; not committed yet, as git knows no user.name"))
    print(f"\nNext:\n  cd {_quoted(folder)}")
    print("\n".join(f"  deepcluster {command}" for command in ("doctor", "estimate", "run", "summary")))


def _shown(value: object) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _quoted(folder: Path) -> str:
    import shlex

    return shlex.quote(str(folder))
