"""`deepcluster doctor`."""

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check machine and project: a line a check, ok, warn or fail, with the remedy. Changes nothing, needs no network.

    Libraries, devices, memory, disk; in a project also params.yaml, the data set (by its files, undecoded), git and
    DVC. Exit code 1 if something fails, else 0. Outside of a project the machine alone.
    """
    import json

    from deepcluster.doctor.checks import as_json as checks_json
    from deepcluster.doctor.checks import as_lines, carried_out
    from deepcluster.doctor.machine import machine_checks
    from deepcluster.doctor.project import project_checks

    found = list(carried_out([*machine_checks(), *project_checks()]))
    result = checks_json(found)
    print(json.dumps(result, indent=2) if as_json else "\n".join(as_lines(found)))
    if not result["ok"]:
        raise typer.Exit(1)
