"""Each stage alone: images, rows or megabytes a second as a ratio to a named reference, interleaved."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import plots, results
from benchmarks.data import Source
from benchmarks.results import Comparison, compare

PRECISIONS: tuple[Any, ...] = ("fp32", "bf16")
BARE = 0.90
DUMP = 0.80


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Comparison]:
    """All of them; prints lines as they come, then the table."""
    found = [
        *networks(source, quick=quick),
        *epochs(source, quick=quick),
        *pca(quick=quick),
        *clustering(quick=quick),
        *dumps(output, quick=quick),
    ]
    print("\n" + results.table(results.COMPARISON_HEADER, [results.comparison_row(row) for row in found]))
    plots.ratios(output / "stages.svg", found)
    return found


def networks(source: Source, *, quick: bool) -> Iterator[Comparison]:
    """Extraction and training against the bare network."""
    for case in _cases(source, quick=quick):
        rounds = 2 if quick else 7 if case.arch == "convnet" else 3
        against = "bare forward"
        yield compare(
            f"extract {case.name}",
            case.extract,
            case.bare_forward,
            against=against,
            unit="images",
            rounds=rounds,
            target=BARE,
        )
        against = "bare forward+backward+step"
        yield compare(
            f"train {case.name}",
            case.train,
            case.bare_steps,
            against=against,
            unit="images",
            rounds=rounds,
            target=BARE,
        )


def _cases(source: Source, *, quick: bool) -> Iterator[Any]:
    from benchmarks.networks import Case, photo_case

    digits = source.digits(1024 if quick else 4096)[:, None]
    for precision in PRECISIONS:
        yield Case("convnet", digits, 256, precision)
    for arch in ("alexnet", "resnet18"):
        for precision in PRECISIONS[1:] if quick else PRECISIONS:
            yield photo_case(arch, precision, count=16 if quick else 64, batch_size=16 if quick else 32)


def epochs(source: Source, *, quick: bool) -> Iterator[Comparison]:
    """Extraction and training of one epoch, against the same through PIL, image by image, in float32."""
    from benchmarks.earlier import earlier_mnist, earlier_photos
    from benchmarks.networks import Case, photo_case

    count, batch = (16, 16) if quick else (64, 32)
    for arch, target in (("alexnet", 2.5), ("resnet18", 3.5)):
        cases = [photo_case(arch, precision, count=count, batch_size=batch) for precision in PRECISIONS]
        yield from _beside(earlier_photos(arch, count=count, batch_size=batch), cases, target, quick=quick)
    digits = source.digits(1024 if quick else 4096)[:, None]
    cases = [Case("convnet", digits, 256, precision) for precision in PRECISIONS]
    yield from _beside(earlier_mnist(source, count=count, batch_size=batch), cases, 50, quick=quick)


def _beside(earlier: Any, cases: list[Any], target: float, *, quick: bool) -> Iterator[Comparison]:
    """The fp32 and the bf16 epoch against one run of the reference a round; the target is for bf16."""
    rounds = 1 if quick else 3
    against = f"{earlier.arch} fp32, PIL to 224px"
    reference, *own = results.rates([earlier.epoch, *(case.epoch for case in cases)], rounds, warm_up=False)
    for case, measured in zip(cases, own, strict=True):
        wanted = target if case.precision == "bf16" else None
        name = f"epoch {case.name}"
        found = results.comparison(name, measured, reference, against=against, unit="images", target=wanted)
        print("  " + "  ".join(results.comparison_row(found)), flush=True)
        yield found


def pca(*, quick: bool) -> Iterator[Comparison]:
    """Fit, projection, whitening and L2 norm, against scikit-learn's PCA with its whitening (and no L2 norm)."""
    from sklearn.decomposition import PCA

    from deepcluster.reduction.pca import fit_transform

    for count, features, components in [(2000, 64, 16)] if quick else [(60_000, 256, 64), (10_000, 2048, 256)]:
        rows_ND = correlated(count, features)

        def reference(rows_ND: Any = rows_ND, components: int = components) -> int:
            PCA(components, whiten=True, svd_solver="covariance_eigh").fit_transform(rows_ND)
            return len(rows_ND)

        for backend in ("sklearn", "streaming"):

            def ours(backend: Any = backend, rows_ND: Any = rows_ND, components: int = components) -> int:
                fit_transform(rows_ND, backend=backend, components=components, whiten=True, normalize=True, seed=0)
                return len(rows_ND)

            name = f"pca {backend} {count:,}x{features} to {components}"
            yield compare(name, ours, reference, against="scikit-learn PCA", unit="rows", rounds=2 if quick else 3)


def clustering(*, quick: bool) -> Iterator[Comparison]:
    """k-means with exact final assignment, against faiss.Kmeans of the same settings called directly."""
    import faiss

    from deepcluster.clustering.kmeans import kmeans

    for count, d, k in [(2000, 16, 20)] if quick else [(60_000, 64, 100), (60_000, 64, 1000)]:
        rows_Nd = correlated(count, d)

        def ours(rows_Nd: Any = rows_Nd, k: int = k) -> int:
            kmeans(rows_Nd, k=k, backend="faiss", iterations=20, seed=0)
            return len(rows_Nd)

        def reference(rows_Nd: Any = rows_Nd, k: int = k) -> int:
            settings = {"niter": 20, "seed": 0, "min_points_per_centroid": 1, "max_points_per_centroid": len(rows_Nd)}
            trainer = faiss.Kmeans(rows_Nd.shape[1], k, **settings)
            trainer.train(rows_Nd)
            trainer.index.search(rows_Nd, 1)
            return len(rows_Nd)

        name = f"k-means {count:,}x{d}, k={k}"
        yield compare(name, ours, reference, against="faiss.Kmeans + assign", unit="rows", rounds=2 if quick else 3)


def correlated(count: int, features: int) -> NDArray[np.float32]:
    """Rows that a PCA and k-means find something in: 50 centres, variance falling over the features."""
    rng = np.random.default_rng(0)
    scale_D = (1 / np.sqrt(np.arange(1, features + 1))).astype(np.float32)
    centres_KD = rng.standard_normal((50, features), dtype=np.float32)
    return (centres_KD[rng.integers(50, size=count)] + rng.standard_normal((count, features), np.float32)) * scale_D


def dumps(folder: Path, *, quick: bool) -> Iterator[Comparison]:
    """A feature dump through the artifact module, against one plain file of the same bytes with fsync."""
    rows = 4_000 if quick else 60_000
    features_ND = np.random.default_rng(0).standard_normal((rows, 1024), dtype=np.float32)
    with _emptied(folder / "dumps") as place:
        store, plain, megabytes = place / "features.zarr", place / "features.bin", features_ND.nbytes / 1e6
        rounds = 2 if quick else 5

        def against(name: str, ours: Callable[[], None], reference: Callable[[], None], **more: Any) -> Comparison:
            works = [lambda: (ours(), megabytes)[1], lambda: (reference(), megabytes)[1]]
            return compare(name, *works, unit="MB", rounds=rounds, target=DUMP, **more)

        yield against(
            f"feature dump write {megabytes:.0f} MB",
            lambda: _write_store(store, features_ND),
            lambda: _write_plain(plain, features_ND),
            against="plain file, write + fsync",
        )
        drop = {"before": lambda: _drop_page_cache(place)}
        for name, more in (("from disk", drop), ("from page cache", {})):
            yield against(
                f"feature dump read {name}",
                lambda: _read_store(store),
                lambda: _read_plain(plain, features_ND.shape),
                against="plain file, read",
                **more,
            )


def _write_store(target: Path, features_ND: NDArray[np.float32]) -> None:
    """As the extract stage does it: blocks of a batch each."""
    from deepcluster import artifacts

    blocks = (features_ND[start : start + 512] for start in range(0, len(features_ND), 512))
    provenance = artifacts.Provenance(len(features_ND), "benchmark", epoch=1)
    with artifacts.write_store(target, "features", provenance) as store:
        store.rows("features", blocks, total=len(features_ND), dimensions=("sample", "feature"))


def _write_plain(target: Path, features_ND: NDArray[np.float32]) -> None:
    """A new file in the place of the old, as a publish has it."""
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        for start in range(0, len(features_ND), 512):
            file.write(features_ND[start : start + 512].data)
        file.flush()
        os.fsync(file.fileno())


def _read_store(path: Path) -> None:
    from deepcluster import artifacts

    artifacts.open_store(path, "features", made_by="the benchmark").read("features")


def _read_plain(path: Path, shape: tuple[int, ...]) -> None:
    np.fromfile(path, dtype=np.float32).reshape(shape)


def _drop_page_cache(folder: Path) -> None:
    """Make the next read come from the disk, where the system lets a user ask for that."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


@contextmanager
def _emptied(parent: Path) -> Iterator[Path]:
    """A new folder on the disk where artifacts lie (a temporary folder may be memory)."""
    parent.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=parent.name, dir=parent.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
