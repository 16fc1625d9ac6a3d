"""Spectral clustering: time against scikit-learn's of a like graph, growth with the rows, and clusters on MNIST."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import Source
from benchmarks.pic import Quality, growth_of, on_mnist, quality_of, whitened_pixels
from benchmarks.results import Comparison, compare
from benchmarks.stages import correlated

COMPONENTS, K, NEIGHBOURS = 64, 10, 10


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> dict[str, Any]:
    """Speed at two sizes and growth between them; on MNIST, if it is there."""
    counts = (2000, 4000) if quick else (5_000, 20_000)
    found = growth_of("spectral", speed, counts, quick=quick)
    return found | on_mnist(source, mnist_quality, quick=quick)


def speed(count: int, rounds: int) -> Comparison:
    """Against scikit-learn's with its own search for as many neighbours, on rows of norm 1; ten k-means of each."""
    from deepcluster.clustering.spectral import spectral

    rows_Nd = correlated(count, COMPONENTS)
    rows_Nd /= np.linalg.norm(rows_Nd, axis=1, keepdims=True)

    def ours() -> float:
        spectral(rows_Nd, k=K, neighbours=NEIGHBOURS, extra_vectors=0, restarts=10, init="k-means++", seed=1)
        return count

    def reference() -> float:
        _scikit_learns(rows_Nd)
        return count

    against = "scikit-learn SpectralClustering"
    return compare(f"spectral {count:,}x{COMPONENTS}", ours, reference, against=against, unit="rows", rounds=rounds)


def mnist_quality(folder: Path, count: int) -> list[Quality]:
    """The first images, all clusterings told the ten classes."""
    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.clustering.spectral import spectral

    rows_Nd, targets_N = whitened_pixels(folder, count)
    again: dict[str, Any] = {"restarts": 10, "init": "k-means++", "seed": 1}
    works = {
        "spectral": lambda: spectral(rows_Nd, k=K, **again).labels_N,
        "spectral, 1 vector more": lambda: spectral(rows_Nd, k=K, extra_vectors=1, **again).labels_N,
        "spectral, no vector more": lambda: spectral(rows_Nd, k=K, extra_vectors=0, **again).labels_N,
        "scikit-learn SpectralClustering": lambda: _scikit_learns(rows_Nd),
        "k-means": lambda: kmeans(rows_Nd, k=K, backend="faiss", **again).labels_N,
    }
    return [quality_of(name, work, targets_N) for name, work in works.items()]


def _scikit_learns(rows_Nd: NDArray[np.float32]) -> NDArray[Any]:
    from sklearn.cluster import SpectralClustering

    clusterer = SpectralClustering(
        K, affinity="nearest_neighbors", n_neighbors=NEIGHBOURS, random_state=0, n_init=10, n_jobs=-1
    )
    labels_N: NDArray[Any] = clusterer.fit_predict(rows_Nd)
    return labels_N
