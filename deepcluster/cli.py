"""The `deepcluster` command: every stage, planning, and a summary of the run. Light to import: no torch, no zarr."""

from pathlib import Path
from typing import Annotated

import typer

from deepcluster import completion, layout
from deepcluster.commands.check import check
from deepcluster.commands.compare import compare
from deepcluster.commands.doctor import doctor
from deepcluster.commands.estimate import estimate
from deepcluster.commands.filters import filters
from deepcluster.commands.metrics import metrics
from deepcluster.commands.new import new
from deepcluster.commands.prune import prune
from deepcluster.commands.seeds import seeds
from deepcluster.commands.show import show
from deepcluster.commands.trust import trust
from deepcluster.commands.upload import upload
from deepcluster.commands.using import assign, bundle, sort
from deepcluster.commands.verify import verify
from deepcluster.errors import UserError
from deepcluster.export import Format
from deepcluster.params import load_params
from stages.cluster import cluster
from stages.common import Epoch, Overrides, open_images, overridable, override, run_app, say_if_rate_ends_elsewhere
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

app.command()(trust)

ONE_STAGE = "One stage, as `dvc repro` runs it"
for command in (prepare, initialise, extract, pca, cluster, train, evaluate, report):
    app.command(rich_help_panel=ONE_STAGE)(overridable(command))
app.command()(show)
app.command()(metrics)
app.command()(compare)
app.command()(verify)

app.command()(new)
app.command()(doctor)
app.command()(check)
app.command()(estimate)

app.command()(filters)
app.command()(upload)
app.command()(prune)


app.command()(seeds)


@app.command("set")
def set_(
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="E.g. cluster.k=50 train.optimizer.lr=1e-3, in YAML.",
            autocompletion=completion.settings,
        ),
    ],
) -> None:
    """Set keys of params.yaml, and change nothing else in it; nothing at all if any is wrong.

    The same as -S on `run`, `plan` and the stages: the file is edited, since DVC decides by it what is stale.
    """
    override(overrides)


@app.command()
def recipe(
    name: Annotated[
        str | None,
        typer.Argument(help="A file of recipes/. [default: list them]", autocompletion=completion.recipes),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Replace params.yaml by a recipe, keep the old file beside it, and write the schedule. Without a name: list them.

    The section `data` is replaced as well: name your images with -S data.root=FOLDER.
    """
    from deepcluster.settings import RECIPES, recipes

    if name is None and overrides:
        raise UserError("recipe: -S needs the name of a recipe to set keys in")
    if name is None:
        if not RECIPES.is_dir():
            raise UserError(f"{RECIPES}: no such folder; run this in the project's folder, the one with dvc.yaml")
        for found, about in recipes().items():
            print(f"{found}: {about}")
        return
    _take_recipe(name, overrides)
    say_if_rate_ends_elsewhere(load_params())


def _take_recipe(name: str, overrides: list[str] | None) -> None:
    """Put a recipe in the place of params.yaml, write its schedule, and say so."""
    from deepcluster.plan import plan as write_plan
    from deepcluster.settings import RECIPES, use_recipe

    changes, kept = use_recipe(name, overrides or [])
    for change in changes:
        print(f"{RECIPES / name}.yaml: {change}")
    _, epochs = write_plan()
    print(f"params.yaml: recipe {name}, {epochs} epochs" + (f"; the file before is {kept}" if kept else ""))


@app.command()
def plan(
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Set `epochs` in params.yaml first. [default: as it is]")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Unroll the epochs of params.yaml into stages/schedule.yaml, for dvc.yaml to repeat its stages over.

    Growing keeps every epoch that exists; shrinking and growing back computes no epoch again.
    """
    from deepcluster.plan import plan as write_plan
    from deepcluster.plan import refuse_epochs

    refuse_epochs(epochs)
    override(overrides, plans=True)
    before, now = write_plan(epochs)
    print(f"{layout.SCHEDULE}: {now} epochs" + (f" (were {before})" if before not in (0, now) else ""))
    say_if_rate_ends_elsewhere(load_params())


@app.command()
def run(
    targets: Annotated[
        list[str] | None, typer.Argument(help="DVC stages, e.g. train@3. [default: the whole pipeline]")
    ] = None,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Use a file of recipes/ as params.yaml first. [default: as it is]",
            autocompletion=completion.recipes,
        ),
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Take from DVC's remote what it has of this, also of other clones' runs.")
    ] = False,
) -> None:
    """Bring the pipeline up to date in one process: what `dvc repro` does, without its start-up costs.

    Writes the schedule first. DVC decides what is stale; dvc.lock, cache and artifacts end as after `dvc repro`.

    --recipe NAME is `deepcluster recipe NAME` before that, -S being changes to the recipe: the whole of params.yaml is
    replaced, and kept beside it unless it is a recipe as it stands or kept already. The same command again carries on:
    it replaces nothing.
    """
    from deepcluster.locking import only_run
    from deepcluster.plan import plan as write_plan
    from deepcluster.runner import run as run_pipeline

    with only_run():  # before the settings are touched, which another run would stop at
        if recipe is None:
            override(overrides, plans=True)
            write_plan()
        else:
            _take_recipe(recipe, overrides)
        say_if_rate_ends_elsewhere(load_params())
        ran, restored = run_pipeline(targets or [], pull=pull)
    found = [f"{ran} stages ran"] if ran else []
    found += [f"{restored} restored from the cache"] if restored else []
    print(", ".join(found) or "everything is up to date")


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
def augmentations(
    images: Annotated[int, typer.Option("--images", help="Rows, evenly spaced over the images; at most 50.")] = 8,
    views: Annotated[int, typer.Option("--views", help="Random views of each image; at most 20.")] = 6,
    epoch: Annotated[
        int,
        typer.Option("--epoch", "-e", help="Epoch whose random streams to use.", autocompletion=completion.epochs),
    ] = 1,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The PNG to write.")] = layout.AUGMENTATIONS,
) -> None:
    """Show what training sees: images, and beside each of them random views as `augment` in params.yaml makes them.

    Needs data/dataset/images.zarr, so `prepare`, but no training; no stage depends on the picture. Same settings, same
    bytes.
    """
    from deepcluster.augmentation_gallery import show_augmentations

    show_augmentations(images, views, epoch, out)


@app.command()
def export(
    epoch: Annotated[
        int,
        typer.Option(
            "--epoch",
            "-e",
            help="Whose backbone; 0 is the untrained one.",
            show_default=False,
            autocompletion=completion.epochs_and_untrained,
        ),
    ],
    format: Annotated[Format, typer.Option("--format", help="Kind of file.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write, in a folder that exists.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write the backbone of an epoch as a file for other programs. Changes no artifact.

    Reads data/epochs/E/checkpoint and data/dataset/images.zarr (for mean and std). torchvision: a state dict for
    torchvision's vgg16_bn or resnet, less the classifier. onnx: filters and backbone, for images in [0, 1] of any
    number. safetensors: the backbone's weights, with what rebuilds it in the header; model.weights takes it.
    """
    from deepcluster.export import export as write_export

    for line in write_export(epoch, format, out, force=force):
        print(line)


for use in (assign, bundle, sort):
    app.command()(use)


@app.command()
def summary() -> None:
    """Print the table of epochs, the final clustering beside the baselines, and where the report is."""
    from deepcluster.evaluation.epochs import read_results
    from deepcluster.evaluation.settings_used import changed, in_words
    from deepcluster.inspection.held_out import tables
    from deepcluster.inspection.tables import baseline_cells, epoch_cells, named_baselines, print_table, trust_line

    params = load_params()  # first: outside a project that is what is missing
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
    for sentence, cells in tables(metrics):
        print(f"\n{sentence}")
        print_table(cells)
    if line := trust_line(metrics.get("trust", {})):
        print(f"\n{line}")
    print(f"\nClusters: {layout.EVALUATION / 'clusters.csv'}\nReport:   {layout.REPORT}")
    if keys := changed(open_images(), params, last=len(rows)):
        print(f"\nMade with other settings than params.yaml has now ({in_words(keys)}); `deepcluster run` follows them")


def main() -> None:
    """Run the command that the command line names."""
    run_app(app)
