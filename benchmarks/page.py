"""The report at many images: size of the file, time to make it, and to open it in Chromium beside an empty page."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import Source, noise
from benchmarks.results import number, table

LARGEST_MB = 15.0
LONGEST_SECONDS = 3.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EMPTY = "<!doctype html><title>empty</title>"


@dataclass(frozen=True)
class Page:
    """A report of noise, the worst of images to compress. Seconds to open: medians; None without a browser."""

    images: int
    size: str
    clusters: int
    epochs: int
    megabytes: float
    rendering_seconds: float
    opening_seconds: float | None
    empty_seconds: float | None


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Page]:
    """The table for grey and colour images; --mnist takes MNIST for the grey ones."""
    count = images or (2_000 if quick else 60_000)
    clusters, rounds = min(1000, count // 2), (1 if quick else 5)
    pictures = {
        "grey 28x28": lambda: source.digits(count)[:, None] if source.mnist else noise(count, 1, 28, 28),
        "colour 32x32": lambda: noise(count, 3, 32, 32),
    }
    with _opener(output) as opened:
        found = [_page(name, made(), clusters, 20, rounds, opened, output) for name, made in pictures.items()]
    print(table(("images", "clusters", "epochs", "file", "rendering", "opening", "empty page"), [*map(_row, found)]))
    print(f"targets: at most {LARGEST_MB:.0f} MB, opened within {LONGEST_SECONDS:.0f} s: {_verdict(found)}")
    return found


def _page(
    name: str,
    images_NCHW: NDArray[np.uint8],
    clusters: int,
    epochs: int,
    rounds: int,
    opened: Callable[[Path], float] | None,
    output: Path,
) -> Page:
    """Rendered once, then opened in turns with an empty page."""
    path, empty = output / "report.html", output / "empty.html"
    empty.write_text(EMPTY, encoding="utf-8")
    started = time.perf_counter()
    path.write_text(_rendered(images_NCHW, clusters, epochs), encoding="utf-8")
    rendering = time.perf_counter() - started
    times: list[tuple[float, float]] = []
    for _ in range(rounds if opened else 0):
        assert opened is not None
        times.append((opened(path), opened(empty)))
    own, other = (statistics.median(each) for each in zip(*times, strict=True)) if times else (None, None)
    return Page(len(images_NCHW), name, clusters, epochs, path.stat().st_size / 1e6, rendering, own, other)


def _rendered(images_NCHW: NDArray[np.uint8], clusters: int, epochs: int) -> str:
    """The page of random clusters: long file names, ten classes, a tenth of the images moving each epoch."""
    from deepcluster.inspection.report import Lineage, Map, render_report

    rng, count = np.random.default_rng(0), len(images_NCHW)
    history = [rng.integers(0, clusters, count)]
    for _ in range(1, epochs):
        moved = rng.random(count) < 0.1
        history.append(np.where(moved, rng.integers(0, clusters, count), history[-1]))
    numbers = [*range(1, epochs + 1)]
    rows: list[dict[str, float | int | None]] = [
        {"epoch": epoch, "clusters": clusters, "churn": None if epoch == 1 else 0.1, "splits": 0, "merges": 0}
        for epoch in numbers
    ]
    mapped = np.sort(rng.permutation(count)[: min(count, 4000)])
    return render_report(
        title="noise",
        summary={"nmi": 0.5, "k": clusters},
        epochs=[{"epoch": epoch, "nmi": 0.5, "loss": 1 / epoch} for epoch in numbers],
        baselines={"raw pixels": {"nmi": 0.25}},
        images=images_NCHW,
        sample_ids=[f"a folder/of long names/{'x' * 40}/{index:08}.png" for index in range(count)],
        labels_N=history[-1],
        distances_N=rng.random(count),
        ratios_N=rng.random(count),
        class_names=[f"class {index}" for index in range(10)],
        targets_N=rng.integers(0, 10, count),
        params_text="seed: 1\n",
        warnings=[],
        lineage=Lineage(rows, numbers, history),
        places=Map(mapped, rng.normal(size=(len(mapped), 2)).astype(np.float32), "pca"),
    )


@contextmanager
def _opener(output: Path) -> Iterator[Callable[[Path], float] | None]:
    """Seconds from the start of navigation until a file has loaded; None, and why, where there is no browser."""
    name = os.environ.get("DEEPCLUSTER_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        name = None
    if name is None:
        print("no browser: opening is not measured (needs playwright, and Chromium on PATH or DEEPCLUSTER_BROWSER)")
        yield None
        return
    with sync_playwright() as program:
        browser = program.chromium.launch(executable_path=name)
        yield lambda path: _seconds(browser, path)
        browser.close()


def _seconds(browser: Any, path: Path) -> float:
    """In a context of its own, so that nothing is cached."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.goto(path.resolve().as_uri(), wait_until="load")
        took = page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
        return float(took) / 1000
    finally:
        context.close()


def _row(found: Page) -> tuple[str, ...]:
    return (
        f"{found.images:,} {found.size}",
        f"{found.clusters:,}",
        str(found.epochs),
        f"{found.megabytes:.1f} MB",
        f"{number(found.rendering_seconds)} s",
        *(
            "not measured" if seconds is None else f"{number(seconds)} s"
            for seconds in (found.opening_seconds, found.empty_seconds)
        ),
    )


def _verdict(found: list[Page]) -> str:
    large = any(page.megabytes > LARGEST_MB for page in found)
    slow = any((page.opening_seconds or 0) > LONGEST_SECONDS for page in found)
    return "MISSED" if large or slow else "met"
