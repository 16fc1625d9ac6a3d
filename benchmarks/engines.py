"""PCA and k-means: speed against the libraries called directly, error against float64, growth, and ImageNet's size."""

import csv
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import plots, results
from benchmarks.data import Source, noise
from benchmarks.project import TRIVIAL, Project, set_params, temporary_project
from benchmarks.results import Comparison, compare
from benchmarks.stages import correlated

FEATURES, COMPONENTS = 4096, 256
SHARD_ROWS = 8192


@dataclass(frozen=True)
class Error:
    """Of one way to a whitened PCA: largest relative error of an eigenvalue, and the columns' standard deviations."""

    name: str
    eigenvalue_error: float
    least_deviation: float
    largest_deviation: float


@dataclass(frozen=True)
class Growth:
    """Median seconds and megabytes above the start for every N; time = constant + slope x N, by least squares.

    `deviation`: of the farthest median from that line, as a share of it.
    """

    name: str
    seconds: dict[int, float]
    megabytes: dict[int, float]
    constant: float
    slope: float
    deviation: float


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> dict[str, Any]:
    """All of them; with `long` only what has ImageNet's size."""
    if long:
        return {"imagenet": imagenet(quick=quick)}
    found: dict[str, Any] = {"comparisons": [*pca_speed(quick=quick), *kmeans_speed(quick=quick)]}
    found["errors"] = errors(quick=quick)
    found["growth"] = [pca_growth(quick=quick), assignment_growth(quick=quick)]
    print("\n" + results.table(results.COMPARISON_HEADER, list(map(results.comparison_row, found["comparisons"]))))
    print("\n" + error_table(found["errors"]) + "\n\n" + "\n\n".join(map(growth_table, found["growth"])))
    named = found["growth"]
    panels = {
        "seconds": {row.name: row.seconds for row in named},
        "MB above the start": {row.name: row.megabytes for row in named},
    }
    plots.lines(output / "engines-growth.svg", panels, x_label="rows N", logarithmic=True)
    return found


def pca_speed(*, quick: bool) -> Iterator[Comparison]:
    """Fit, projection, whitening and L2 norm, against scikit-learn's fit and whitened projection."""
    from sklearn.decomposition import PCA

    from deepcluster.reduction.pca import fit_transform

    count, features, components = (2000, 1024, 32) if quick else (60_000, FEATURES, COMPONENTS)
    rows_ND = correlated(count, features)

    def ours() -> float:
        fit_transform(rows_ND, backend="streaming", components=components, whiten=True, normalize=True, seed=0)
        return count

    def reference() -> float:
        PCA(components, whiten=True, svd_solver="covariance_eigh").fit_transform(rows_ND)
        return count

    name = f"pca streaming {count:,}x{features} to {components}"
    yield compare(
        name, ours, reference, against="scikit-learn covariance_eigh", unit="rows", rounds=2 if quick else 3, target=1.0
    )


def kmeans_speed(*, quick: bool) -> Iterator[Comparison]:
    """Whole `kmeans` with its exact assignment, against faiss.Kmeans of the same settings and its search; scikit-learn
    beside them. Then the objectives: N / (sum of squared distances), as a rate."""
    import faiss
    from sklearn.cluster import KMeans

    from deepcluster.clustering.assignment import squared_distances
    from deepcluster.clustering.kmeans import kmeans

    count, d, k = (4000, 32, 50) if quick else (60_000, 256, 1000)
    rows_Nd = correlated(count, d)
    rows_Nd /= np.linalg.norm(rows_Nd, axis=1, keepdims=True)
    reached: dict[str, float] = {}

    def ours() -> float:
        found = kmeans(rows_Nd, k=k, backend="faiss", seed=1)
        reached["ours"] = float(found.distances_N.sum(dtype=np.float64))
        return count

    def reference() -> float:
        trainer = faiss.Kmeans(d, k, niter=20, seed=1, min_points_per_centroid=1, max_points_per_centroid=count)
        trainer.train(rows_Nd)
        _, labels_N1 = trainer.index.search(rows_Nd, 1)
        reached["faiss"] = float(squared_distances(rows_Nd, trainer.centroids[labels_N1[:, 0]]).sum())
        return count

    def scikit_learn() -> float:
        KMeans(k, init="random", n_init=1, max_iter=20, tol=0, random_state=0).fit(rows_Nd)
        return count

    name, rounds = f"k-means {count:,}x{d}, k={k}, 20 iterations", 2 if quick else 5
    yield compare(name, ours, reference, against="faiss.Kmeans + search", unit="rows", rounds=rounds, target=1.0)
    yield compare(name, ours, scikit_learn, against="scikit-learn KMeans", unit="rows", rounds=1)
    better = results.comparison(
        f"{name}: N / objective",
        [count / reached["ours"]],
        [count / reached["faiss"]],
        against="faiss.Kmeans",
        unit="",
        target=0.995,
    )
    yield better


def errors(*, quick: bool) -> list[Error]:
    """Features that share an offset of 0.5 and vary by hundredths, whitened by each way; float64 is the reference."""
    import faiss
    from sklearn.decomposition import PCA

    from deepcluster.reduction.pca import fit_transform

    count, features, components = (3000, 1024, 16) if quick else (10_000, 2048, 128)
    rows_ND = 0.05 * correlated(count, features) + np.float32(0.5)
    exact_d = np.linalg.eigvalsh(np.cov(rows_ND.T, dtype=np.float64))[::-1][:components]

    def error(name: str, variance_d: NDArray[Any], whitened_Nd: NDArray[Any]) -> Error:
        deviation_d = whitened_Nd.std(axis=0, ddof=1, dtype=np.float64)
        return Error(name, float(np.abs(variance_d / exact_d - 1).max()), deviation_d.min(), deviation_d.max())

    reference = PCA(components, whiten=True, svd_solver="covariance_eigh")
    whitened_Nd = reference.fit_transform(rows_ND)
    found = [error("scikit-learn covariance_eigh, directly", reference.explained_variance_, whitened_Nd)]
    matrix = faiss.PCAMatrix(features, components, -0.5)
    matrix.train(rows_ND)
    values = faiss.vector_to_array(matrix.eigenvalues)[:components] / (count - 1)
    found.append(error("faiss.PCAMatrix, directly", values, matrix.apply(rows_ND) * np.sqrt(count - 1)))
    for backend in ("sklearn", "faiss", "streaming"):
        ours = fit_transform(rows_ND, backend=backend, components=components, whiten=True, normalize=False, seed=0)
        found.append(error(f"pca.backend {backend}", ours.explained_variance_d, ours.reduced_Nd))
    return found


def pca_growth(*, quick: bool) -> Growth:
    """The stage in a process of its own, from a feature store; memory above that of a stage with few features."""
    counts = (1000, 2000, 4000) if quick else (7500, 15_000, 30_000, 60_000)
    features, components = (1024, 16) if quick else (FEATURES, COMPONENTS)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    peaks: dict[int, list[float]] = {count: [] for count in counts}
    with feature_project(components) as (project, store):
        store(300, components)
        _, start = run_stage(project, "pca")
        for _ in range(1 if quick else 3):
            for count in counts:
                store(count, features)
                taken, peak = run_stage(project, "pca")
                seconds[count].append(taken)
                peaks[count].append(peak - start)
    name = f"stages.pca, {features} features to {components}"
    return _growth(name, seconds, peaks)


def assignment_growth(*, quick: bool) -> Growth:
    """`assign` alone: memory is what it allocates at its peak beside labels and distances (12 bytes a row)."""
    from deepcluster.clustering.assignment import assign

    k, counts = (50, (1000, 2000, 4000)) if quick else (1000, (30_000, 60_000, 120_000, 240_000))
    rows_Nd = correlated(max(counts), 64)
    origin_d = rows_Nd.mean(axis=0)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    megabytes: dict[int, list[float]] = {}
    for _ in range(2 if quick else 5):
        for count in counts:
            started = time.perf_counter()
            assign(rows_Nd[:count], rows_Nd[:k], origin_d=origin_d)
            seconds[count].append(time.perf_counter() - started)
    for count in counts:
        tracemalloc.start()
        assign(rows_Nd[:count], rows_Nd[:k], origin_d=origin_d)
        megabytes[count] = [(tracemalloc.get_traced_memory()[1] - 12 * count) / 1e6]
        tracemalloc.stop()
    return _growth(f"assignment to {k} centroids, 64 components", seconds, megabytes)


def imagenet(*, quick: bool) -> dict[str, float]:
    """1.28 million x 4,096 features written shard by shard, reduced to 256, and clustered with k = 10,000, twice."""
    count, features, components, k = (20_000, 1024, 16, 100) if quick else (1_280_000, FEATURES, COMPONENTS, 10_000)
    found: dict[str, float] = {"rows": count, "features": features, "k": k}
    with feature_project(components) as (project, store):
        store(300, components)
        _, start = run_stage(project, "pca")
        store(count, features)
        found["pca_seconds"], peak = run_stage(project, "pca")
        found["pca_megabytes"], found["pca_megabytes_above_start"] = peak, peak - start
        print(f"  pca {found['pca_seconds']:.0f} s, peak {peak:,.0f} MB", flush=True)
        taken = {}
        for iterations in (1, 3):
            settings = {"cluster.k": k, "cluster.iterations": iterations, "cluster.fail_on_collapse": False}
            set_params(project.root / "params.yaml", settings)
            taken[iterations], found["cluster_megabytes"] = run_stage(project, "cluster")
            print(f"  cluster, {iterations} iterations: {taken[iterations]:.0f} s", flush=True)
    found["iteration_seconds"] = (taken[3] - taken[1]) / 2
    found["cluster_seconds_20_iterations"] = taken[1] + 19 * found["iteration_seconds"]
    print("\n" + results.table(("what", "value"), [(name, results.number(value)) for name, value in found.items()]))
    return found


def feature_project(components: int) -> Any:
    """A project, and a function (rows, features) that writes the features of its epoch 1."""
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Iterator[tuple[Project, Callable[[int, int], None]]]:
        settings = {**TRIVIAL, "pca.components": components, "cluster.k": 4}
        with temporary_project(noise(8, 8, 8), settings) as project:
            yield project, lambda count, features: write_features(project.root, count, features)

    return opened()


def write_features(root: Path, count: int, features: int) -> None:
    """Block by block: never in memory as a whole."""
    from deepcluster import artifacts

    block_BD = correlated(min(count, SHARD_ROWS), features)
    shift_D = np.random.default_rng(1).standard_normal(features, dtype=np.float32)

    def blocks() -> Iterator[NDArray[np.float32]]:
        """The same noise in another order of rows and about another point each time: new rows at a copy's speed."""
        rng = np.random.default_rng(2)
        for start in range(0, count, SHARD_ROWS):
            rows_BD = np.roll(block_BD, int(rng.integers(features)), axis=1) if start else block_BD
            yield (rows_BD + np.float32(rng.normal() * 0.01) * shift_D)[: count - start]

    provenance = artifacts.Provenance(count, "benchmark", epoch=1)
    with artifacts.write_store(root / "data/epochs/1/features.zarr", "features", provenance) as store:
        store.rows("features", blocks(), total=count, dimensions=("sample", "feature"))


def run_stage(project: Project, stage: str) -> tuple[float, float]:
    """(seconds of its work, peak MB of its process)."""
    project.run("python", "-m", f"stages.{stage}", "--epoch", "1")
    with (project.root / "data/timings.csv").open(newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    return float(row["seconds"]), float(row["peak_memory_mb"])


def _growth(name: str, seconds: dict[int, list[float]], megabytes: dict[int, list[float]]) -> Growth:
    medians = {count: median(values) for count, values in seconds.items()}
    slope, constant = map(float, np.polyfit(list(medians), list(medians.values()), 1))
    deviation = max(abs(taken / (constant + slope * count) - 1) for count, taken in medians.items())
    return Growth(
        name, medians, {count: median(values) for count, values in megabytes.items()}, constant, slope, deviation
    )


def error_table(found: list[Error]) -> str:
    rows = [
        (row.name, f"{row.eigenvalue_error:.1e}", f"{row.least_deviation:.4f} to {row.largest_deviation:.4f}")
        for row in found
    ]
    return results.table(("whitened PCA", "largest error of an eigenvalue", "standard deviation of the columns"), rows)


def growth_table(found: Growth) -> str:
    counts = sorted(found.seconds)
    rows = [(f"{count:,}", f"{found.seconds[count]:.3f}", f"{found.megabytes[count]:,.1f}") for count in counts]
    line = f"{found.constant:.2f} s + {found.slope * 1e6:.2f} s a million rows, within {found.deviation:.1%}"
    return f"{found.name}: {line}\n\n" + results.table(("N", "seconds", "MB above start"), rows)
