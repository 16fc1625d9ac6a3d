"""`deepcluster check`."""

from typing import Annotated

import typer


def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete what is damaged; the next run restores it or makes it anew.")
    ] = False,
) -> None:
    """Read all artifacts and DVC's cache, and say which are not as they were saved. Changes nothing without --repair.

    Compares every byte with the hashes in dvc.lock and in the cache, which DVC itself does not do: it looks at times
    and sizes. Artifacts of a stage that ran without DVC since are named too, as they are not what dvc.lock says. Exit
    code 2 if something is damaged. Refused beside a `deepcluster run`, whose artifacts dvc.lock knows an epoch later.
    """
    from deepcluster import locking
    from deepcluster.integrity import check_project

    locking.refuse_beside_run("check")
    for line in check_project(repair=repair):
        print(line)
