"""What an epoch costs in compute, memory, disk and network, from its sizes and a machine's rates: plain arithmetic.

    python -m benchmarks.cost_model              the predictions of docs/scale-cost.md
    python -m benchmarks.cost_model --measure    the model against this machine at four sizes; writes MEASURED

A stage takes the longest of compute, device memory and disk, which run beside each other (rows are read ahead and
written behind), and then the network, which waits for them; in training the network too runs beside the rest.
Shapes: N images, D features, d components, k clusters, P devices, B images of a global batch.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Stage = Literal["extract", "pca", "cluster", "train", "publish"]
STAGES: tuple[Stage, ...] = ("extract", "pca", "cluster", "train", "publish")

CHUNK_BYTES, SHARD_BYTES = 1 << 20, 128 << 20  # of deepcluster.artifacts
PANEL = 256  # rows of the covariance that a product fills on the CPU (deepcluster.reduction.moments)
SUM_BYTES = 8  # of a value of mean, covariance, sums and counts while ranks add them up


@dataclass(frozen=True)
class Work:
    """What one epoch is asked to do.

    pixels: bytes of an image as stored. forward: FLOPs of the backbone for an image. weights: of the backbone.
    seen: images of an epoch of training, as a multiple of N. batch: B. feature_bytes: of a value of a feature dump.
    points_per_centroid: rows that k-means trains on, times k; None: all.
    split_head: each device has its own columns of the head and sees the features of the whole batch, in the place of
    the whole head and the sum of its gradient.
    balanced: rows are dealt out evenly, not by whole shards.
    """

    images: int
    pixels: float
    features: int
    components: int
    clusters: int
    forward: float
    weights: int
    iterations: int = 20
    seen: float = 1.0
    batch: int = 256
    feature_bytes: int = 4
    points_per_centroid: int | None = None
    split_head: bool = False
    balanced: bool = False

    @property
    def trained_on(self) -> int:
        """Rows that k-means iterates over."""
        wanted = self.images if self.points_per_centroid is None else self.points_per_centroid * self.clusters
        return min(self.images, wanted)

    @property
    def shard_rows(self) -> int:
        """Rows of a whole shard of a feature dump."""
        return shard_rows(self.features * self.feature_bytes)


@dataclass(frozen=True)
class Machine:
    """Rates of one device or host, a second. A host has `per_host` devices.

    forward, training: FLOPs of the network. products, clustering: FLOPs of PCA's and of k-means' matrix products.
    axes: FLOPs of the eigendecomposition, which one device (or core) does. memory: bytes of device memory.
    inside, between: bytes that a device sends to the next, in its host or in another one; latency: seconds a send.
    read, write: bytes of a host from and to the store; store_read, store_write: what it gives all hosts together.
    hashing: bytes that DVC reads and hashes on the one host that it runs on; hash_by_rank: each host hashes its own.
    panels: products of the covariance fill one triangle only, as on the CPU.
    """

    devices: int
    per_host: int
    forward: float
    training: float
    products: float
    clustering: float
    axes: float
    memory: float = math.inf
    inside: float = math.inf
    between: float = math.inf
    latency: float = 0.0
    read: float = math.inf
    write: float = math.inf
    store_read: float = math.inf
    store_write: float = math.inf
    hashing: float = math.inf
    hash_by_rank: bool = False
    panels: bool = False

    @property
    def hosts(self) -> int:
        return -(-self.devices // self.per_host)

    @property
    def link(self) -> float:
        """Of the slowest link of a ring over all devices."""
        return self.inside if self.hosts == 1 else self.between

    @property
    def seconds_a_byte(self) -> float:
        """The mean over the links of that ring: of each host's one leads to the next host."""
        away = 0.0 if self.hosts == 1 else self.hosts / self.devices
        return away / self.between + (1 - away) / self.inside


@dataclass(frozen=True)
class Cost:
    """One stage: seconds of each resource, bytes from and to the store, bytes that each device sends."""

    stage: Stage
    compute: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    network: float = 0.0
    read: float = 0.0
    written: float = 0.0
    sent: float = 0.0

    @property
    def seconds(self) -> float:
        beside = max(self.compute, self.memory, self.disk)
        return max(beside, self.network) if self.stage == "train" else beside + self.network

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        taken = {name: getattr(self, name) for name in ("compute", "memory", "disk", "network")}
        return max(taken, key=lambda name: taken[name])


def epoch(work: Work, machine: Machine) -> list[Cost]:
    """The costs of the five parts of an epoch, in order."""
    return [stage(work, machine) for stage in (extract, pca, cluster, train, publish)]


def extract(work: Work, machine: Machine) -> Cost:
    """A forward pass over every image; features to the store."""
    read, written = work.images * work.pixels, feature_bytes(work)
    slowest = imbalance(work, machine)
    compute = slowest * work.images * work.forward / (machine.devices * machine.forward)
    return Cost("extract", compute=compute, disk=slowest * disk(machine, read, written), read=read, written=written)


def pca(work: Work, machine: Machine) -> Cost:
    """Features read twice: once for mean and covariance, which all ranks add up, once to project."""
    count, width = work.images, work.features
    read, written = 2 * feature_bytes(work), 4.0 * count * work.components
    slowest = imbalance(work, machine)
    flops = count * covariance_flops(width, machine) + 2.0 * count * width * work.components
    reduced = covariance_bytes(width)
    return Cost(
        "pca",
        compute=slowest * flops / (machine.devices * machine.products) + axes_flops(work) / machine.axes,
        memory=slowest * 3 * 4.0 * count * width / (machine.devices * machine.memory),  # arrive, are centred, projected
        disk=slowest * disk(machine, read, written),
        network=ring_seconds(reduced, machine),
        read=read,
        written=written,
        sent=ring_bytes(reduced, machine.devices),
    )


def cluster(work: Work, machine: Machine) -> Cost:
    """Iterations over the rows that each rank holds, sums and counts added up after each; then all rows assigned."""
    passes = float(work.iterations * work.trained_on + work.images)
    read, written = 4.0 * work.images * work.components, 8.0 * work.images
    slowest, reduced = imbalance(work, machine), kmeans_bytes(work)
    per_device = slowest * passes / machine.devices
    return Cost(
        "cluster",
        compute=per_device * 2 * work.clusters * work.components / machine.clustering,
        memory=per_device * (4 * work.components + 8 * work.clusters) / machine.memory,  # distances written and read
        disk=disk(machine, read, written),
        network=work.iterations * ring_seconds(reduced, machine),
        read=read,
        written=written,
        sent=work.iterations * ring_bytes(reduced, machine.devices),
    )


def train(work: Work, machine: Machine) -> Cost:
    """Forward, and backward at twice its price, of the backbone and the head; gradients added up every step."""
    images = work.seen * work.images
    steps = math.ceil(images / work.batch)
    read, written = images * work.pixels, checkpoint_bytes(work)
    reduced = gradient_bytes(work)
    return Cost(
        "train",
        compute=images * training_flops(work) / (machine.devices * machine.training),
        disk=disk(machine, read, written),
        network=steps * ring_seconds(reduced, machine),
        read=read,
        written=written,
        sent=steps * ring_bytes(reduced, machine.devices),
    )


def publish(work: Work, machine: Machine) -> Cost:
    """DVC reads and hashes what the other stages wrote; with links that is all it does to put them into its cache."""
    read = kept_bytes(work)
    hosts = machine.hosts if machine.hash_by_rank else 1
    arriving = min(hosts * machine.read, machine.store_read)
    return Cost("publish", compute=read / (hosts * machine.hashing), disk=read / arriving, read=read)


def feature_bytes(work: Work) -> float:
    """Of an epoch's feature dump."""
    return float(work.images) * work.features * work.feature_bytes


def checkpoint_bytes(work: Work) -> float:
    """Weights and the optimizer's momentum, float32."""
    return 8.0 * work.weights


def kept_bytes(work: Work) -> float:
    """What an epoch leaves on the disk."""
    small = 4.0 * work.images * work.components + 8.0 * work.images
    return feature_bytes(work) + small + checkpoint_bytes(work)


def training_flops(work: Work) -> float:
    """Of one image: three times the forward pass of backbone and head."""
    return 3 * (work.forward + 2.0 * work.features * work.clusters)


def covariance_flops(width: int, machine: Machine) -> float:
    """Of one row: its outer product with itself, whole or one triangle in panels."""
    return float(width * min(width + PANEL, 2 * width)) if machine.panels else 2.0 * width**2


def axes_flops(work: Work) -> float:
    """To tridiagonal form, and d eigenvectors back (Golub and Van Loan 2013, section 8.3)."""
    return 4 / 3 * work.features**3 + 2.0 * work.features**2 * work.components


def covariance_bytes(width: int) -> float:
    """Mean and covariance, added up over the ranks."""
    return float(SUM_BYTES * width * (width + 1))


def kmeans_bytes(work: Work) -> float:
    """Sums and counts of all clusters, added up over the ranks after each iteration."""
    return float(SUM_BYTES * work.clusters * (work.components + 1))


def gradient_bytes(work: Work) -> float:
    """Of a step, float32: backbone and head; with a split head the batch's features in its place."""
    head = work.batch * work.features if work.split_head else (work.features + 1) * work.clusters
    return 4.0 * (work.weights + head)


def disk(machine: Machine, read: float, written: float) -> float:
    """Seconds; reading and writing share the hosts' time."""
    arriving = min(machine.hosts * machine.read, machine.store_read)
    leaving = min(machine.hosts * machine.write, machine.store_write)
    return read / arriving + written / leaving


def shard_rows(row_bytes: int) -> int:
    """Rows of a whole shard of an array whose rows have so many bytes: chunks of a megabyte, shards of 128."""
    chunk = max(1, CHUNK_BYTES // row_bytes)
    return chunk * max(1, SHARD_BYTES // (chunk * row_bytes))


def imbalance(work: Work, machine: Machine) -> float:
    """Rows of the busiest rank over the mean, when ranks take whole shards."""
    if work.balanced or machine.devices == 1:
        return 1.0
    shards = -(-work.images // work.shard_rows)
    busiest = min(work.images, -(-shards // machine.devices) * work.shard_rows)
    return busiest * machine.devices / work.images


def ring_bytes(size: float, ranks: int) -> float:
    """What each of the ranks sends to add up `size` bytes in a ring: scattered sums, then gathered."""
    return 2 * (ranks - 1) / ranks * size


def ring_seconds(size: float, machine: Machine) -> float:
    """2 (P - 1) sends of a P-th each. In the long run a send takes as long as the slowest link is busy with it, or as
    the mean send with its latency, if that is longer: what waits for a fast link's latency lets the slow one catch up.
    """
    ranks = machine.devices
    if ranks == 1:
        return 0.0
    part = size / ranks
    return 2 * (ranks - 1) * max(part / machine.link, machine.latency + part * machine.seconds_a_byte)


def tree_seconds(size: float, machine: Machine) -> float:
    """Up a binary tree and down again, everything at every level, the lowest levels within hosts; not pipelined."""
    levels = _levels(machine.devices)
    inside = min(levels, _levels(machine.per_host))
    return 2 * (levels * machine.latency + inside * size / machine.inside + (levels - inside) * size / machine.between)


def _levels(leaves: int) -> int:
    return (leaves - 1).bit_length()


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="against this machine, minutes")
    parser.add_argument("--quick", action="store_true", help="with --measure: small sizes, nothing is written")
    options = parser.parse_args(words)
    if options.measure:
        from benchmarks.cost_measure import measure

        measure(quick=options.quick)
        return 0
    from benchmarks.cost_cases import predictions

    print(predictions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
