"""On one GPU: extraction and training against the bare network there, PCA and k-means against the machine's CPU."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.data import Source, noise
from benchmarks.results import Comparison, compare
from benchmarks.stages import correlated
from deepcluster.clustering.kmeans import kmeans

EXTRACT, TRAIN = 0.95, 0.90
LARGEST = 10_000  # clusters


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Comparison]:
    """All of them; prints lines as they come, then the table."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA device")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    found = [*networks(source, quick=quick), *pca(quick=quick), *clustering(quick=quick)]
    print("\n" + results.table(results.COMPARISON_HEADER, [results.comparison_row(row) for row in found]))
    return found


def networks(source: Source, *, quick: bool) -> Iterator[Comparison]:
    """Extraction and training in bf16, of images in memory, against the same network on one batch on the GPU."""
    import torch

    from benchmarks.networks import Case

    cuda = torch.device("cuda")
    few = 1024 if quick else 4096
    digits = source.digits(2048 if quick else 60_000)[:, None]
    cases = [Case("convnet", digits, size, "bf16", cuda) for size in (256, 1024)]
    cases.append(Case("resnet18", noise(2048 if quick else 20_000, 3, 32, 32), 256, "bf16", cuda))
    cases += [Case(arch, noise(few, 3, 224, 224), 256, "bf16", cuda) for arch in ("alexnet", "resnet18")]
    for case in cases:
        rounds, name = 2 if quick else 5, f"{case.name}, batches of {case.batch_size}"
        yield compare(
            f"extract {name}", case.extract, case.bare_forward,
            against="bare forward", unit="images", rounds=rounds, target=EXTRACT,
        )  # fmt: skip
        yield compare(
            f"train {name}", case.train, case.bare_steps,
            against="bare forward+backward+step", unit="images", rounds=rounds, target=TRAIN,
        )  # fmt: skip


def pca(*, quick: bool) -> Iterator[Comparison]:
    """The streaming fit with its products on the GPU, against those on the CPU."""
    from deepcluster.reduction.streaming import fit_streaming

    count, features, components = (4_000, 1024, 64) if quick else (60_000, 4096, 256)
    rows_ND = correlated(count, features)

    def fit(device: str | None) -> int:
        blocks = (rows_ND[start : start + 4096] for start in range(0, count, 4096))
        fit_streaming(lambda: blocks, components=components, device=device)
        return count

    yield compare(
        f"pca fit {count:,}x{features} to {components}", lambda: fit("cuda"), lambda: fit(None),
        against="the same on the CPU", unit="rows", rounds=2,
    )  # fmt: skip


def clustering(*, quick: bool) -> Iterator[Comparison]:
    """k-means through faiss on the GPU, against the same on the CPU: few iterations, since the CPU takes long."""
    sizes = [(60_000, 64, 100, 20, 3), (60_000, 256, 1000, 20, 2), (1_280_000, 256, LARGEST, 1, 1)]
    for count, d, k, iterations, rounds in [(4000, 16, 20, 20, 1)] if quick else sizes:
        case = _Clustering(count, d, k)
        name = f"k-means {count:,}x{d}, k={k}, {iterations} iteration{'s' if iterations > 1 else ''}"
        works = [partial(case.cluster, gpu, iterations) for gpu in (True, False)]
        own, other = results.rates(works, rounds, warm_up=rounds > 1)
        found = results.comparison(name, own, other, against="the same on the CPU", unit="rows")
        print("  " + "  ".join(results.comparison_row(found)), flush=True)
        print(f"    objective, GPU / CPU: {case.objective[True] / case.objective[False]:.6f}", flush=True)
        if k == LARGEST:
            rate = results.rates([partial(case.cluster, True, 20)], 1, warm_up=False)[0][0]
            print(f"    20 iterations on the GPU: {count / rate:.1f} s", flush=True)
        yield found


class _Clustering:
    """Rows [count, d] to put into k clusters, and the last objective with a GPU and without."""

    def __init__(self, count: int, d: int, k: int) -> None:
        self._rows_Nd, self._k = correlated(count, d), k
        self.objective: dict[bool, float] = {}

    def cluster(self, gpu: bool, iterations: int) -> int:
        found = kmeans(self._rows_Nd, k=self._k, backend="faiss", iterations=iterations, seed=0, gpu=gpu)
        self.objective[gpu] = float(found.objective[-1])
        return len(self._rows_Nd)
