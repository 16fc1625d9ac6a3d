"""`deepcluster compare`."""

from pathlib import Path
from typing import Annotated

import typer

from deepcluster import completion

SIDE = "An epoch (7), a git revision (main~1; its last epoch), or both (main~1:7)."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=SIDE, show_default=False, autocompletion=completion.epochs)],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="What to compare with it, likewise.",
            show_default=False,
            autocompletion=completion.epochs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to write. [default: data/comparisons/A-B]")
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Share of a cluster that counts as a part of it; at most 0.5.")
    ] = 0.25,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Compare the clusters of two epochs or revisions. No true label is read, no artifact changed.

    ARI and NMI of the labels; clusters matched one to one, and which images are in another cluster than the one that
    continues theirs; clusters split and merged; linear CKA of the features. Writes comparison.json, confusion.csv,
    movers.csv and movers.png, a sheet of images that moved.
    """
    import json

    from deepcluster.compare.comparison import compare as compare_sides
    from deepcluster.compare.render import blocks
    from deepcluster.console import print_blocks

    found = compare_sides(a, b, out=out, threshold=threshold)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_blocks(blocks(found))
