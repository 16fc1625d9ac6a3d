"""What the cost model is asked on docs/scale-cost.md: three data sets, two networks, clusters of H100s; and answers.

Nothing here was ever run on a GPU: every rate below is a figure of a data sheet times a share that is assumed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks import cost_model
from benchmarks.cost_model import Cost, Machine, Work
from benchmarks.results import table

TERA, GIGA = 1e12, 1e9
DEVICES = (8, 64, 512)
DEVICE_MEMORY = 80 * GIGA

PEAK_BF16, PEAK_FP32, HBM = 989 * TERA, 67 * TERA, 3.35 * TERA
NVLINK, INFINIBAND = 450 * GIGA, 50 * GIGA
AXES_ON_DEVICE = 500 * GIGA  # assumed
FORWARD_SHARE, TRAINING_SHARE, PRODUCTS_SHARE, MEMORY_SHARE, LINK_SHARE = 0.15, 0.10, 0.6, 0.7, 0.8

H100 = Machine(
    devices=8,
    per_host=8,
    forward=FORWARD_SHARE * PEAK_BF16,
    training=TRAINING_SHARE * PEAK_BF16,
    products=PRODUCTS_SHARE * PEAK_FP32,
    clustering=PRODUCTS_SHARE * PEAK_FP32,
    axes=15 * GIGA,
    memory=MEMORY_SHARE * HBM,
    inside=LINK_SHARE * NVLINK,
    between=LINK_SHARE * INFINIBAND,
    latency=10e-6,
    read=8 * GIGA,
    write=4 * GIGA,
    store_read=125 * GIGA,
    store_write=62 * GIGA,
    hashing=8 * GIGA,
)
ASSUMED = (
    (
        "bf16 products, dense",
        "989 TFLOP/s",
        "H100 SXM5 data sheet",
        f"{FORWARD_SHARE:.0%} of it in extract, {TRAINING_SHARE:.0%} in train",
    ),
    (
        "fp32 products, no TF32",
        "67 TFLOP/s",
        "H100 SXM5 data sheet",
        f"{PRODUCTS_SHARE:.0%} of it, PCA and k-means",
    ),
    ("HBM3", "80 GB, 3.35 TB/s", "H100 SXM5 data sheet", f"{MEMORY_SHARE:.0%} of it"),
    ("NVLink, one direction", "450 GB/s a GPU", "H100 SXM5 data sheet (900 both ways)", f"{LINK_SHARE:.0%} of it"),
    (
        "InfiniBand NDR",
        "400 Gb/s a GPU: 50 GB/s",
        "DGX H100 data sheet (8 ports, 8 GPUs)",
        f"{LINK_SHARE:.0%} of it, 10 µs a send",
    ),
    ("shared store, a host", "8 GB/s read, 4 written", "assumed", "as it is"),
    ("shared store, in all", "125 GB/s read, 62 written", "assumed", "as it is"),
    ("eigenvectors, one core", "15 GFLOP/s, float64", "measured here, D = 4,096 (performance.md)", "as it is"),
    ("md5 by DVC, one host", "8 GB/s", "assumed: 16 threads of 0.5", "as it is"),
)


@dataclass(frozen=True)
class Network:
    """FLOPs of a forward pass at 224 pixels as torch counts them, weights, features."""

    name: str
    forward: float
    weights: int
    features: int


@dataclass(frozen=True)
class DataSet:
    """Images, and a k that grows with them."""

    name: str
    images: int
    clusters: int


ALEXNET = Network("AlexNet", 2_194_150_784, 58_272_480, 4096)
RESNET50 = Network("ResNet-50", 8_174_272_512, 23_508_032, 2048)
NETWORKS = (ALEXNET, RESNET50)
DATA_SETS = (
    DataSet("ImageNet-1k", 1_281_167, 10_000),
    DataSet("ImageNet-21k", 14_197_122, 30_000),
    DataSet("a billion", 1_000_000_000, 100_000),
)
PIXELS, COMPONENTS, A_DEVICE = 3 * 224 * 224, 256, 32  # images of a batch on each device


def work(data: DataSet, network: Network, devices: int) -> Work:
    """The paper's settings; the global batch grows with the devices, with the paper's 256 on eight."""
    return Work(
        images=data.images,
        pixels=PIXELS,
        features=network.features,
        components=COMPONENTS,
        clusters=data.clusters,
        forward=network.forward,
        weights=network.weights,
        batch=A_DEVICE * devices,
    )


def changed(asked: Work, machine: Machine) -> tuple[Work, Machine]:
    """The same epoch after the changes of design that the page proposes."""
    smaller = replace(asked, pixels=20_000, feature_bytes=2, points_per_centroid=256, split_head=True, balanced=True)
    return smaller, replace(machine, hash_by_rank=True, axes=AXES_ON_DEVICE)


def predictions() -> str:
    """The table of every network, data set and number of devices."""
    return prediction_table(list(cases()))


def cases(*, after: bool = False) -> Iterator[tuple[str, Work, Machine]]:
    """(name, work, machine) of every row, before or after the changes of design."""
    for network in NETWORKS:
        for data in DATA_SETS:
            for devices in DEVICES:
                asked, machine = work(data, network, devices), replace(H100, devices=devices)
                if after:
                    asked, machine = changed(asked, machine)
                yield f"{network.name}, {data.name}", asked, machine


HEADER = (
    "epoch of", "GPUs", "extract", "pca", "cluster", "train", "publish", "in all", "from and to the store",
    "sent by each GPU", "kept on disk", "bottleneck",
)  # fmt: skip


def prediction_table(rows: Sequence[tuple[str, Work, Machine]]) -> str:
    return table(HEADER, [_row(*row) for row in rows])


def change_table() -> str:
    """Before and after the changes, by row: seconds of an epoch, what is kept, and the new bottleneck."""
    header = ("epoch of", "GPUs", "before", "after", "ratio", "kept before", "kept after", "bottleneck after")
    rows = []
    for (name, asked, machine), (_, smaller, other) in zip(cases(), cases(after=True), strict=True):
        before, after = cost_model.epoch(asked, machine), cost_model.epoch(smaller, other)
        ratio = total(before) / total(after)
        kept = bytes_(cost_model.kept_bytes(asked)), bytes_(cost_model.kept_bytes(smaller))
        row = (name, str(machine.devices), duration(total(before)), duration(total(after)), f"{ratio:.1f}x", *kept)
        rows.append((*row, bottleneck(after)))
    return table(header, rows)


def memory_table() -> str:
    """Device memory that k-means and training need beside activations, and where it does not fit into 80 GB."""
    header = ("epoch of", *(f"{devices} GPUs: rows of k-means, head" for devices in DEVICES))
    rows = []
    for network in NETWORKS:
        for data in DATA_SETS:
            works = [(work(data, network, devices), devices) for devices in DEVICES]
            rows.append((f"{network.name}, {data.name}", *(_memory(*asked) for asked in works)))
    return table(header, rows)


def assumption_table() -> str:
    return table(("what", "figure", "source", "taken here"), ASSUMED)


def rows_memory(asked: Work, devices: int) -> float:
    """Bytes of the reduced rows on the busiest device, and of the centred copy that `kmeans` makes."""
    return 2 * 4.0 * cost_model.imbalance(asked, replace(H100, devices=devices)) * asked.images / devices * COMPONENTS


def head_memory(asked: Work) -> float:
    """Weights, gradient and momentum of backbone and head, float32."""
    return 3 * cost_model.gradient_bytes(asked)


def total(costs: Sequence[Cost]) -> float:
    return sum(cost.seconds for cost in costs)


def bottleneck(costs: Sequence[Cost]) -> str:
    """The stage that takes longest, and its resource."""
    longest = max(costs, key=lambda cost: cost.seconds)
    limit = "hashing" if longest.stage == "publish" and longest.limit == "compute" else longest.limit
    return f"{longest.stage}: {limit}"


def duration(seconds: float) -> str:
    """Three figures at most, in the largest unit that keeps one before the point."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def bytes_(count: float) -> str:
    """As `duration`, in powers of a thousand."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} B"


def _row(name: str, asked: Work, machine: Machine) -> tuple[str, ...]:
    costs = cost_model.epoch(asked, machine)
    moved = sum(cost.read + cost.written for cost in costs)
    return (
        name,
        str(machine.devices),
        *(duration(cost.seconds) for cost in costs),
        duration(total(costs)),
        bytes_(moved),
        bytes_(sum(cost.sent for cost in costs)),
        bytes_(cost_model.kept_bytes(asked)),
        bottleneck(costs),
    )


def _memory(asked: Work, devices: int) -> str:
    rows, head = rows_memory(asked, devices), head_memory(asked)
    fits = "" if max(rows, head) < DEVICE_MEMORY else " (too much)"
    return f"{bytes_(rows)}, {bytes_(head)}{fits}"
