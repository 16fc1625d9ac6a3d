"""`deepcluster upload`."""

from pathlib import Path
from typing import Annotated

import typer


def upload(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ARTIFACT]...",
            help="Such as data/dataset/images.zarr or data/epochs/7/checkpoint. [default: all that stages read]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Send what is there already, too.")] = False,
) -> None:
    """Copy artifacts to DEEPCLUSTER_STORE, a URL such as s3://bucket/project, where stages find what is not here.

    A reader there finds each artifact whole or not at all. A second time only what has changed is sent.
    """
    from deepcluster.upload import upload as send

    send(paths or [], force=force)
