"""docs/runs/NAME-sSEED.json: one run's settings, numbers and circumstances, from which the pages are made."""

import csv
import functools
import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from benchmarks.experiments import CHECKOUT, Experiment, ExperimentsError
from deepcluster.params import Params

FOLDER = CHECKOUT / "docs/runs"
DIGITS = 4
NOT_SETTINGS = ("seed", "data.root")  # what the hash leaves out: the draw, and where images lie on a machine


@dataclass(frozen=True)
class Record:
    """One run that ended, well or not."""

    experiment: str
    seed: int
    status: Literal["finished", "failed"]
    error: str | None
    """The line that a failed run ended with."""
    failed_at: str | None
    """Its stage, e.g. train@7."""
    date: str
    commit: str | None
    dirty: bool
    """Whether code, recipes or params.yaml differed from that commit."""
    params_sha256: str
    wall_seconds: float
    cpu_seconds: float
    alone: bool
    """Whether the machine did nothing else, so that the wall time means something."""
    threads: int
    stages: dict[str, float]
    """Seconds of each kind of stage, summed over the epochs."""
    peak_memory_mb: float | None
    hardware: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, Any]
    """metrics.json; empty for a run that did not come so far."""
    epochs: list[str]
    """The lines of epochs.csv, rounded; without any, of a run that did not come so far."""
    params: dict[str, Any]
    """By dotted key."""

    @property
    def name(self) -> str:
        return run_name(self.experiment, self.seed)

    @property
    def rows(self) -> list[dict[str, float | None]]:
        """A row an epoch; None where there was nothing to compare with."""
        found = csv.DictReader(self.epochs)
        return [{name: None if field in ("", "nan") else float(field) for name, field in row.items()} for row in found]

    def metric(self, *path: str) -> float | None:
        """A number of metrics.json, e.g. `metric("final", "nmi")`; None if this record has none of that name."""
        found: Any = self.metrics
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def run_name(experiment: str, seed: int) -> str:
    """Of the record and of the DVC experiment."""
    return f"{experiment}-s{seed}"


def record_path(experiment: str, seed: int, folder: Path = FOLDER) -> Path:
    return folder / f"{run_name(experiment, seed)}.json"


def write_record(record: Record, folder: Path = FOLDER) -> Path:
    """Write it whole or not at all."""
    path = record_path(record.experiment, record.seed, folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_as_text(finite(asdict(record))), encoding="utf-8")
    partial.replace(path)
    return path


def _as_text(content: dict[str, Any]) -> str:
    """JSON with a line for each field, and one for each setting, metric and epoch."""
    compact = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
    fields = []
    for key, value in content.items():
        match key, value:
            case "params" | "metrics", {**inner} if inner:
                lines = [f"  {compact(name)}: {compact(item)}" for name, item in inner.items()]
                text = "{\n" + ",\n".join(lines) + "\n }"
            case "epochs", [*inner] if inner:
                text = "[\n" + ",\n".join(f"  {compact(line)}" for line in inner) + "\n ]"
            case _:
                text = compact(value)
        fields.append(f" {compact(key)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def read_record(path: Path) -> Record:
    """ExperimentsError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{field.name: content[field.name] for field in fields(Record)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExperimentsError(f"{path}: not a record of a run: {error!r}") from None


def read_records(experiment: Experiment, folder: Path = FOLDER) -> dict[int, Record]:
    """The records there are of its seeds, by seed, in the experiment's order."""
    paths = {seed: record_path(experiment.name, seed, folder) for seed in experiment.seeds}
    return {seed: read_record(path) for seed, path in paths.items() if path.exists()}


def strays(experiments: dict[str, Experiment], folder: Path = FOLDER) -> list[Path]:
    """Records of no experiment, or of none of its seeds."""
    known = {record_path(name, seed, folder) for name, each in experiments.items() for seed in each.seeds}
    return [path for path in sorted(folder.glob("*.json")) if path not in known]


def canonical(params: Params) -> dict[str, Any]:
    """The settings as they are recorded: every key, dotted; of data.root its last component."""
    return flat(params.model_dump(mode="json")) | {"data.root": Path(params.data.root).name}


def params_sha256(params: Params) -> str:
    """Of all settings but the seed and data.root, as JSON with sorted keys: the same for all seeds of an experiment."""
    settings = {key: value for key, value in canonical(params).items() if key not in NOT_SETTINGS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changed_keys(recorded: dict[str, Any], now: Params) -> list[str]:
    """Keys whose value is another than a record has; one that is no more says nothing."""
    before = completed(recorded)
    return [key for key, value in canonical(now).items() if key not in NOT_SETTINGS and before[key] != value]


def completed(recorded: dict[str, Any]) -> dict[str, Any]:
    """A record's settings; a key that it lacks is newer than it, and its default is what the code did before."""
    return _defaults() | recorded


@functools.cache
def _defaults() -> dict[str, Any]:
    return flat(Params().model_dump(mode="json"))


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def rounded(csv_text: str) -> list[str]:
    """The lines of a CSV file, with at most four decimals."""

    def field(text: str) -> str:
        try:
            whole = text.lstrip("-").isdigit()
            return text if whole else f"{round(float(text), DIGITS) + 0.0:.{DIGITS}f}".rstrip("0").rstrip(".")
        except ValueError:
            return text

    lines = list(csv.reader(io.StringIO(csv_text)))
    return [",".join(lines[0]), *(",".join(field(text) for text in line) for line in lines[1:])] if lines else []


def finite(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
