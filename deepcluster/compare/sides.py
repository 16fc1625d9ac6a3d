"""What is compared: an epoch of the workspace, or of a git revision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deepcluster import artifacts, layout
from deepcluster.errors import UserError
from deepcluster.origins import Origin, chosen_epoch, origin


@dataclass(frozen=True)
class Side:
    """One side, opened: its clusters, and where the rest of it lies."""

    source: Origin
    epoch: int
    clusters: artifacts.Store

    @property
    def name(self) -> str:
        """`epoch 7`, or `epoch 7 at HEAD`."""
        return f"epoch {self.epoch}" + ("" if self.source.revision is None else f" at {self.source.revision}")


def parse_side(text: str, argument: str) -> tuple[str | None, int | None]:
    """(revision, epoch) of `7`, `REVISION:7` or `REVISION`; None for the workspace and for the last epoch."""
    if text.isdecimal():
        return None, int(text)
    revision, colon, epoch = text.rpartition(":")
    if not colon and text:
        return text, None
    if not revision or not epoch.isdecimal():
        raise UserError(f"{argument}: must be EPOCH, REVISION or REVISION:EPOCH, as 7, main~1, main~1:7; got {text!r}")
    return revision, int(epoch)


@contextmanager
def opened(text: str, argument: str) -> Iterator[Side]:
    """The side that the text names; UserError if there is none such."""
    revision, wanted = parse_side(text, argument)
    if wanted == 0:
        raise UserError(
            f"{argument}: must be an epoch >= 1 (epoch 0 is the untrained backbone, with no clusters); got 0"
        )
    with origin(revision) as source:
        epoch = chosen_epoch(source, layout.clusters, wanted, option=argument)
        made_by = f"cluster@{epoch}"
        yield Side(source, epoch, source.store(layout.clusters(epoch), "clusters", made_by=made_by, epoch=epoch))


def refuse_other_images(a: Side, b: Side) -> None:
    """UserError unless both cluster the same images in the same order."""
    if a.clusters.ids != b.clusters.ids:
        counts = f"{a.clusters.samples:,} and {b.clusters.samples:,}"
        raise UserError(f"{a.name} and {b.name} are of different images, or in another order ({counts} images)")
