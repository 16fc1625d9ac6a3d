"""Power iteration clustering: time against k-means, clusters against a graph method of scikit-learn, and on MNIST."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from benchmarks.data import Source
from benchmarks.results import Comparison, compare
from benchmarks.stages import correlated

COMPONENTS, K = 64, 100


@dataclass(frozen=True)
class Quality:
    """Of one clustering: clusters found, NMI with what is named, seconds."""

    name: str
    clusters: int
    nmi: float
    seconds: float


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> dict[str, Any]:
    """Speed at two sizes and growth between them; against spectral clustering; on MNIST, if it is there."""
    counts = (2000, 4000) if quick else (10_000, 60_000)
    found = growth_of("pic", speed, counts, quick=quick)
    found["blobs"] = blobs_quality()
    print("\n" + quality_table("2,000 rows about 20 points: NMI with the points", found["blobs"]))
    return found | on_mnist(source, mnist_quality, quick=quick)


def growth_of(
    name: str, speed: Callable[[int, int], Comparison], counts: tuple[int, int], *, quick: bool
) -> dict[str, Any]:
    """`speed(rows, rounds)` at both sizes, and the exponent of the time's growth between them, printed."""
    comparisons = [speed(count, 2 if quick else 3) for count in counts]
    first, last = (count / row.rate for count, row in zip(counts, comparisons, strict=True))
    exponent = float(np.log(last / first) / np.log(counts[1] / counts[0]))
    print("\n" + results.table(results.COMPARISON_HEADER, list(map(results.comparison_row, comparisons))))
    print(f"\ntime of {name} ~ N^{exponent:.2f} from {counts[0]:,} to {counts[1]:,} rows")
    return {"comparisons": comparisons, "growth_exponent": exponent}


def on_mnist(source: Source, quality: Callable[[Path, int], list[Quality]], *, quick: bool) -> dict[str, Any]:
    """`quality(folder, images)`, printed; nothing where MNIST is not there."""
    if source.mnist is None:
        return {}
    found = quality(source.mnist, 2000 if quick else 10_000)
    print("\n" + quality_table("MNIST, whitened PCA of pixels, L2: NMI with the classes", found))
    return {"mnist": found}


def speed(count: int, rounds: int) -> Comparison:
    """Against faiss.Kmeans with k = 100, 20 iterations over all rows, and its search."""
    import faiss

    from deepcluster.clustering.pic import pic

    rows_Nd = correlated(count, COMPONENTS)
    rows_Nd /= np.linalg.norm(rows_Nd, axis=1, keepdims=True)

    def ours() -> float:
        pic(rows_Nd)
        return count

    def reference() -> float:
        trainer = faiss.Kmeans(
            COMPONENTS, K, niter=20, seed=1, min_points_per_centroid=1, max_points_per_centroid=count
        )
        trainer.train(rows_Nd)
        trainer.index.search(rows_Nd, 1)
        return count

    return compare(
        f"pic {count:,}x{COMPONENTS}", ours, reference, against=f"faiss.Kmeans k={K}", unit="rows", rounds=rounds
    )


def blobs_quality() -> list[Quality]:
    """Directions about 20 points of the sphere. Spectral clustering has the same graph, and is told the number."""
    from sklearn.cluster import SpectralClustering

    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.clustering.neighbours import nearest_neighbours
    from deepcluster.clustering.pic import affinities, pic

    rng = np.random.default_rng(0)
    points_Kd, targets_N = rng.normal(size=(20, COMPONENTS)), np.arange(2000) % 20
    rows_Nd = points_Kd[targets_N] + 0.35 * rng.normal(size=(2000, COMPONENTS))
    rows_Nd = (rows_Nd / np.linalg.norm(rows_Nd, axis=1, keepdims=True)).astype(np.float32)

    def spectral() -> NDArray[Any]:
        graph = affinities(*nearest_neighbours(rows_Nd, 5), 0.2)
        return SpectralClustering(20, affinity="precomputed", random_state=0).fit_predict(graph)

    works = {
        "pic": lambda: pic(rows_Nd).labels_N,
        "scikit-learn SpectralClustering, told 20": spectral,
        "k-means, told 20": lambda: kmeans(rows_Nd, k=20, backend="faiss", restarts=10, seed=0).labels_N,
    }
    return [quality_of(name, work, targets_N) for name, work in works.items()]


def mnist_quality(folder: Path, count: int) -> list[Quality]:
    """The first images; k-means with 10 clusters, with 100, and with as many as pic found."""
    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.clustering.pic import pic

    rows_Nd, targets_N = whitened_pixels(folder, count)
    found = [quality_of("pic", lambda: pic(rows_Nd).labels_N, targets_N)]
    for k in (10, 100, found[0].clusters):

        def by_kmeans(k: int = k) -> NDArray[Any]:
            return kmeans(rows_Nd, k=k, backend="faiss", seed=1).labels_N

        found.append(quality_of("k-means", by_kmeans, targets_N))
    return found


def whitened_pixels(folder: Path, count: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Of MNIST's first images the pixels after whitened PCA, of norm 1, and the classes."""
    from deepcluster.datasets.mnist import read_mnist
    from deepcluster.reduction.pca import fit_transform

    images_N1HW, targets_N, _ = read_mnist(folder, "train")
    pixels_ND = images_N1HW[:count].reshape(count, -1).astype(np.float32) / np.float32(255)
    settings: dict[str, Any] = {"components": COMPONENTS, "whiten": True, "normalize": True, "seed": 0}
    return fit_transform(pixels_ND, backend="streaming", **settings).reduced_Nd, targets_N[:count]


def quality_of(name: str, work: Callable[[], NDArray[Any]], targets_N: NDArray[Any]) -> Quality:
    from deepcluster.metrics import nmi

    started = time.perf_counter()
    labels_N = work()
    return Quality(name, len(np.unique(labels_N)), nmi(labels_N, targets_N), time.perf_counter() - started)


def quality_table(title: str, found: list[Quality]) -> str:
    rows = [(row.name, str(row.clusters), f"{row.nmi:.3f}", f"{row.seconds:.2f}") for row in found]
    return f"{title}\n\n" + results.table(("clustering", "clusters", "NMI", "seconds"), rows)
