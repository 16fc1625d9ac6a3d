"""`deepcluster metrics`."""

from typing import Annotated

import typer


def metrics(
    labels: Annotated[
        bool, typer.Option("--labels", help="NMI, ARI and accuracy against the true labels, too.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on as epochs complete, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="With --watch: how often to look; at least 0.1.")
    ] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Print the table of the epochs so far, also while a run goes on. Changes nothing.

    Reads data/history. With --watch into a file or a pipe, a line for each epoch as it completes.
    """
    import json
    from dataclasses import asdict

    from deepcluster.errors import UserError
    from deepcluster.live import EpochReader, print_snapshot, read_once
    from deepcluster.live import watch as go_on

    if watch and as_json:
        raise UserError("--json: prints the table once; leave out --watch")
    if not every >= 0.1:
        raise UserError(f"--every: must be >= 0.1 seconds; got {every:g}")
    reader = EpochReader(labels)
    if watch:
        go_on(reader, every=every)
    elif as_json:
        print(json.dumps(asdict(read_once(reader)), indent=2))
    else:
        print_snapshot(read_once(reader), labels=labels)
