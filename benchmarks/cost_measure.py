"""The cost model against this machine: rates from a small epoch, then four other sizes, of which N, D, d, k differ.

Processor time of this process, one thread at a time, the median of rounds: others on the machine make it wait, and that
is not counted. So is the disk; the model's bytes are checked by counting them, not by a clock.
"""

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cost_model
from benchmarks.cost_model import STAGES, Machine, Work
from benchmarks.results import hardware, table

MEASURED = Path(__file__).with_name("cost_measured.json")
SIDE, BATCH, ITERATIONS = 28, 128, 10
ROUNDS = 3
RATES = ("forward", "training", "products", "clustering", "axes", "hashing")


@dataclass(frozen=True)
class Size:
    """N images for the convnet at 28 pixels; N rows of D features to d components and k clusters."""

    images: int
    features: int
    components: int
    clusters: int

    @property
    def name(self) -> str:
        return f"N = {self.images:,}, D = {self.features:,}, d = {self.components}, k = {self.clusters}"


CALIBRATION = Size(4000, 1024, 64, 200)
SIZES = (
    Size(2000, 1024, 64, 100),
    Size(6000, 1024, 128, 200),
    Size(8000, 1536, 128, 400),
    Size(12_000, 2048, 128, 400),
)
QUICK = Size(200, 1024, 16, 10), (Size(300, 1024, 16, 10), Size(400, 1024, 16, 20))


def measure(*, quick: bool) -> dict[str, Any]:
    """Seconds of every stage at every size beside the model's; printed, and written to MEASURED unless `quick`."""
    import torch

    torch.set_num_threads(1)
    calibration, sizes = QUICK if quick else (CALIBRATION, SIZES)
    rounds = 1 if quick else ROUNDS
    forward, weights = _counted()
    beside, found = list[dict[str, float]](), {}
    for size in sizes:  # the machine's speed drifts, so the calibration is measured anew beside each size
        beside.append(epoch_seconds(calibration, rounds))
        found[size] = epoch_seconds(size, rounds)
        print(f"  {size.name}: {sum(found[size][stage] for stage in STAGES):.2f} s", flush=True)
    began = {name: statistics.median(each[name] for each in beside) for name in beside[0]}
    machine = calibrated(_work(calibration, forward, weights), began)
    record = {
        "hardware": hardware(),
        "rounds": rounds,
        "calibration": {"size": asdict(calibration), "seconds": began},
        "rates": {name: getattr(machine, name) for name in RATES},
        "sizes": [
            {"size": asdict(size), "measured": taken, "model": modelled(_work(size, forward, weights), machine)}
            for size, taken in found.items()
        ],
    }
    print(measured_table(record))
    if not quick:
        MEASURED.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten: {MEASURED.name}; `python -m benchmarks.scale_page` puts it on the page")
    return record


def calibrated(work: Work, seconds: Mapping[str, float]) -> Machine:
    """The rates at which an epoch of that work takes those seconds; `pca_axes` are those of the eigenvectors alone."""
    panels = Machine(1, 1, forward=1, training=1, products=1, clustering=1, axes=1, panels=True)
    passes = work.iterations * work.trained_on + work.images
    products = work.images * (cost_model.covariance_flops(work.features, panels) + 2 * work.features * work.components)
    return Machine(
        devices=1,
        per_host=1,
        forward=work.images * work.forward / seconds["extract"],
        training=work.seen * work.images * cost_model.training_flops(work) / seconds["train"],
        products=products / (seconds["pca"] - seconds["pca_axes"]),
        clustering=passes * 2.0 * work.clusters * work.components / seconds["cluster"],
        axes=cost_model.axes_flops(work) / seconds["pca_axes"],
        hashing=cost_model.feature_bytes(work) / seconds["publish"],
        panels=True,
    )


def modelled(work: Work, machine: Machine) -> dict[str, float]:
    """Seconds of each stage's compute; publish: of the feature dump alone, written and hashed."""
    found = {cost.stage: cost.compute for cost in cost_model.epoch(work, machine)}
    return {**found, "publish": cost_model.feature_bytes(work) / machine.hashing}


def measured_table(record: Mapping[str, Any]) -> str:
    """A row for each size: every stage's measured seconds and the model's error in percent, and the whole epoch's."""
    return table(("size", *STAGES, "epoch"), [_row(found) for found in record["sizes"]])


def error(measured: float, model: float) -> float:
    """Of the model, in percent of what was measured."""
    return 100 * (model / measured - 1)


def errors(record: Mapping[str, Any]) -> dict[str, float]:
    """The largest error in magnitude of each stage over the sizes, in percent, and of the whole epoch."""
    found: dict[str, list[float]] = {}
    for each in record["sizes"]:
        for stage in STAGES:
            found.setdefault(stage, []).append(error(each["measured"][stage], each["model"][stage]))
        found.setdefault("epoch", []).append(error(*_sums(each)))
    return {stage: max(values, key=abs) for stage, values in found.items()}


def load_record() -> dict[str, Any]:
    """What `measure` wrote last."""
    record: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return record


def epoch_seconds(size: Size, rounds: int) -> dict[str, float]:
    """Processor seconds of each stage, and of `pca_axes` in it; medians, each run once before."""
    from benchmarks.stages import correlated

    rows_ND = correlated(size.images, size.features)
    with tempfile.TemporaryDirectory(prefix="deepcluster-cost-") as folder:
        works = {**_network(size), **_engines(size, rows_ND), "publish": _publish(Path(folder), rows_ND)}
        return {name: _median(work, rounds) for name, work in works.items()}


def _network(size: Size) -> dict[str, Callable[[], object]]:
    from benchmarks.data import blobs
    from benchmarks.networks import Case

    case = Case("convnet", blobs(size.images)[:, None], BATCH, "fp32")
    return {"extract": case.extract, "train": case.train}


def _engines(size: Size, rows_ND: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """PCA, its eigenvectors alone, and k-means on rows of d values."""
    import faiss

    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.reduction.pca import fit_transform
    from deepcluster.reduction.streaming import principal_axes

    faiss.omp_set_num_threads(1)
    covariance_DD = np.cov(rows_ND[:, : size.features], rowvar=False, dtype=np.float64)
    rows_Nd = np.ascontiguousarray(rows_ND[:, : size.components])

    def reduce() -> None:
        fit_transform(rows_ND, backend="streaming", components=size.components, whiten=True, normalize=True, seed=0)

    return {
        "pca": reduce,
        "pca_axes": lambda: principal_axes(covariance_DD.copy(), size.components),
        "cluster": lambda: kmeans(rows_Nd, k=size.clusters, backend="faiss", iterations=ITERATIONS, seed=0),
    }


def _publish(folder: Path, rows_ND: NDArray[np.float32]) -> Callable[[], None]:
    """A feature dump written with its checksums, then read and hashed as DVC does; sizes as the model has them."""
    from deepcluster import artifacts

    target = folder / "features.zarr"

    def work() -> None:
        with artifacts.write_store(target, "features", artifacts.Provenance(len(rows_ND), "ids")) as store:
            store.array("features", rows_ND, ("sample", "feature"))
        for path in target.rglob("*"):
            if path.is_file():
                hashlib.md5(path.read_bytes(), usedforsecurity=False)
        stored = artifacts.disk_usage(target)[1]
        if not rows_ND.nbytes <= stored < 1.01 * rows_ND.nbytes + 2 * cost_model.CHUNK_BYTES:
            raise RuntimeError(f"a dump of {rows_ND.nbytes:,} bytes takes {stored:,}: the model's bytes are wrong")

    return work


def _median(work: Callable[[], object], rounds: int) -> float:
    work()
    times = list[float]()
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def _work(size: Size, forward: float, weights: int) -> Work:
    return Work(
        size.images, SIDE**2, size.features, size.components, size.clusters, forward, weights, ITERATIONS, batch=BATCH
    )


def _counted() -> tuple[float, int]:
    """FLOPs of the convnet's forward pass for an image, and its weights."""
    return flops("convnet", channels=1, side=SIDE)


def flops(arch: Any, *, channels: int, side: int, sobel: bool = False) -> tuple[float, int]:
    """(FLOPs of a forward pass of one image as torch counts them, weights), without memory for the weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from deepcluster.models.build import build_backbone

    with torch.device("meta"):
        backbone = build_backbone(arch, channels=channels, image_size=side, sobel=sobel, grayscale=False)
    backbone.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, channels, side, side, device="meta"))
    return float(counter.get_total_flops()), sum(weight.numel() for weight in backbone.parameters())


def _row(found: Mapping[str, Any]) -> Sequence[str]:
    pairs = [(found["measured"][stage], found["model"][stage]) for stage in STAGES] + [_sums(found)]
    return (Size(**found["size"]).name, *(f"{taken:.2f} s, {error(taken, model):+.0f} %" for taken, model in pairs))


def _sums(found: Mapping[str, Any]) -> tuple[float, float]:
    """(measured, model) of the whole epoch."""
    measured, model = (sum(found[which][stage] for stage in STAGES) for which in ("measured", "model"))
    return measured, model
