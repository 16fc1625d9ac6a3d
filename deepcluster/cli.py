"""The `deepcluster` command: every stage, planning, and a summary of the run. Light to import: no torch, no zarr."""

from typing import Annotated

import typer

from deepcluster import layout
from stages.cluster import cluster
from stages.common import Epoch, run_app
from stages.evaluate import evaluate
from stages.extract import extract
from stages.initialise import initialise
from stages.pca import pca
from stages.prepare import prepare
from stages.report import report
from stages.train import train

app = typer.Typer(
    help="DeepCluster as a pipeline of staged artifacts. Run in the project's folder, the one with dvc.yaml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ONE_STAGE = "One stage, as `dvc repro` runs it"
for command in (prepare, initialise, extract, pca, cluster, train, evaluate, report):
    app.command(rich_help_panel=ONE_STAGE)(command)


@app.command()
def plan(
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Set `epochs` in params.yaml first. [default: as it is]")
    ] = None,
) -> None:
    """Unroll the epochs of params.yaml into stages/schedule.yaml, for dvc.yaml to repeat its stages over.

    Growing keeps every epoch that exists; shrinking and growing back computes no epoch again.
    """
    from deepcluster.plan import plan as write_plan

    before, now = write_plan(epochs)
    print(f"{layout.SCHEDULE}: {now} epochs" + (f" (were {before})" if before not in (0, now) else ""))


@app.command()
def run(
    targets: Annotated[
        list[str] | None, typer.Argument(help="DVC stages, e.g. train@3. [default: the whole pipeline]")
    ] = None,
) -> None:
    """Bring the pipeline up to date in one process: what `dvc repro` does, without its start-up costs.

    Writes the schedule first. DVC decides what is stale; dvc.lock, cache and artifacts end as after `dvc repro`.
    """
    from deepcluster.plan import plan as write_plan
    from deepcluster.runner import run as run_pipeline

    write_plan()
    count = run_pipeline(targets or [])
    print(f"{count} stages ran" if count else "everything is up to date")


@app.command("sweep-k")
def sweep_k(
    epoch: Epoch,
    k: Annotated[str, typer.Option("--k", help="Numbers of clusters, e.g. 10,20,50,100.", show_default=False)],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs for each k; stability needs two.")] = 3,
    silhouette_rows: Annotated[
        int, typer.Option("--silhouette-rows", min=3, help="Images drawn to compute the silhouette on.")
    ] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Cluster the reduced features of an epoch with several k, to choose one. Trains nothing, changes no artifact.

    Reads data/epochs/E/pca.zarr, the true labels if there are any, and params.yaml's section `cluster`. Writes
    data/sweeps/E: sweep-k.csv, sweep-k.json, sweep-k.svg. For each k, of the best run: objective; explained (the share
    of the rows' variance); silhouette (sampled, -1 to 1); stability (mean ARI between the runs of different seeds);
    effective k, largest share and empty clusters; NMI with the true labels.
    """
    from deepcluster.sweep import parse_ks, sweep_epoch

    sweep_epoch(epoch, parse_ks(k), seeds=seeds, silhouette_rows=silhouette_rows, as_json=as_json)


@app.command()
def summary() -> None:
    """Print the table of epochs, the final clustering beside the baselines, and where the report is."""
    from deepcluster.evaluation.epochs import read_results
    from deepcluster.inspection.tables import baseline_cells, epoch_cells, named_baselines, print_table

    rows, metrics = read_results()
    print_table(epoch_cells(rows))
    k, sizes = metrics["k"], metrics["clusters"]
    print(
        f"\nFinal clustering: k-means (k = {k}) on the L2-normalised features of epoch {metrics['epoch']}'s backbone;"
    )
    smallest, largest = f"{sizes['smallest']:,.0f}", f"{sizes['largest']:,.0f}"
    print(f"clusters hold {smallest} to {largest} images, effective k {sizes['effective_k']:.1f}")
    if metrics["final"]:
        last = {name: metrics["pseudo_labels"][name] for name in ("nmi", "ari", "accuracy")}
        ours = {"final clustering": metrics["final"], "pseudo-labels, last epoch": last}
        print_table(baseline_cells(ours | named_baselines(metrics["baselines"])))
    print(f"\nClusters: {layout.EVALUATION / 'clusters.csv'}\nReport:   {layout.REPORT}")


def main() -> None:
    """Run the command that the command line names."""
    run_app(app)
