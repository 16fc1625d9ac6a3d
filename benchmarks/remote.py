"""Images and features by chunk, from the disk, from S3 and from HTTP on loopback, beside the same in memory.

Extraction of the small convnet on what does not fit into memory (DEEPCLUSTER_MEMORY_SHARE=0), two threads reading
ahead; training from the mapped file; and a pass over a feature dump. Each in the same run as its reference.
The servers are Python and share the cores with what they serve: a real store costs its clients less.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import results
from benchmarks.data import Source
from benchmarks.results import Comparison, compare
from deepcluster import layout

CHECKOUT = Path(__file__).resolve().parents[1]
LEAST = 0.80
BUCKET = "bench"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
MANY = layout.DATA / "dataset/many.zarr"
SMALL_FEATURES, FEATURES = (4000, 256), (60_000, 1024)


@dataclass(frozen=True)
class Peak:
    """Memory of a process that passes once over images: above its start, in MB, and of the pixels themselves."""

    place: str
    peak_mb: float
    pixels_mb: float


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Comparison | Peak]:
    """Ratios to the same in memory, then peak memory; prints lines as they come."""
    count = images or (1000 if quick else 10_000)
    found: list[Comparison | Peak] = []
    with tempfile.TemporaryDirectory(prefix="deepcluster-remote-") as folder, _projects(Path(folder)):
        _write(source, count, 100_000 if quick else 600_000, SMALL_FEATURES if quick else FEATURES)
        with _places() as places:
            found += list(_ratios(places, source, count, rounds=2 if quick else 3))
            found += list(_peaks(places))
    rows = [results.comparison_row(row) for row in found if isinstance(row, Comparison)]
    print("\n" + results.table(results.COMPARISON_HEADER, rows))
    peaks = [(row.place, f"{row.peak_mb:.0f} MB", f"{row.pixels_mb:.0f} MB") for row in found if isinstance(row, Peak)]
    print("\n" + results.table(("one pass over images on", "memory above its start", "pixels"), peaks))
    return found


def _ratios(places: dict[str, str], source: Source, count: int, *, rounds: int) -> Iterator[Comparison]:
    from benchmarks.networks import Case

    case = Case("convnet", source.digits(count)[:, None], 256, "bf16")
    for name, url in places.items():
        yield compare(
            f"extract from {name}",
            lambda url=url: _extract(case, url),
            case.extract,
            against="images in memory",
            unit="images",
            rounds=rounds,
            target=LEAST,
        )
    yield compare(
        "train from a mapped file",
        lambda: _train(case),
        case.train,
        against="images in memory",
        unit="images",
        rounds=rounds,
        target=LEAST,
    )
    for name, url in list(places.items())[1:]:
        yield compare(
            f"feature dump from {name}",
            lambda url=url: _pass_over_features(url),
            lambda: _pass_over_features(""),
            against="the disk",
            unit="MB",
            rounds=rounds,
        )


def _extract(case: Any, url: str) -> float:
    """As `stages.extract` reads its images when they do not fit into memory."""
    from deepcluster.images import rows_in_order

    with _at(url):
        return _with_images(case, rows_in_order(_images())).extract()


def _train(case: Any) -> float:
    from deepcluster.images import open_rows

    with _at(""):
        return _with_images(case, open_rows(_images())).train()


def _with_images(case: Any, rows: Any) -> Any:
    """The same network, optimizer and all, on other rows."""
    from copy import copy

    other = copy(case)
    other.images = rows
    return other


def _pass_over_features(url: str) -> float:
    from deepcluster import artifacts

    with _at(url):
        store = artifacts.open_store(layout.features(1), "features", made_by="the benchmark")
        return sum(block.nbytes for block in store.blocks("features")) / 1e6


def _peaks(places: dict[str, str]) -> Iterator[Peak]:
    """Of a process of its own for each place, which passes once over more images than it would hold."""
    for name, url in places.items():
        with _at(url):
            words = [sys.executable, "-m", "benchmarks.remote"]
            said = subprocess.run(
                words, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}
            )
        peak, pixels = map(float, said.stdout.split())
        yield Peak(name, peak, pixels)


def main() -> None:
    """Prints how much memory a pass over all images takes above its start, and they, in MB: for `_peaks`."""
    from deepcluster.images import RowsInOrder
    from deepcluster.timings import peak_memory_mb

    store = _images(MANY)
    store.read("images", slice(0, 1))  # loads all that reading needs
    before = peak_memory_mb()
    rows = RowsInOrder(store)
    read = sum(rows[start : start + 512].nbytes for start in range(0, rows.shape[0], 512))
    print(peak_memory_mb() - before, read / 1e6)


def _images(place: Path = layout.IMAGES) -> Any:
    from deepcluster import artifacts

    return artifacts.open_store(place, "images", made_by="the benchmark")


def _write(source: Source, count: int, many: int, features: tuple[int, int]) -> None:
    from deepcluster import artifacts

    rng = np.random.default_rng(0)
    provenance = artifacts.Provenance(count, "benchmark")
    for place, number in ((layout.IMAGES, count), (MANY, many)):
        with artifacts.write_store(place, "images", provenance) as store:
            store.array("images", source.digits(number)[:, None], ("sample", "channel", "y", "x"))
    with artifacts.write_store(layout.features(1), "features", provenance) as store:
        store.array("features", rng.standard_normal(features, dtype=np.float32), ("sample", "feature"))


@contextmanager
def _places() -> Iterator[dict[str, str]]:
    """By name the URL of a copy of data/ there; "" for the disk itself."""
    with ExitStack() as stack:
        address = stack.enter_context(_served("moto.server", "-H", "127.0.0.1", "-p"))
        stack.enter_context(mock.patch.dict(os.environ, {**KEYS, "AWS_ENDPOINT_URL": address}))
        import urllib.request

        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=60).close()
        url = f"s3://{BUCKET}/project"
        with mock.patch.dict(os.environ, {"DEEPCLUSTER_STORE": url}):
            from deepcluster.upload import upload

            upload([], force=False)
        http = stack.enter_context(_served("http.server", "--bind", "127.0.0.1"))
        yield {"the disk": "", "S3": url, "HTTP": http}


@contextmanager
def _served(module: str, *words: str) -> Iterator[str]:
    """A server of the current folder, or of a bucket, in a process of its own; its address."""
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, *words, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _at(url: str) -> Iterator[None]:
    """In the project that has its data, for ""; else in one without, with DEEPCLUSTER_STORE. No memory for images."""
    with (
        mock.patch.dict(os.environ, {"DEEPCLUSTER_STORE": url, "DEEPCLUSTER_MEMORY_SHARE": "0"}),
        contextlib.chdir("../without" if url else "../with data"),
    ):
        yield


@contextmanager
def _projects(folder: Path) -> Iterator[None]:
    for name in ("with data", "without"):
        (folder / name).mkdir()
        (folder / name / "params.yaml").touch()
    with contextlib.chdir(folder / "with data"):
        yield


if __name__ == "__main__":
    main()
