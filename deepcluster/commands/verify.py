"""`deepcluster verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepcluster import completion
from deepcluster.commands.show import Revision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepcluster.artifacts import Difference
    from deepcluster.verify import Verdict

SHOWN = 4  # differences of each artifact


def verify(
    stages: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE]...", help="E.g. pca, or pca@7. [default: all that dvc.lock records]"),
    ] = None,
    epoch: Annotated[
        int | None,
        typer.Option("--epoch", "-e", help="Of this epoch alone. [default: all]", autocompletion=completion.epochs),
    ] = None,
    rev: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Run stages again in a scratch folder and compare what they make with what is recorded. Changes nothing.

    Bytes are compared; where they differ, it says in which array, key or line, and by how much. Exit code 1 if any
    stage differs, or is stale: made with other settings, or from other artifacts, than lie there now. With --rev the
    artifacts of a revision are compared with what today's code makes of its settings.

    What is the same on which machines: docs/reproducibility.md.
    """
    import json
    import sys
    from dataclasses import asdict

    from deepcluster.origins import origin
    from deepcluster.verify import chosen_stages
    from deepcluster.verify import verify as verdicts

    found = []
    with origin(rev) as source:
        chosen = chosen_stages(source, stages or [], epoch)
        for number, verdict in enumerate(verdicts(source, chosen), 1):
            found.append(verdict)
            for line in _lines(verdict, f"[{number}/{len(chosen)}]", max(map(len, chosen))):
                print(line, file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in found], indent=2))
    else:
        print(_summary(found))
    if any(verdict.outcome != "same" for verdict in found):
        raise typer.Exit(1)


def _lines(verdict: "Verdict", number: str, width: int) -> list[str]:
    """One line, and below it what differs."""
    from deepcluster.console import bytes_text

    start = f"{number} {verdict.stage:<{width}}"
    match verdict.outcome:
        case "stale":
            return [f"{start}  stale: {verdict.reason}"]
        case "same":
            return [f"{start}  same: {verdict.files} files, {bytes_text(verdict.size)}, {verdict.seconds:.1f} s"]
        case "different":
            return [f"{start}  DIFFERENT", *(line for each in verdict.differences.items() for line in _named(*each))]


def _named(path: str, found: "Sequence[Difference]") -> list[str]:
    """The first differences of an artifact, and how many more there are."""
    more = [f"    {path}: and {len(found) - SHOWN:,} more (--json names all)"] if len(found) > SHOWN else []
    return [f"    {path}: {each}" for each in found[:SHOWN]] + more


def _summary(verdicts: "list[Verdict]") -> str:
    counts = {kind: sum(each.outcome == kind for each in verdicts) for kind in ("same", "different", "stale")}
    named = [f"{count} {kind}" for kind, count in counts.items() if count]
    return f"{len(verdicts)} {'stage' if len(verdicts) == 1 else 'stages'} run again: {', '.join(named)}"
