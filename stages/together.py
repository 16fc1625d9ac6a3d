"""Stages whose work several processes share: started where there are several GPUs, and sure that all do the same."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepcluster import launching
from deepcluster.distributed import Process, joined
from deepcluster.errors import DistributedError
from deepcluster.params import Params, at_epoch, load_params
from stages.common import refuse_epoch, stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import StoreWriter

Alone = Callable[[Params], str | None]
"""The setting that leaves the work to one process, such as "cluster.method pic"; None if there is none."""


def started(name: str, epoch: int, alone: Alone = lambda _: None) -> bool:
    """Whether the stage has been done, by processes that this one has started and waited for."""
    refuse_epoch(epoch)
    processes = launching.wanted()
    if processes == 1:
        return False
    if setting := alone(at_epoch(load_params(), epoch)):
        print(f"{name}@{epoch}: {setting} works in one process", file=sys.stderr)
        return False
    launching.launch(name, epoch, processes)
    return True


@contextmanager
def together(name: str, epoch: int, alone: Alone = lambda _: None) -> Iterator[tuple[Params, Process]]:
    """`common.stage` for one of the processes that share its work, or for the only one.

    DistributedError if they have other params or code, or if a setting leaves the work to one process.
    """
    with joined() as process, stage(name, epoch, process) as params:
        label = f"{name}@{epoch}"
        if process.count > 1 and (setting := alone(params)):
            raise DistributedError(f"{label}: {setting} works in one process; start the stage without torchrun")
        process.agree(label, {} if process.count == 1 else _told(label, params))
        yield params, process


def refuse_idle(process: Process, label: str, parts: int, what: str) -> None:
    """DistributedError for more processes than there are parts of the work, of which some would have nothing to do.

    Where this program has started them they are as many as all stages shall have, so those wait, and it is said; also
    where DEEPCLUSTER_ALLOW_IDLE is 1.
    """
    if process.count <= max(1, parts):
        return
    said = f"{label}: {process.count} processes for {parts} {what}{'s' * (parts != 1)}"
    idle = process.count - parts
    if not launching.launched() and os.environ.get("DEEPCLUSTER_ALLOW_IDLE") != "1":
        remedy = f"start at most {parts}, or let them wait: DEEPCLUSTER_ALLOW_IDLE=1"
        raise DistributedError(f"{said}, so {idle} would have nothing to do; {remedy}")
    if process.first:
        print(f"{said}: {idle} of them wait", file=sys.stderr)


def write_shards(
    process: Process,
    store: "StoreWriter | None",
    name: str,
    shape: tuple[int, int],
    dimensions: tuple[str, ...],
    compute: "Callable[[slice], Iterable[NDArray[np.float32]]]",
    *,
    left: Sequence[slice] | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """An array of float32 [N, D] whose shards the processes share out in contiguous blocks; no two write to one file.

    `store` is the first process's, who has begun it; the others have None. `compute` gives the rows that are asked for,
    in blocks. `left`, of the first process: rows of each shard that is to be written; None: all. When every process has
    written, and sent to the disk, what is its own, all go on; until then they call `meanwhile`.
    """
    import numpy as np

    from deepcluster import artifacts

    target, told = None, None
    if store is not None:
        target = store.begin(name, shape, np.float32, dimensions)
        told = [(rows.start, rows.stop) for rows in left or target.shards]
    if process.count > 1:
        folder, told = process.from_first(
            (str(target.folder), told) if isinstance(target, artifacts.PlainRows) else None
        )
        target = artifacts.plain_rows(Path(folder))
    assert target is not None
    assert told is not None
    for rows in _merged([told[number] for number in process.share(len(told))]):
        artifacts.write_rows(target, compute(rows), rows)
        if process.count > 1:
            assert isinstance(target, artifacts.PlainRows)
            target.flush(rows)
    process.wait(meanwhile)


def _merged(ranges: "Sequence[tuple[int, int]]") -> Iterator[slice]:
    """Ranges that follow one another as one."""
    start = stop = -1
    for begin, end in ranges:
        if begin == stop:
            stop = end
            continue
        if start < stop:
            yield slice(start, stop)
        start, stop = begin, end
    if start < stop:
        yield slice(start, stop)


def _told(label: str, params: Params) -> dict[str, str]:
    """What every process must have alike; of the settings not where data lie, nor what only the report reads."""
    from stages.resuming import code

    settings = params.model_dump(mode="json", exclude={"data": {"root"}, "report": True})
    text = json.dumps(settings, sort_keys=True)
    return {"stage": label, "params.yaml": hashlib.sha256(text.encode()).hexdigest(), "code": code()}
