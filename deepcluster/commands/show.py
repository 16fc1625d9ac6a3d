"""`deepcluster show`."""

from typing import Annotated, Literal

import typer

from deepcluster import completion

Revision = Annotated[
    str | None,
    typer.Option("--rev", metavar="REVISION", help="A git revision or DVC experiment. [default: the workspace]"),
]


def show(
    what: Annotated[
        Literal["dataset", "features", "pca", "clusters", "checkpoint"], typer.Argument(help="Which artifact.")
    ],
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch",
            "-e",
            help="Of which epoch; checkpoint also 0. [default: the last there is]",
            autocompletion=completion.epochs_shown,
        ),
    ] = None,
    rev: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every value, instead.")] = False,
) -> None:
    """Show an artifact: arrays, bytes on disk, what it was made of, and statistics. Changes nothing.

    features, pca: norms, dead and constant dimensions, effective rank, NaN; explained variance. clusters: sizes.
    checkpoint: each layer's norm and its change since the epoch before. Several gigabytes take a while: there is a bar.
    """
    import json

    from deepcluster.console import print_blocks
    from deepcluster.origins import origin
    from deepcluster.show.describe import describe
    from deepcluster.show.render import blocks

    with origin(rev) as source:
        found = describe(what, epoch, source)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_blocks(blocks(found))
