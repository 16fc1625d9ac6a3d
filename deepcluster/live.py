"""`deepcluster metrics`: the table of the epochs that are complete, also while a run goes on.

A run replaces whole artifacts under the reader: what is not there, or does not hold together at this moment, counts as
not there yet. A run with new settings starts at epoch 1 while the later epochs of the run before still lie there: by
dvc.lock those were made from other inputs than lie before them, and they are left out.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.errors import ArtifactError, UserError, in_ranges
from deepcluster.evaluation.epochs import Row, epoch_row
from deepcluster.inspection.tables import Cells, epoch_cells, plain_text, print_table
from deepcluster.origins import LOCK, Origin, dvc_md5, origin
from deepcluster.plan import scheduled_epochs

if TYPE_CHECKING:
    from rich.text import Text

COLUMNS = (
    "epoch", "loss", "pseudo_label_accuracy", "nmi_previous", "smallest", "largest", "empty", "effective_k",
    "k", "feature_rank",
)  # fmt: skip
LABEL_COLUMNS = ("nmi", "ari", "accuracy")
RETRY_SECONDS = 0.3
NUMBER_WIDTH = 9
Stamp = tuple[int, int, int] | None
Signature = tuple[Stamp, ...]


@dataclass(frozen=True)
class Snapshot:
    """Rows of the complete epochs; how many are planned; which are left out as another run's, or for what problem.

    Epochs follow each other in a run, so those behind one that is not complete are of an earlier run.
    """

    rows: list[Row]
    planned: int
    earlier: list[int]
    problems: list[str]


@dataclass
class EpochReader:
    """Reads an epoch's row once, and again only when its files have changed. `labels`: scores with true labels too."""

    labels: bool
    _known: dict[int, tuple[Signature, Row]] = field(default_factory=dict)
    _truth: tuple[str, NDArray[np.int64]] | None = None
    _lock: tuple[Stamp, Origin, int | None] | None = None

    def snapshot(self) -> Snapshot:
        """What is there now; UserError for `labels` without true labels, or without a data set."""
        lock, first_earlier = self._read_lock()
        images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
        targets_N = self._targets(images.ids) if self.labels else None
        rows, problems, complete, expected = list[Row](), list[str](), _complete(), 1
        for epoch in complete:
            if epoch != expected or epoch == first_earlier:
                break
            try:
                row = self._row(epoch, images.ids, targets_N, lock)
                if row is None:
                    break
                rows.append(row)
            except (ArtifactError, OSError) as error:
                if not _is_complete(epoch):
                    break
                problems.append(f"epoch {epoch} left out: {error}")
            expected += 1
        return Snapshot(rows, len(scheduled_epochs()), [e for e in complete if e >= expected], problems)

    def _row(self, epoch: int, ids: str, targets_N: NDArray[np.int64] | None, lock: Origin) -> Row | None:
        """None while its clusters are of one run and its losses of another."""
        before = _signature(epoch)
        known = self._known.get(epoch)
        if known is not None and known[0] == before:
            return known[1]
        recorded = {_is_recorded(path, lock) for path in (layout.clusters(epoch), layout.train_summary(epoch))}
        if recorded == {True, False}:
            return None
        row = epoch_row(epoch, ids, targets_N)
        if _signature(epoch) == before:  # else read again next time
            self._known[epoch] = before, row
        return row

    def _read_lock(self) -> tuple[Origin, int | None]:
        """dvc.lock, and the first epoch that it says is of an earlier run; parsed only when it has changed."""
        stamp = _stamp(LOCK)
        if self._lock is None or self._lock[0] != stamp:
            with origin(None) as lock:
                self._lock = stamp, lock, first_of_earlier_run(lock, _complete())
        return self._lock[1:]

    def _targets(self, ids: str) -> NDArray[np.int64] | None:
        if self._truth is None or self._truth[0] != ids:
            truth = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare", ids=ids)
            if not truth.attributes["labelled"]:
                raise UserError("--labels: the data set has no true labels; leave it out")
            self._truth = ids, truth.read("targets")
            self._known.clear()
        return self._truth[1]


def first_of_earlier_run(lock: Origin, epochs: Sequence[int]) -> int | None:
    """The first epoch whose training, by dvc.lock, read other data than dvc.lock says lie there now; None for none."""
    for epoch in epochs:
        trained = lock.locked(layout.checkpoint(epoch))
        for path, md5 in trained.parents.items() if trained else ():
            made = lock.locked(Path(path))
            if made is not None and made.md5 != md5:
                return epoch
    return None


def read_once(reader: EpochReader) -> Snapshot:
    """A snapshot; if something does not hold together, a second look a moment later tells damage from change."""
    found = reader.snapshot()
    if found.problems:
        time.sleep(RETRY_SECONDS)
        found = reader.snapshot()
    return found


def print_snapshot(found: Snapshot, *, labels: bool) -> None:
    """The table, how far the run is, and what was left out."""
    if found.rows:
        print_table(epoch_cells(found.rows, columns(labels)))
    for line in remarks(found):
        print(line)


def remarks(found: Snapshot) -> list[str]:
    """How many of the planned epochs are complete, and what was left out."""
    done = [int(row["epoch"] or 0) for row in found.rows]
    earlier = [f"of an earlier run, left out: {in_ranges(found.earlier)}"] if found.earlier else []
    if not done:
        return ["no epoch is complete yet", *earlier, *found.problems]
    missing = [epoch for epoch in range(1, found.planned + 1) if epoch not in done]
    todo = f"; not complete: {in_ranges(missing)}" if missing else ""
    return [f"{len(done)} of {max(found.planned, len(done))} epochs{todo}", *earlier, *found.problems]


def columns(labels: bool) -> tuple[str, ...]:
    """Those of the table; without `labels` none that needs the true ones."""
    return (*COLUMNS, *LABEL_COLUMNS) if labels else COLUMNS


def watch(reader: EpochReader, *, every: float) -> None:
    """The table, drawn anew as epochs complete, until Ctrl-C; into a file or pipe a line for each epoch as it does."""
    try:
        if sys.stdout.isatty():
            _draw(reader, every)
        else:
            for line in new_lines(_snapshots(reader, every), labels=reader.labels):
                print(line, flush=True)
    except KeyboardInterrupt:
        return


def new_lines(snapshots: Iterator[Snapshot], *, labels: bool) -> Iterator[str]:
    """A header, then each row when it appears or has changed."""
    shown: dict[float | int | None, Row] = {}
    for found in snapshots:
        fresh = [row for row in found.rows if shown.get(row["epoch"]) != row]
        shown |= {row["epoch"]: row for row in fresh}
        if fresh:
            lines = plain_text(_fixed(fresh, labels)).splitlines()
            yield from lines if len(shown) == len(fresh) else lines[1:]


def _fixed(rows: Sequence[Row], labels: bool) -> Cells:
    """All columns, none narrower than its numbers can be, so that lines printed at different times align."""
    names, found = columns(labels), epoch_cells(rows, columns(labels))
    texts = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    lines = [list(names), *([text.get(name, "-") for name in names] for text in texts)]
    header, *body = [
        [cell.rjust(max(len(name), NUMBER_WIDTH)) for name, cell in zip(names, line, strict=True)] for line in lines
    ]
    return Cells(header, body)


def _snapshots(reader: EpochReader, every: float) -> Iterator[Snapshot]:
    while True:
        try:
            yield reader.snapshot()
        except ArtifactError as error:  # the data set is being made
            yield Snapshot([], 0, [], [str(error)])
        time.sleep(every)


def _draw(reader: EpochReader, every: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for found in _snapshots(reader, every):
            live.update(_picture(found, reader.labels, console.height), refresh=True)


def _picture(found: Snapshot, labels: bool, height: int) -> "Text":
    """The table, its last epochs if the terminal is not as high, and the remarks below."""
    from rich.text import Text

    notes = [*remarks(found), "Ctrl-C ends this"]
    hidden = max(0, len(found.rows) - max(3, height - len(notes) - 3))
    above = [f"... {hidden} epochs before"] if hidden else []
    table = plain_text(epoch_cells(found.rows[hidden:], columns(labels))).splitlines() if found.rows else []
    return Text("\n".join([*above, *table, *notes]), no_wrap=True, overflow="ellipsis")


def _complete() -> list[int]:
    """Epochs whose training has ended, ascending."""
    numbers = sorted(int(folder.name) for folder in layout.HISTORY.glob("*") if folder.name.isdecimal())
    return [epoch for epoch in numbers if epoch > 0 and _is_complete(epoch)]


def _is_recorded(path: Path, lock: Origin) -> bool:
    """Whether dvc.lock records what lies there; it does from the end of an epoch on."""
    found = lock.locked(path)
    return found is not None and found.md5 == dvc_md5(path)


def _is_complete(epoch: int) -> bool:
    return layout.train_summary(epoch).exists() and (layout.clusters(epoch) / "zarr.json").exists()


def _signature(epoch: int) -> Signature:
    """Tells the files of an epoch's row from others that later lie in their place."""
    paths = [layout.train_summary(epoch), *(layout.clusters(e) / "zarr.json" for e in (epoch, epoch - 1))]
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
