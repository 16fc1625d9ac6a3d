"""`deepcluster prune`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deepcluster.pruning import Plan


def prune(
    every: Annotated[
        int | None, typer.Option("--every", metavar="K", help="Keep every K-th epoch, too. [default: none]")
    ] = None,
    first: Annotated[bool, typer.Option("--first/--no-first", help="Keep the first epoch.")] = True,
    last: Annotated[bool, typer.Option("--last/--no-last", help="Keep the last epoch.")] = True,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="E,E", help="Keep these, too, e.g. 3,7. [default: none]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be freed, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    own_cache: Annotated[
        bool, typer.Option("--own-cache", help="No other project uses DVC's cache, where it lies outside this folder.")
    ] = False,
) -> None:
    """Free the feature dumps of all epochs but the first, the last and those named, here and in DVC's cache.

    `deepcluster run` does not make them again until a stage needs one: stages/pruned.yaml, which belongs into git,
    lists them. `dvc repro --allow-missing` does not either; a plain `dvc repro` does, with the same bytes, and nothing
    after them. Checkpoints, components and clusters stay, and what other branches, tags, experiments or artifacts need,
    or a remote has. `deepcluster run extract@E` brings a dump back.
    """
    import sys

    from deepcluster.errors import UserError
    from deepcluster.pruning import carry_out, planned

    with planned(every=every, first=first, last=last, keep=keep, own_cache=own_cache) as plan:
        for line in _lines(plan):
            print(line)
        if dry_run or not plan.dumps:
            return
        if not yes:
            if not sys.stdin.isatty():
                raise UserError("prune: nobody can be asked here; --yes deletes, --dry-run only looks")
            if not typer.confirm("Free them?"):
                return
        carry_out(plan)
    print("freed; stages/pruned.yaml lists them: keep it in git")


def _lines(plan: "Plan") -> list[str]:
    from deepcluster.errors import in_ranges

    found = [f"{dump.path}: {plan.bytes_of([dump]):,} bytes" for dump in plan.dumps]
    found += [f"epoch {epoch} stays: {who} has the same dump" for epoch, who in plan.needed.items()]
    if plan.pruned_before:
        found.append(f"pruned before: {in_ranges(plan.pruned_before)}")
    kept = f"; kept: {in_ranges(plan.kept)}" if plan.kept else ""
    return [*found, f"{len(plan.dumps)} feature dumps to free, {plan.bytes_of(plan.dumps):,} bytes{kept}"]
