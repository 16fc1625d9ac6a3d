"""Several processes that do one stage's work together: who is who, what they exchange, and how long they wait.

They are started by torch's elastic launcher, by `torchrun` or by a stage itself (`deepcluster.launching`), and found in
the environment (RANK, WORLD_SIZE, LOCAL_RANK). How many there are is a matter of execution: no artifact depends on it
but for rounding. NCCL carries what lies on GPUs, gloo everything else. Nothing is pickled. Without several processes
torch is not imported here.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepcluster import environment
from deepcluster.errors import DistributedError, LostProcessError, UserError

if TYPE_CHECKING:
    import torch

TIMEOUT = 1800.0  # seconds, as gloo's own
_POLL = 0.02
FOLLOWS = 3  # exit code of a process that stops only because another one does
NO_ANSWER = "does not answer within"
_FIRST_ERROR = "deepcluster/error"
# How gloo, NCCL and the store say that another process is gone, or does not answer.
_LOST = re.compile(r"gloo|nccl|TCPStore|DistStore|closed by peer|timed? ?out|reset by peer|broken pipe", re.IGNORECASE)
_SLOW = re.compile(r"timed out waiting|timeout", re.IGNORECASE)

T = TypeVar("T", bound=np.generic)


def blocks(units: int, processes: int) -> list[range]:
    """The units of each process: contiguous, every unit once, numbers that differ by one at most, the larger first."""
    least, more = divmod(units, processes)
    starts = [rank * least + min(rank, more) for rank in range(processes + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


@dataclass(frozen=True)
class Process:
    """One of `count` processes; by default the only one, which exchanges nothing and waits for nobody.

    Every process must make the same calls in the same order. DistributedError if they do not agree, LostProcessError
    if one has ended or does not answer within `timeout`.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """The one that prints, publishes and keeps progress."""
        return self.rank == 0

    def label(self, stage: str) -> str:
        """How lines of progress call the stage."""
        return stage if self.count == 1 else f"{stage} (process {self.rank} of {self.count})"

    def share(self, units: int) -> range:
        """Its block of so many units; empty if there are fewer than processes."""
        return blocks(units, self.count)[self.rank]

    def rows(self, count: int, step: int) -> slice:
        """Its rows: a block of whole units of `step` rows, the last of which may be short."""
        mine = self.share(-(-count // step))
        return slice(min(count, mine.start * step), min(count, mine.stop * step))

    def total(self, values: NDArray[T]) -> NDArray[T]:
        """The sum over all processes of an array that has the same shape in each; the same bytes in all. In place."""
        if self.count == 1:
            return values
        import torch

        summed = torch.from_numpy(np.asarray(values, order="C"))
        with _together():
            torch.distributed.all_reduce(summed)
        return summed.numpy()

    def shared(self, values: NDArray[T] | None) -> NDArray[T]:
        """An array of the first process, in every process; the others' values do not matter."""
        if self.count == 1:
            assert values is not None
            return values
        import torch

        told = None if values is None else (values.shape, values.dtype.str)
        shape, dtype = self.from_first(told)
        mine = values if self.first and values is not None else np.empty(shape, dtype)
        sent = torch.from_numpy(np.asarray(mine, order="C"))
        with _together():
            torch.distributed.broadcast(sent, 0)
        return sent.numpy()

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        return float(max(self.gathered(value)))

    def gathered(self, value: Any) -> list[Any]:
        """What each process says, in their order; anything that JSON can hold."""
        if self.count == 1:
            return [value]
        import torch

        written = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with _together():
            torch.distributed.all_gather(sizes, torch.tensor([len(written)]))
            longest = max(int(size) for size in sizes)
            found = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
            torch.distributed.all_gather(found, torch.tensor(np.resize(written, longest)))
        return [json.loads(each.numpy()[: int(size)].tobytes()) for each, size in zip(found, sizes, strict=True)]

    def from_first(self, value: Any) -> Any:
        """What the first process says; the others' values do not matter. Anything that JSON can hold."""
        return self.gathered(value if self.first else None)[0]

    def collected(self, rows: NDArray[T]) -> NDArray[T] | None:
        """All rows in the order of the processes, at the first one; None at the others."""
        if self.count == 1:
            return rows
        import torch

        counts = self.gathered(len(rows))
        own = torch.zeros((max(counts), *rows.shape[1:]), dtype=torch.from_numpy(rows[:0]).dtype)
        own[: len(rows)] = torch.from_numpy(np.ascontiguousarray(rows))
        parts = [torch.empty_like(own) for _ in counts] if self.first else None
        with _together():
            torch.distributed.gather(own, parts)
        if parts is None:
            return None
        return np.concatenate([part.numpy()[:count] for part, count in zip(parts, counts, strict=True)])

    def wait(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Until all processes wait; `meanwhile` is called again and again, and may raise."""
        if self.count == 1:
            return
        import torch

        with _together():
            waiting = torch.distributed.all_reduce(torch.zeros(1), async_op=True)
            while not waiting.is_completed():
                time.sleep(_POLL)
                meanwhile()
            waiting.wait()

    def agree(self, stage: str, told: Mapping[str, str]) -> None:
        """DistributedError, in every process, unless all of them tell the same; it names what differs, and where."""
        if self.count == 1:
            return
        everywhere = self.gathered({"host": socket.gethostname(), **told})
        for name in told:
            if others := [each for each in everywhere if each.get(name) != everywhere[0][name]]:
                hosts = "" if len({each["host"] for each in everywhere}) == 1 else f" (on {others[0]['host']})"
                raise DistributedError(
                    f"{stage}: process {everywhere.index(others[0])} of {self.count}{hosts} was given other {name} "
                    "than process 0; give all the same, then start them again"
                )


ALONE = Process()


def world_size() -> int:
    """How many processes do the work of this one's stage; 1 unless a launcher says otherwise."""
    return _number("WORLD_SIZE", 1) if started_by_a_launcher() else 1


def rank() -> int:
    """This process's number, from 0."""
    return _number("RANK", 0) if started_by_a_launcher() else 0


def processes_here() -> int:
    """How many of them share this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if started_by_a_launcher() else 1


def started_by_a_launcher() -> bool:
    """Whether torch's launcher started this process. RANK alone may be a number that a cluster gives to a machine."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def timeout() -> float:
    """DEEPCLUSTER_TIMEOUT, seconds over 0, by default 1800; UserError if it is something else."""
    return environment.seconds("DEEPCLUSTER_TIMEOUT", TIMEOUT, "a number of seconds over 0")


def take_own_gpu() -> None:
    """Of the GPUs that are visible leave this process the one of its number on this machine, for torch and faiss alike.

    To be called before either has looked. UserError where there are fewer GPUs than processes.
    """
    if world_size() == 1 or not uses_gpus():
        return
    visible, place = visible_gpus(), _number("LOCAL_RANK", 0)
    if place >= len(visible):
        raise UserError(
            f"{len(visible)} GPUs for process {place} of this machine, counted from 0; start no more processes "
            "than there are GPUs, or set DEEPCLUSTER_DEVICE=cpu"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[place]


def uses_gpus() -> bool:
    """Whether the work is done on GPUs: where there is a driver, unless DEEPCLUSTER_DEVICE names another device."""
    device = os.environ.get("DEEPCLUSTER_DEVICE", "")
    if device and not device.startswith("cuda"):
        return False
    return os.path.exists("/proc/driver/nvidia/version")


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def joined() -> Iterator[Process]:
    """This process among those that a launcher started; ALONE if it started one, or there is none.

    Whatever is raised inside leaves the block in the first process that meets an error, any process's; the others,
    which meet only what follows from that, exit with FOLLOWS without a word.
    """
    if world_size() == 1:
        yield ALONE
        return
    take_own_gpu()
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    with _together():
        store, own, count = next(rendezvous("env://", timeout=timedelta(seconds=timeout())))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if uses_gpus() and torch_sees_gpus() else "gloo",
            store=store,
            rank=own,
            world_size=count,
            timeout=timedelta(seconds=timeout()),
        )
    try:
        with _together():
            yield Process(own, count)
    except Exception as error:
        if not _is_first(store, own):
            raise SystemExit(FOLLOWS) from error
        if isinstance(error, UserError) and not isinstance(error, DistributedError) and own:
            error.args = (f"process {own} of {count} on {socket.gethostname()}: {error}",)
        raise
    dist.destroy_process_group()


def torch_sees_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


def sum_of_tensors(values: "torch.Tensor") -> "torch.Tensor":
    """In place, over all processes, on the values' own device."""
    import torch

    torch.distributed.all_reduce(values)
    return values


@contextmanager
def _together() -> Iterator[None]:
    """What torch says of a process that is gone becomes a LostProcessError."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:  # gloo raises nothing more precise
        if not _LOST.search(str(error)):
            raise
        if _SLOW.search(str(error)):
            why = f"{NO_ANSWER} {timeout():g} s (DEEPCLUSTER_TIMEOUT)"
        else:
            why = "has ended or cannot be reached"
        raise LostProcessError(
            f"another process of this stage {why}; nothing was published; start the stage again"
        ) from error


def _is_first(store: Any, own: int) -> bool:
    """Whether no other process has met an error before. Where the store went with process 0, process 1 speaks."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        found: bytes = store.compare_set(f"{_FIRST_ERROR}/{attempt}", "", str(own))
    except RuntimeError:
        return own <= 1
    return found == str(own).encode()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise UserError(f"{name}: must be a number; got {text!r}")
    return int(text)
