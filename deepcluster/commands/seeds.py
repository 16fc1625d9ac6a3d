"""`deepcluster seeds`."""

from typing import Annotated

import typer


def seeds(
    count: Annotated[int | None, typer.Argument(help="Seeds 1 to COUNT.", show_default=False)] = None,
    listed: Annotated[
        str | None, typer.Option("--seeds", metavar="LIST", help="These seeds, e.g. 3,7,9.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Run params.yaml with several seeds: each seed's numbers, mean, standard deviation, median and worst.

    Each runs in a copy of the project in data/seeds, so artifacts and dvc.lock here stay as they are; DVC's cache is
    shared, so what does not depend on the seed is not computed again. Writes data/seeds: seeds.csv, seeds.json and one
    file for each finished seed, which is kept when the command is interrupted, or repeated with the same params and
    code. A seed that fails is named, and the others go on.
    """
    from deepcluster.seeds import parse_seeds, run_seeds

    run_seeds(parse_seeds(count, listed), as_json=as_json)
