"""`deepcluster trust`: epochs of a run, or several runs, compared by label-free measures of their final clusterings.

The true labels are read when the choice has been made, by `_truth` alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts
from deepcluster.augment import Augmentation
from deepcluster.errors import UserError, in_ranges
from deepcluster.evaluation.trust import agreements, neighbour_agreements
from deepcluster.evaluation.trust_choice import preferred, rank_correlations, trust_scores
from deepcluster.evaluation.trust_runs import HALVINGS, SILHOUETTE_ROWS, VIEWED, Judged, Run, judge, open_run, still
from deepcluster.images import open_rows
from deepcluster.inspection.tables import Cells, print_table, value_text
from deepcluster.metrics import hungarian_accuracy
from deepcluster.progress import counted
from deepcluster.spreadsheets import csv_line, harmless
from stages.common import device, faiss_gpu

MEASURES = (
    "consensus", "neighbours", "view_agreement", "view_cosine", "silhouette", "margin", "stability", "half_stability",
    "rival_gap", "explained", "drift",
)  # fmt: skip
SCORED = ("consensus", "view_agreement")
"""What the score is made of; docs/trust.md tells how it was found."""

Row = dict[str, Any]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Truth:
    """What the true labels say afterwards: the accuracy of each row, and each measure's rank correlation with it."""

    accuracy: list[float]
    rank_correlation: dict[str, float | None]


@dataclass(frozen=True)
class Compared:
    """Rows of epochs or of runs (`kind`, also the key that names a row) with measures and score; place of the best."""

    kind: str
    rows: list[Row]
    best: int
    truth: Truth | None

    @property
    def names(self) -> list[str]:
        return [str(row[self.kind]) for row in self.rows]


def trust_epochs(epochs: str, *, restarts: int | None, out: Path, as_json: bool) -> None:
    """Compare epochs of the run in the current folder; print and write the tables."""
    run = open_run()
    chosen = parse_epochs(epochs, run)
    restarts = restarts or run.params.evaluate.restarts
    judged = list(counted(_judged([(run, epoch) for epoch in chosen], restarts), "trust", len(chosen), "epochs", _one))
    labelings = [found.labels_N for found in judged]
    rows: list[Row] = [{"epoch": epoch, **_measures(found)} for epoch, found in zip(chosen, judged, strict=True)]
    for row, near, everywhere in zip(rows, neighbour_agreements(labelings), agreements(labelings), strict=True):
        row |= {"neighbours": near, "consensus": everywhere}
    _publish(_compared("epoch", rows, labelings, run), "trust", _settings(run, restarts), out, as_json)


def trust_runs(folders: Sequence[Path], *, restarts: int | None, out: Path, as_json: bool) -> None:
    """Compare the last epochs of the runs in these folders; print and write the tables."""
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        given = ", ".join(map(str, folders)) or "none"
        raise UserError(f"--runs: needs the folders of two runs or more, each once; got {given}")
    runs = [open_run(folder) for folder in folders]
    lasts = [last_epoch(run) for run in runs]
    refuse_unlike(runs)
    restarts = restarts or runs[0].params.evaluate.restarts
    pairs = list(zip(runs, lasts, strict=True))
    judged = list(counted(_judged(pairs, restarts), "trust", len(runs), "runs", _one))
    labelings = [found.labels_N for found in judged]
    rows: list[Row] = [
        {"run": str(run.root), "epoch": last, **_measures(found)}
        for (run, last), found in zip(pairs, judged, strict=True)
    ]
    for row, everywhere in zip(rows, agreements(labelings), strict=True):
        row |= {"neighbours": None, "consensus": everywhere}
    _publish(_compared("run", rows, labelings, runs[0]), "runs", _settings(runs[0], restarts), out, as_json)


def parse_epochs(text: str, run: Run) -> list[int]:
    """[5, 10] of "10,5", or all that were trained; UserError for anything else, and for epochs that were not run."""
    there = run.epochs
    if not there:
        raise UserError(f"{run.root / 'data/epochs'}: no epoch has been trained; run `deepcluster run` first")
    if text.strip() == "all":
        return there
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--epochs: must be all, or whole numbers with commas between, as in 5,10,20; got {text!r}")
    chosen = sorted({int(part) for part in parts})
    if missing := [str(epoch) for epoch in chosen if epoch and epoch not in there]:
        raise UserError(f"--epochs: not run: {', '.join(missing)}; there are {in_ranges(there)}")
    return chosen


def last_epoch(run: Run) -> int:
    """The last epoch of a finished run; UserError if it is not there."""
    last, there = run.params.epochs, run.epochs
    if last not in there:
        found = f"epochs {in_ranges(there)}" if there else "no trained epoch"
        raise UserError(f"--runs: {run.root}: not finished: params.yaml has {last} epochs, data/epochs {found}")
    return last


def refuse_unlike(runs: Sequence[Run]) -> None:
    """UserError unless all runs are over the same images, and their final clusterings have the same k."""
    first = runs[0]
    for run in runs[1:]:
        if run.images.ids != first.images.ids:
            raise UserError(f"--runs: {run.root}: its images are not those of {first.root} (their ids differ)")
        if run.k != first.k:
            raise UserError(
                f"--runs: final clusterings of {first.k} clusters in {first.root} and of {run.k} in {run.root} do not "
                "compare; set evaluate.k to the same"
            )


def _judged(pairs: Sequence[tuple[Run, int]], restarts: int) -> Iterator[Judged]:
    """Each epoch of a run, with draws of the first run's seed, and under every augmentation that any was trained with.

    So a run without augmentation does not win by views that are the images themselves.
    """
    kinds: list[Augmentation] = []
    for run, epoch in pairs:
        kind = run.augmentation(epoch)
        if kind not in kinds and not still(kind):
            kinds.append(kind)
    opened, pixels_NCHW = None, np.empty(0, np.uint8)
    for run, epoch in pairs:
        if run is not opened:
            opened, pixels_NCHW = run, open_rows(run.images)
        yield judge(
            run,
            epoch,
            pixels_NCHW,
            kinds,
            restarts=restarts,
            seed=pairs[0][0].params.seed,
            device=device(),
            gpu=faiss_gpu(deterministic=run.params.deterministic),
        )


def _measures(found: Judged) -> Row:
    return asdict(found.trust) | {"drift": found.drift}


def _compared(kind: str, rows: list[Row], labelings: Sequence[Labels], run: Run) -> Compared:
    """The choice, and only then the true labels."""
    scores = trust_scores(rows, SCORED)
    scored = [row | {"score": score} for row, score in zip(rows, scores, strict=True)]
    best = preferred(scores)
    return Compared(kind, scored, best, _truth(scored, labelings, run))


def _truth(rows: Sequence[Row], labelings: Sequence[Labels], run: Run) -> Truth | None:
    targets_N = run.targets()
    if targets_N is None:
        return None
    accuracy = [hungarian_accuracy(labels_N, targets_N) for labels_N in labelings]
    return Truth(accuracy, rank_correlations(rows, (*MEASURES, "score"), accuracy))


def _settings(run: Run, restarts: int) -> Row:
    return {
        "k": run.k,
        "restarts": restarts,
        "seed": run.params.seed,
        "halvings": HALVINGS,
        "silhouette_rows": SILHOUETTE_ROWS,
        "views": VIEWED,
        "scored": SCORED,
    }


def _publish(found: Compared, name: str, settings: Row, out: Path, as_json: bool) -> None:
    content = settings | {"rows": found.rows, "preferred": found.rows[found.best][found.kind]}
    content["true_labels"] = None if found.truth is None else asdict(found.truth)
    text = json.dumps(content, indent=2) + "\n"
    try:
        artifacts.write_text(out / f"{name}.json", text)
        artifacts.write_text(out / f"{name}.csv", _csv(found))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written to: {error.strerror}") from None
    if as_json:
        print(text, end="")
        return
    print_table(_cells(found))
    for line in _conclusion(found):
        print(line)
    print(f"\nTables: {out / name}.csv, .json")


def _csv(found: Compared) -> str:
    """A row for each epoch or run; names of runs as no spreadsheet runs them."""
    accuracies = found.truth.accuracy if found.truth else [None] * len(found.rows)
    columns = list(found.rows[0])
    cells = [[*(row[name] for name in columns), accuracy] for row, accuracy in zip(found.rows, accuracies, strict=True)]
    return csv_line([*columns, "accuracy"]) + "".join(csv_line(map(_cell, row)) for row in cells)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return harmless(value) if isinstance(value, str) else value


def _cells(found: Compared) -> Cells:
    """Measures that any row has, and the score."""
    names = [name for name in (*MEASURES, "score") if any(row[name] is not None for row in found.rows)]
    lines = [[name, *(value_text(n, row[n]) for n in names)] for name, row in zip(found.names, found.rows, strict=True)]
    return Cells([found.kind, *names], lines)


def _conclusion(found: Compared) -> Iterator[str]:
    kind, count = found.kind, len(found.rows)
    if count == 1:
        yield f"\nOne {kind} alone: nothing to choose from"
    else:
        yield f"\nPreferred: {kind} {found.names[found.best]}, by the mean rank of {' and '.join(SCORED)}"
    if found.truth is None:
        yield "No true labels: nothing says how far this can be relied on here"
        return
    accuracy = found.truth.accuracy
    yield "\nThe true labels had no part in the choice. By them, looked up afterwards:"
    highest = int(np.argmax(accuracy))
    yield (
        f"accuracy {accuracy[found.best]:.4f}; of the last {kind} {accuracy[-1]:.4f}, "
        f"median {np.median(accuracy):.4f}, highest {accuracy[highest]:.4f} ({kind} {found.names[highest]})"
    )
    known = {name: value for name, value in found.truth.rank_correlation.items() if value is not None}
    if known:
        yield f"rank correlation with accuracy over {count} {kind}s (Spearman; 1: the same order):"
        yield "  " + ", ".join(f"{name} {value:.2f}" for name, value in known.items())


def _one(_: Judged) -> int:
    return 1
