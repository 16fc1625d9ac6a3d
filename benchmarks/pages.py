"""Writes docs/results.md and docs/ablations.md from docs/runs and the prose in benchmarks/prose.

    python -m benchmarks.pages            write them
    python -m benchmarks.pages --check    exit code 1 if they are not what the records say

No number of a run is typed by hand: the prose has placeholders, each a line of its own but for the last.

    {{overview mnist: mnist-cpu mnist}}   medians and the worst seed of these experiments, baselines, published numbers
    {{architectures mnist: a b}}          a row for each of these experiments, named by its backbone
    {{seeds digits}}                      each seed, and what they were run with and on
    {{epochs digits 1}}                   some epochs of one seed
    {{ablations digits}}                  the experiments whose base this is, with the difference to it
    {{signals}}                           how measures without labels rank all runs
    {{digits accuracy median}}            a number within a sentence; median, worst, best, mean, std, or a seed
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from benchmarks import signals, tables
from benchmarks.experiments import CHECKOUT, FILE, Experiment, ExperimentsError, load_experiments
from benchmarks.records import FOLDER, read_records, strays
from benchmarks.scores import MEASURES, Features, Statistic, score, scores, statistic
from benchmarks.tables import Published, Runs
from deepcluster.errors import UserError, nearest

PROSE = Path(__file__).with_name("prose")
DOCS = CHECKOUT / "docs"
PAGES = ("results.md", "ablations.md")
NOTE = (
    "<!-- Written by `python -m benchmarks.pages` from docs/runs and benchmarks/prose/{page}: edit that instead. -->\n"
)
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}")


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where --check finds a difference, 2 for a mistake."""
    assert __doc__ is not None
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pages", description=first, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(words)
    try:
        written = pages()
        stale = [page for page, text in written.items() if _present(page) != text]
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    if options.check:
        for page in stale:
            print(f"docs/{page}: not what the records say; run `python -m benchmarks.pages`", file=sys.stderr)
        return 1 if stale else 0
    for page in stale:
        (DOCS / page).write_text(written[page], encoding="utf-8")
    print(f"written: {', '.join(f'docs/{page}' for page in stale)}" if stale else "the pages are up to date")
    return 0


def pages(prose: Path = PROSE, records: Path = FOLDER, experiments: Path = FILE) -> dict[str, str]:
    """The text of each page; ExperimentsError with every mistake in the prose, and for records of no experiment."""
    known = load_experiments(experiments)
    if unknown := strays(known, records):
        raise ExperimentsError(
            "\n".join(f"{path}: of no experiment in {experiments.name}, or of none of its seeds" for path in unknown)
        )
    runs = {name: Runs(experiment, read_records(experiment, records)) for name, experiment in known.items()}
    published = tables.load_published()
    mistakes = list[str]()
    found = {page: _filled(prose / page, runs, published, mistakes) for page in PAGES}
    mistakes += _left_out(known, prose)
    if mistakes:
        raise ExperimentsError("\n".join(mistakes))
    return found


def _filled(path: Path, runs: Mapping[str, Runs], published: Mapping[str, list[Published]], mistakes: list[str]) -> str:
    """A page's prose with its placeholders replaced; those that cannot be are added to `mistakes`."""

    def replaced(match: re.Match[str]) -> str:
        try:
            return _replacement(match[1].split(), runs, published)
        except ExperimentsError as error:
            mistakes.append(f"{path.name}: {match[0]}: {error}")
            return match[0]

    return NOTE.format(page=path.name) + PLACEHOLDER.sub(replaced, path.read_text(encoding="utf-8"))


def _replacement(words: Sequence[str], runs: Mapping[str, Runs], published: Mapping[str, list[Published]]) -> str:
    match words:
        case ["overview", data, *names] if data.endswith(":"):
            if data.removesuffix(":") not in published:
                raise ExperimentsError(f"{data.removesuffix(':')}: not a data set of published.yaml")
            return tables.overview([_runs(runs, name) for name in names], published[data.removesuffix(":")])
        case ["architectures", data, *names] if data.endswith(":") and data.removesuffix(":") in published:
            return tables.architectures([_runs(runs, name) for name in names], published[data.removesuffix(":")])
        case ["seeds", name]:
            return tables.seeds(_runs(runs, name))
        case ["epochs", name, seed] if seed.isdigit():
            record = _runs(runs, name).records.get(int(seed))
            return "Not recorded yet." if record is None else tables.epochs(record)
        case ["ablations", name]:
            changes = [
                each for each in runs.values() if each.experiment.base == name and each.experiment.group == "ablations"
            ]
            return tables.ablations(_runs(runs, name), changes)
        case ["signals"]:
            return signals.signals(runs.values())
        case [name, measure, which] if name in runs:
            return _value(runs[name], measure, which)
        case _:
            raise ExperimentsError("no such placeholder, or no such experiment")


def _runs(runs: Mapping[str, Runs], name: str) -> Runs:
    if name not in runs:
        raise ExperimentsError(f"{name}: no such experiment{nearest(name, runs)}")
    return runs[name]


def _value(runs: Runs, measure: str, which: str) -> str:
    """A statistic over the seeds, or one seed's number, of the result or (`pixels-nmi`) of a baseline."""
    features, _, rest = measure.partition("-")
    of: Features = "pixels" if features == "pixels" else "untrained" if features == "untrained" else "final"
    wanted = next((name for name in MEASURES if name == (measure if of == "final" else rest)), None)
    if wanted is None:
        raise ExperimentsError(f"{measure}: no such number; expected one of {', '.join(MEASURES)}")
    if which.isdigit():
        record = runs.records.get(int(which))
        return tables.number(None if record is None else score(record, wanted, of))
    named = next((name for name in STATISTICS if name == which), None)
    if named is None:
        raise ExperimentsError(f"{which}: expected a seed, or one of {', '.join(STATISTICS)}")
    return tables.number(statistic(scores(runs.finished, wanted, of), named))


def _left_out(experiments: Mapping[str, Experiment], prose: Path) -> list[str]:
    """Experiments that stand on no page: what came out badly must not be left out."""
    texts = {
        page: [
            words
            for match in PLACEHOLDER.findall((prose / page).read_text(encoding="utf-8"))
            if (words := match.split())
        ]
        for page in PAGES
    }
    shown = {
        word
        for words in texts["results.md"]
        if words[0] in ("overview", "architectures", "seeds")
        for word in words[1:]
    }
    bases = {words[1] for words in texts["ablations.md"] if words[0] == "ablations"}
    return [
        f"{name}: stands on no page; results are shown by overview, architectures or seeds in results.md, "
        "ablations by base"
        for name, each in experiments.items()
        if not (name in shown if each.group == "results" else name in bases or each.base in bases)
    ]


def _present(page: str) -> str | None:
    path = DOCS / page
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
