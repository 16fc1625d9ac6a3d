"""A run at 512 ranks, played through rank by rank and send by send, beside what the cost model says. No GPU.

    python -m benchmarks.simulate

Ranks take contiguous blocks of whole shards. Sums go round a ring, or up and down a binary tree, between neighbours
whose links are as fast as NVLink in a host and as InfiniBand between two. A rank's clock advances with its own rows and
with the messages that it waits for; bytes are counted where they are sent.
Shapes: P ranks, V values of a vector that is added up.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks import cost_cases, cost_model
from benchmarks.cost_model import Machine, Work
from benchmarks.results import table
from deepcluster.distributed import blocks

RANKS = 512

Clocks = NDArray[np.float64]


@dataclass(frozen=True)
class Reduced:
    """After a reduction: each rank's clock, the bytes that it sent, and the sum that it holds, if there were values."""

    clocks_P: Clocks
    sent_P: NDArray[np.float64]
    values_PV: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Played:
    """Of one epoch's schedule: rows of every rank; when the last rank has finished each part; bytes sent by each."""

    rows_P: NDArray[np.int64]
    seconds: dict[str, float]
    sent_P: dict[str, NDArray[np.float64]]


def rows_of_ranks(images: int, shard_rows: int, ranks: int) -> NDArray[np.int64]:
    """Rows that each rank has; the last shard may be short."""
    shards = -(-images // shard_rows)
    edges = [(mine.start * shard_rows, mine.stop * shard_rows) for mine in blocks(shards, ranks)]
    return np.array([min(stop, images) - min(start, images) for start, stop in edges], np.int64)


def ring(clocks_P: Clocks, size: float, machine: Machine, values_PV: NDArray[np.float64] | None = None) -> Reduced:
    """Sums scattered, then gathered, in 2 (P - 1) sends to the next rank; `values_PV`: what to add up, P divides V.

    A link carries one part at a time, and a rank sends on a part when it has it.
    """
    ranks = len(clocks_P)
    clocks_P, sent_P, free_P = clocks_P.copy(), np.zeros(ranks), np.zeros(ranks)
    busy_P = size / ranks / _links(machine, ranks)
    held_PPV = None if values_PV is None else values_PV.reshape(ranks, ranks, -1).copy()
    for step in range(2 * (ranks - 1)):
        free_P = np.maximum(clocks_P, free_P) + busy_P
        clocks_P = np.maximum(clocks_P, np.roll(free_P + machine.latency, 1))
        sent_P += size / ranks
        if held_PPV is not None:
            _pass_on(held_PPV, step)
    return Reduced(clocks_P, sent_P, None if held_PPV is None else held_PPV.reshape(ranks, -1))


def tree(clocks_P: Clocks, size: float, machine: Machine, values_PV: NDArray[np.float64] | None = None) -> Reduced:
    """Everything to the lower of two partners, level by level, and back down: partner distances 1, 2, 4, ..."""
    ranks = len(clocks_P)
    clocks_P, sent_P = clocks_P.copy(), np.zeros(ranks)
    held_PV = None if values_PV is None else values_PV.copy()
    pairs = [
        (low, low + distance)
        for distance in (2**level for level in range((ranks - 1).bit_length()))
        for low in range(0, ranks - distance, 2 * distance)
    ]
    up, down = [(high, low, True) for low, high in pairs], [(low, high, False) for low, high in reversed(pairs)]
    for sender, receiver, adds in up + down:
        clocks_P[sender] += size / _link(machine, sender, receiver)  # its link is busy so long
        clocks_P[receiver] = max(clocks_P[receiver], clocks_P[sender] + machine.latency)
        sent_P[sender] += size
        if held_PV is not None:
            held_PV[receiver] = held_PV[receiver] + held_PV[sender] if adds else held_PV[sender]
    return Reduced(clocks_P, sent_P, held_PV)


def play(work: Work, machine: Machine) -> Played:
    """Extract, pca and cluster of one epoch, each started by all ranks at once, as stages are."""
    rows_P = rows_of_ranks(work.images, work.shard_rows, machine.devices)
    features, reduced = cost_model.covariance_bytes(work.features), cost_model.kmeans_bytes(work)
    extracted_P = rows_P * work.forward / machine.forward
    width = work.features
    counted_P = rows_P * cost_model.covariance_flops(width, machine) / machine.products
    added = ring(counted_P, features, machine)
    axes = cost_model.axes_flops(work) / machine.axes
    projected_P = added.clocks_P + axes + rows_P * 2.0 * width * work.components / machine.products
    clocks_P, sent_P = np.zeros(machine.devices), np.zeros(machine.devices)
    once_P = rows_P * 2.0 * work.clusters * work.components / machine.clustering
    for _ in range(work.iterations):
        found = ring(clocks_P + once_P, reduced, machine)
        clocks_P, sent_P = found.clocks_P, sent_P + found.sent_P
    ends = {"extract": extracted_P, "pca": projected_P, "cluster": clocks_P + once_P}
    none_P = np.zeros(machine.devices)
    sent = {"extract": none_P, "pca": added.sent_P, "cluster": sent_P}
    return Played(rows_P, {name: float(end.max()) for name, end in ends.items()}, sent)


def model_seconds(work: Work, machine: Machine) -> dict[str, float]:
    """The same parts by the cost model: compute, and the network where ranks wait for each other."""
    costs = [cost_model.extract(work, machine), cost_model.pca(work, machine), cost_model.cluster(work, machine)]
    return {cost.stage: cost.compute + cost.network for cost in costs}


def balance_table(ranks: int = RANKS) -> str:
    """Rows of the busiest rank over the mean, seconds and bytes sent: played, and by the model."""
    header = ("epoch of", "shards", "idle ranks", "busiest / mean", "by the model", *_both("extract"), *_both("pca"))
    header += (*_both("cluster"), "sent by a rank", "by the model")
    rows = [_balance(data, network, ranks) for network in cost_cases.NETWORKS for data in cost_cases.DATA_SETS]
    return table(header, rows)


def reduce_table(ranks: int = RANKS) -> str:
    """The two sums of an epoch, by ring and by tree: seconds, and bytes that the busiest rank sends."""
    header = ("sum of", "size", "ring", "by the model", "tree", "by the model", "sent in the ring", "sent in the tree")
    machine = replace(cost_cases.H100, devices=ranks)
    sums = [
        (
            f"covariance, D = {network.features:,}",
            float(cost_model.SUM_BYTES * network.features * (network.features + 1)),
        )
        for network in cost_cases.NETWORKS
    ]
    sums += [
        (f"k-means, k = {data.clusters:,}, d = {cost_cases.COMPONENTS}",
         cost_model.kmeans_bytes(cost_cases.work(data, cost_cases.ALEXNET, ranks)))
        for data in cost_cases.DATA_SETS
    ]  # fmt: skip
    return table(header, [_sums(name, size, machine) for name, size in sums])


def _balance(data: cost_cases.DataSet, network: cost_cases.Network, ranks: int) -> tuple[str, ...]:
    asked, machine = cost_cases.work(data, network, ranks), replace(cost_cases.H100, devices=ranks)
    played, told = play(asked, machine), model_seconds(asked, machine)
    both = [seconds for name in played.seconds for seconds in (played.seconds[name], told[name])]
    sent = sum(float(sent_P.max()) for sent_P in played.sent_P.values())
    modelled = cost_model.pca(asked, machine).sent + cost_model.cluster(asked, machine).sent
    return (
        f"{network.name}, {data.name}",
        f"{-(-asked.images // asked.shard_rows):,}",
        str(int((played.rows_P == 0).sum())),
        f"{played.rows_P.max() / played.rows_P.mean():.3f}",
        f"{cost_model.imbalance(asked, machine):.3f}",
        *map(cost_cases.duration, both),
        cost_cases.bytes_(sent),
        cost_cases.bytes_(modelled),
    )


def _sums(name: str, size: float, machine: Machine) -> tuple[str, ...]:
    start_P = np.zeros(machine.devices)
    around, up = ring(start_P, size, machine), tree(start_P, size, machine)
    return (
        name,
        cost_cases.bytes_(size),
        cost_cases.duration(float(around.clocks_P.max())),
        cost_cases.duration(cost_model.ring_seconds(size, machine)),
        cost_cases.duration(float(up.clocks_P.max())),
        cost_cases.duration(cost_model.tree_seconds(size, machine)),
        cost_cases.bytes_(float(around.sent_P.max())),
        cost_cases.bytes_(float(up.sent_P.max())),
    )


def _pass_on(held_PPV: NDArray[np.float64], step: int) -> None:
    """Every rank sends a part to the next: it is added there in the first P - 1 steps, then takes the place of the own.

    Rank r begins with part r; when all are scattered it has the whole sum of part r + 1.
    """
    ranks = len(held_PPV)
    senders = np.arange(ranks)
    receivers = (senders + 1) % ranks
    adds = step < ranks - 1
    parts = (senders - step if adds else senders + 1 - (step - (ranks - 1))) % ranks
    moving = held_PPV[senders, parts].copy()
    held_PPV[receivers, parts] = held_PPV[receivers, parts] + moving if adds else moving


def _links(machine: Machine, ranks: int) -> NDArray[np.float64]:
    """The rate from each rank to the next in the ring."""
    return np.array([_link(machine, rank, (rank + 1) % ranks) for rank in range(ranks)])


def _link(machine: Machine, sender: int, receiver: int) -> float:
    same = sender // machine.per_host == receiver // machine.per_host
    return machine.inside if same else machine.between


def _both(stage: str) -> tuple[str, str]:
    return stage, "by the model"


def main(words: Sequence[str] | None = None) -> int:
    """Prints both tables; the exit code."""
    if words:
        print("error: python -m benchmarks.simulate takes no arguments", file=sys.stderr)
        return 2
    print(balance_table())
    print()
    print(reduce_table())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
