"""`deepcluster bundle`, `assign`, `sort`: a finished clustering used on other images. Light to import: no torch."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deepcluster import completion
from deepcluster.errors import UserError

if TYPE_CHECKING:
    from deepcluster.using.bundle import Bundle

DEFAULT = Path("bundle")

BundleFolder = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="DIR",
        help="A folder that `deepcluster bundle` wrote. [default: in a project its final clustering as it is now, "
        "elsewhere ./bundle]",
        show_default=False,
    ),
]


def bundle(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")] = DEFAULT,
    labels: Annotated[
        Literal["final", "pseudo"],
        typer.Option(
            "--labels", help="final: the result, k-means on the last backbone's features; pseudo: an epoch's."
        ),
    ] = "final",
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch", "-e", help="Whose pseudo-labels.", show_default=False, autocompletion=completion.epochs
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare with the labels of all training images.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Write a clustering as one folder that works without this project: for `assign`, `sort`, or to give away.

    Holds backbone, PCA (of pseudo-labels), centroids, preprocessing and provenance, as safetensors and JSON; the
    README.txt in it says how to use it. Changes no artifact.
    """
    from deepcluster import artifacts
    from deepcluster.using.bundle import write_bundle
    from deepcluster.using.project import differing, project_bundle
    from stages.common import device

    artifacts.refuse_bundle_target(out, force=force)
    found = project_bundle(labels, epoch)
    if check:
        moved, total = differing(found, labels, device())
        print(
            f"check: all {total:,} training images get the cluster that they have in the artifact"
            if not moved
            else f"warning: {moved:,} of {total:,} training images get another cluster than they have in the artifact, "
            "which was made on another device, with other settings or by other versions"
        )
    try:
        write_bundle(out, found)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    quoted = shlex.quote(str(out))
    print(f"{out}: {found.name}; `deepcluster assign --bundle {quoted} IMAGES --out labels.csv` uses it")


FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Read what links in a folder to files and folders elsewhere lead to.")
]


def assign(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Files, and folders with images at any depth.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The CSV; - for stdout.", show_default=False)],
    bundle: BundleFolder = None,
    follow_links: FollowLinks = False,
) -> None:
    """Tell the cluster of every image: a CSV with a row a file. Never reads the data set, changes no artifact.

    Columns: sample (its path), cluster, distance (Euclidean, to its centroid), second (the next nearest cluster),
    second_distance, outlier (true: farther from its centroid than 99 % of that cluster's training images), error (why a
    file cannot be read; its other cells are empty). Names that begin with = + - @ are written with ./ in front, so that
    no spreadsheet runs them. Exit code 2 if no file can be read, 1 if one that you named is not there, else 0.
    """
    from deepcluster import artifacts
    from deepcluster.using.assigning import as_csv, assign_files, refuse_nothing, refuse_table_target, summary
    from stages.common import device

    to_stdout = str(out) == "-"
    if not to_stdout:
        refuse_table_target(out)
    used = _bundle(bundle)
    found = assign_files(used, images, device(), follow_links=follow_links)
    text = as_csv(found)
    if to_stdout:
        sys.stdout.buffer.write(text.encode())  # UTF-8 whatever the locale
        sys.stdout.flush()
    else:
        try:
            artifacts.write_text(out, text)
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    refuse_nothing(found)
    for line in summary(found, used):
        print(line, file=sys.stderr)
    if found.missing:
        raise typer.Exit(1)


def sort(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The images, at any depth.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="A new or empty folder.", show_default=False)],
    copy: Annotated[
        bool | None, typer.Option("--copy/--link", help="Copies, or relative symbolic links.", show_default=False)
    ] = None,
    bundle: BundleFolder = None,
    follow_links: FollowLinks = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier `sort` laid out there.")] = False,
) -> None:
    """Lay the images of a folder out by cluster: DIR/00, DIR/01, ... and DIR/labels.csv, which says what went where.

    Originals are neither moved nor changed. Images of one name in one cluster are told apart by -2, -3, ... Files that
    cannot be read stay where they are, and stand in labels.csv with the reason.
    """
    from deepcluster.using.assigning import assign_files, refuse_nothing, summary
    from deepcluster.using.sorting import lay_out, refuse_folders
    from stages.common import device

    if copy is None:
        raise UserError("sort: say --copy (copies) or --link (relative symbolic links)")
    refuse_folders(folder, into, force=force)
    used = _bundle(bundle)
    found = assign_files(used, [folder], device(), follow_links=follow_links)
    refuse_nothing(found)
    lay_out(found, into, k=used.k, copy=copy)
    for line in summary(found, used):
        print(line, file=sys.stderr)
    print(f"{into}: {len(found.placed()):,} {'copies' if copy else 'links'}; labels.csv says what went where")


def _bundle(folder: Path | None) -> "Bundle":
    """The one that was named; else this project's final clustering, which is never out of date; else ./bundle."""
    from deepcluster.using.bundle import read_bundle
    from deepcluster.using.project import in_project, project_bundle

    if folder is None and in_project():
        return project_bundle("final", None)
    if folder is None and not DEFAULT.exists():
        raise UserError(
            "--bundle: needed here, as this folder is no project that has run and holds no ./bundle; "
            "`deepcluster bundle` writes one, in a project's folder"
        )
    return read_bundle(folder or DEFAULT)
