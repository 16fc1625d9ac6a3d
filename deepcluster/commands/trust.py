"""`deepcluster trust`."""

from pathlib import Path
from typing import Annotated

import typer

from deepcluster import layout
from deepcluster.errors import UserError


def trust(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="With --runs: the folders of finished runs.")
    ] = None,
    runs: Annotated[bool, typer.Option("--runs", help="Compare the runs in folders, by their last epochs.")] = False,
    epochs: Annotated[
        str, typer.Option("--epochs", metavar="E,E,...|all", help="Epochs to compare, e.g. 5,10,20; 0: untrained.")
    ] = "all",
    restarts: Annotated[
        int | None,
        typer.Option("--restarts", min=1, help="Runs of k-means for each. [default: evaluate.restarts of params.yaml]"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the tables.")] = layout.TRUST,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")] = False,
) -> None:
    """Say which epoch, or with --runs which run, to prefer, without a look at the true labels. Changes no artifact.

    Clusters each one's features as `evaluate` does and measures how far the result can be trusted: whether augmented
    views of an image stay in its cluster, silhouette, stability, drift, agreement with the others (docs/trust.md says
    what each is, and what each is worth). Where there are true labels, they are looked at after the choice, to report
    how well each measure ranks by accuracy. Writes trust.csv and trust.json, with --runs runs.csv and runs.json.

    Runs are folders of this project, or of clones of it, with other seeds or recipes: of the same images.
    """
    from deepcluster.trust import trust_epochs, trust_runs

    if folders and not runs:
        raise UserError(f"trust: folders are for --runs, as in `deepcluster trust --runs A B`; got {folders[0]}")
    if not runs:
        trust_epochs(epochs, restarts=restarts, out=out, as_json=as_json)
        return
    if epochs != "all":
        raise UserError("--epochs: not with --runs, which compares each run's last epoch")
    trust_runs(folders or [], restarts=restarts, out=out, as_json=as_json)
