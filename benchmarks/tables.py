"""The tables of docs/results.md and docs/ablations.md, in Markdown, from records alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from ruamel.yaml import YAML

from benchmarks.experiments import Experiment
from benchmarks.records import Record, changed_keys
from benchmarks.scores import HEADINGS, MEASURES, Features, Measure, paired, score, scores, statistic

NONE = "–"  # noqa: RUF001 - where there is no number
PUBLISHED = Path(__file__).with_name("published.yaml")
BASELINES: Mapping[Features, str] = {"pixels": "k-means on pixels", "untrained": "untrained backbone"}


@dataclass(frozen=True)
class Runs:
    """An experiment with its records, by seed."""

    experiment: Experiment
    records: Mapping[int, Record]

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records.values() if record.status == "finished"]

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records.values() if record.status == "failed"]


class Published(BaseModel):
    """A number that others report; a text for a range."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    accuracy: float | str | None = None
    nmi: float | str | None = None
    arch: str | None = None
    probe: float | str | None = None


def load_published(path: Path = PUBLISHED) -> dict[str, list[Published]]:
    """By data set."""
    content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, list[Published]]).validate_python(content)


def overview(runs: Sequence[Runs], published: Sequence[Published]) -> str:
    """A row for each experiment (medians, with the worst seed below), then the baselines and what others report."""
    measures: list[Measure] = ["nmi", "ari", "accuracy", "test-nmi", "test-accuracy", "knn", "probe"]
    header = ["", *(HEADINGS[measure] for measure in measures), "runs", "epochs", "wall time"]
    rows = []
    for each in runs:
        end = [_runs(each), _epochs(each), _wall(each.finished)]
        for name in ("median", "worst") if each.finished else ("median",):
            label = f"**{each.experiment.name}**, {name}" if each.finished else f"**{each.experiment.name}**"
            cells = [number(statistic(scores(each.finished, measure), name)) for measure in measures]
            rows.append([label, *cells, *(end if name == "median" else ["", "", ""])])
    for features, label in BASELINES.items():
        rows += [
            [f"{label} ({each.experiment.name})", *cells, _runs(each), "", ""]
            for each in runs
            if any(cells := [_median(each.finished, measure, features) for measure in measures])
            and set(cells) != {NONE}
        ]
    for entry in published:
        named: dict[Measure, Any] = {"nmi": entry.nmi, "accuracy": entry.accuracy, "probe": entry.probe}
        cells = [NONE if named.get(measure) is None else str(named[measure]) for measure in measures]
        rows.append([f"{entry.method} ({entry.source})", *cells, "", "", ""])
    return table(header, rows)


def architectures(runs: Sequence[Runs], published: Sequence[Published]) -> str:
    """A row for each experiment, named by its backbone, beside what others report for that backbone."""
    header = ["backbone", "NMI", "worst NMI", "accuracy", "untrained NMI", "earlier program's NMI", "failed", "runs"]
    header += ["epochs", "processor time"]
    rows = []
    for each in runs:
        arch = each.experiment.params(each.experiment.seeds[0]).model.arch
        reported = next((str(entry.nmi) for entry in published if entry.arch == arch), NONE)
        nmi = scores(each.finished, "nmi")
        rows.append(
            [
                f"`{arch}`",
                number(statistic(nmi, "median")),
                number(statistic(nmi, "worst")),
                _median(each.finished, "accuracy", "final"),
                _median(each.finished, "nmi", "untrained"),
                reported,
                str(len(each.failed)) if each.records else NONE,
                _runs(each),
                _epochs(each),
                _processor(each.finished),
            ]
        )
    return table(header, rows)


def seeds(runs: Runs) -> str:
    """A row for each seed, then median, mean, standard deviation and worst; below, what they were run with and on."""
    if not runs.records:
        return f"`{runs.experiment.name}`: not recorded yet."
    header = ["seed", *(HEADINGS[measure] for measure in MEASURES), "pixels NMI / accuracy"]
    header += ["untrained NMI / accuracy", "wall time"]
    rows = [[str(seed), *_seed_cells(record)] for seed, record in runs.records.items()]
    if len(runs.finished) > 1:
        for name in ("median", "mean", "std", "worst"):
            cells = [number(statistic(scores(runs.finished, measure), name), 4) for measure in MEASURES]
            last = (
                [_both(runs.finished, f) for f in BASELINES] + [_wall(runs.finished)] if name == "median" else [""] * 3
            )
            rows.append([f"**{name}**", *cells, *last])
    return table(header, rows) + "\n\n" + circumstances(runs)


def circumstances(runs: Runs) -> str:
    """Settings, commits, machine and versions of an experiment's records, and what has changed since."""
    records, experiment = list(runs.records.values()), runs.experiment
    lines = [f"`{experiment.name}`: {experiment.asks} Settings: {_settings(experiment)}."]
    lines += _by_seed("Commit", runs, lambda record: f"{record.commit}{' with changes' if record.dirty else ''}")
    lines += _by_seed("Params hash", runs, lambda record: record.params_sha256[:12])
    lines += _by_seed("Machine", runs, _machine)
    lines += _by_seed("Versions", runs, lambda record: ", ".join(" ".join(pair) for pair in record.versions.items()))
    lines += _by_seed("Recorded", runs, lambda record: record.date)
    lines += [f"Seed {each.seed} failed at {each.failed_at}: {each.error}" for each in runs.failed]
    keys = sorted({key for each in records for key in changed_keys(each.params, experiment.params(each.seed))})
    lines += [f"**Recorded with other settings than the recipe has now: {', '.join(keys)}.**"] if keys else []
    return "\n".join(f"- {line}" for line in lines)


def ablations(base: Runs, changes: Sequence[Runs]) -> str:
    """A row an experiment: what it changes, mean ± standard deviation, the worst, failures, difference to the base."""
    header = ["change", "accuracy", "NMI", "worst accuracy", "failed", "Δ accuracy", "Δ NMI", "seeds"]
    rows = []
    for each in (base, *changes):
        worst = statistic(scores(each.finished, "accuracy"), "worst")
        same = each is base
        rows.append(
            [
                f"**{each.experiment.name}**: {_settings(each.experiment)}" if same else _changed(base, each),
                _spread(each.finished, "accuracy"),
                _spread(each.finished, "nmi"),
                number(worst),
                str(len(each.failed)) if each.records else NONE,
                NONE if same else _difference(base, each, "accuracy"),
                NONE if same else _difference(base, each, "nmi"),
                _runs(each),
            ]
        )
    return table(header, rows)


def epochs(record: Record) -> str:
    """The epochs 1, 2, 4, 8 and so on of a run, and its last."""
    rows = record.rows
    shown = [row for row in rows if (epoch := int(row["epoch"] or 0)) & (epoch - 1) == 0 or row is rows[-1]]
    names = {
        "nmi": "NMI",
        "accuracy": "accuracy",
        "nmi_previous": "NMI with the epoch before",
        "loss": "loss",
        "pseudo_label_accuracy": "pseudo-label accuracy",
    }
    cells = [[f"{row['epoch']:.0f}", *(number(row.get(name), 4) for name in names)] for row in shown]
    return table(["epoch", *names.values()], cells)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; a bar within a cell is no border."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _median(records: Sequence[Record], measure: Measure, features: Features) -> str:
    return number(statistic(scores(records, measure, features), "median"))


def _both(records: Sequence[Record], features: Features) -> str:
    """Median NMI / accuracy of a baseline."""
    values = [statistic(scores(records, measure, features), "median") for measure in ("nmi", "accuracy")]
    return " / ".join(number(value, 4) for value in values)


def _seed_cells(record: Record) -> list[str]:
    measured = [number(score(record, measure), 4) for measure in MEASURES]
    return [*measured, *(_both([record], features) for features in BASELINES), _wall([record])]


def _runs(runs: Runs) -> str:
    """`5`, `5, 1 failed`, `3 of 5 so far`."""
    count, all_ = len(runs.records), len(runs.experiment.seeds)
    if not count:
        return "not recorded yet"
    text = str(count) if count == all_ else f"{count} of {all_} so far"
    return f"{text}, {len(runs.failed)} failed" if runs.failed else text


def _epochs(runs: Runs) -> str:
    found = sorted({record.params["epochs"] for record in runs.records.values()})
    return ", ".join(map(str, found)) or NONE


def _wall(records: Sequence[Record]) -> str:
    """The median time of runs that had the machine to themselves."""
    seconds = statistic([record.wall_seconds for record in records if record.alone], "median")
    if seconds is None:
        return NONE
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _processor(records: Sequence[Record]) -> str:
    """The median of the processor time, which other work on the machine changes little."""
    seconds = statistic([record.cpu_seconds for record in records], "median")
    return NONE if seconds is None else f"{seconds / 60:.1f} min"


def _spread(records: Sequence[Record], measure: Measure) -> str:
    """`0.970 ± 0.008`."""
    values = scores(records, measure)
    std = statistic(values, "std")
    return number(statistic(values, "mean")) + (f" ± {std:.3f}" if std is not None else "")


def _difference(base: Runs, each: Runs, measure: Measure) -> str:
    """`-0.012 ± 0.004`: mean and standard error over the shared seeds."""
    found = paired(each.records, base.records, measure)
    if found is None:
        return NONE
    shared = f" ({found.seeds} seeds)" if found.seeds != len(each.records) else ""
    return f"{found.mean:+.3f}" + (f" ± {found.error:.3f}" if found.error is not None else "") + shared


def _settings(experiment: Experiment) -> str:
    """`params.yaml with `cluster.k=10``."""
    changed = f" with {_quoted(experiment.settings)}" if experiment.settings else ""
    return f"`{experiment.recipe_file}`{changed}"


def _changed(base: Runs, each: Runs) -> str:
    """What an ablation changes against its base, and what it asks."""
    recipe = [f"`{each.experiment.recipe_file}`"] if each.experiment.recipe_file != base.experiment.recipe_file else []
    return f"{', '.join([*recipe, _quoted(each.experiment.set)])}: {each.experiment.asks}"


def _quoted(settings: Sequence[str]) -> str:
    return ", ".join(f"`{setting}`" for setting in settings)


def _machine(record: Record) -> str:
    """`2 cores of AMD EPYC, 25 GB of memory, no GPU`."""
    found = record.hardware
    used = (
        f"{record.threads} of {found['cores']} cores" if record.threads < found["cores"] else f"{found['cores']} cores"
    )
    gpu = found.get("gpu") or "no GPU"
    return (
        f"{used}, {found['cpu']}, {found['memory_gb']} GB of memory, {gpu}; {found['system']}, Python {found['python']}"
    )


def _by_seed(label: str, runs: Runs, of: Callable[[Record], str]) -> list[str]:
    """`Commit: a (seeds 1, 2), b (seed 3)`; without the seeds if all have the same."""
    found: dict[str, list[int]] = {}
    for seed, record in runs.records.items():
        found.setdefault(of(record), []).append(seed)
    if len(found) == 1:
        return [f"{label}: {next(iter(found))}"]
    named = [
        f"{text} (seed{'s' if len(seeds_) > 1 else ''} {', '.join(map(str, seeds_))})" for text, seeds_ in found.items()
    ]
    return [f"{label}: {'; '.join(named)}"]
