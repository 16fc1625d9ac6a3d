"""The report in a real browser: Chromium, headless. Without one these tests are skipped, and say so."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import EVIL, arguments

from deepcluster.inspection.report import Lineage, Map, render_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("DEEPCLUSTER_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as program:
        path = found or program.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("needs Chromium or Chrome on PATH, or DEEPCLUSTER_BROWSER: `apt install chromium`")
        browser = program.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in 45 clusters, so three sheets of them."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 45, 60) for _ in range(2)]
    given = arguments(
        images=rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8),
        sample_ids=[EVIL, *(f"画像 {index}.png" for index in range(1, 60))],
        labels_N=np.arange(60) % 45,
        distances_N=np.zeros(60, np.float32),
        ratios_N=np.zeros(60, np.float32),
        targets_N=np.arange(60) % 2,
        lineage=Lineage(arguments()["lineage"].rows, [1, 2], ids),
        places=Map(np.arange(60), rng.normal(size=(60, 2)).astype(np.float32), "pca"),
    )
    path = tmp_path_factory.mktemp("a report") / "report.html"
    path.write_text(render_report(**given), encoding="utf-8")
    return path


class Opened:
    """A page, and what it asked for and complained about."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def of(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(params=[("phone", "light"), ("desktop", "light"), ("desktop", "dark")], ids="-".join)
def opened(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width, height = WIDTHS[request.param[0]]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=request.param[1])
    yield Opened(context, report)
    context.close()


def wait_for(page, expression: str) -> None:
    """Until it is true; Playwright's own way to wait evaluates text inside the page, which the page forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def test_it_draws_without_errors_requests_or_sideways_scrolling(opened: Opened, report: Path) -> None:
    assert opened.of("document.documentElement.dataset.ready") == "yes"
    assert opened.problems == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [report.as_uri()]
    assert opened.of("document.documentElement.scrollWidth <= innerWidth")
    sizes = opened.of("[...document.querySelectorAll('.curves svg, .flow svg, .map svg')].map(s => s.getBBox().width)")
    assert len(sizes) == 9
    assert min(sizes) > 50
    assert opened.of("[...document.images].every(image => image.alt.length > 0)")
    assert opened.of(
        "[...document.querySelectorAll('button, input, select')].every(e => e.labels?.length || e.textContent.trim())"
    )


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark(opened: Opened) -> None:
    colour = (
        "(selector, name) => getComputedStyle(document.querySelector(selector))[name].match(/[\\d.]+/g).map(Number)"
    )
    page = opened.page.evaluate(f"({colour})('body', 'backgroundColor')")[:3]
    for selector in ("body", ".soft", "nav a", "summary"):
        assert contrast(page, opened.page.evaluate(f"({colour})('{selector}', 'color')")[:3]) >= 4.5, selector
    box = opened.page.evaluate(f"({colour})('.warnings', 'backgroundColor')")[:3]
    assert contrast(box, opened.page.evaluate(f"({colour})('.warnings', 'color')")[:3]) >= 4.5
    dark = opened.of("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(page) < 200) == dark
    opened.page.click("#theme")
    assert (sum(opened.page.evaluate(f"({colour})('body', 'backgroundColor')")[:3]) < 200) != dark


def test_clusters_are_paged_and_found(opened: Opened) -> None:
    page = opened.page
    shown = "[...document.querySelectorAll('.sheet')].map(sheet => sheet.offsetHeight > 0)"
    assert opened.of(shown) == [True, False, False]
    assert page.locator(".where").first.inner_text() == "Page 1 of 3"
    assert page.locator(".back").first.is_disabled()
    page.locator(".on").last.click()
    assert opened.of(shown) == [False, True, False]
    page.fill("#jump", "44")
    page.keyboard.press("Enter")
    assert opened.of(shown) == [False, False, True]
    assert page.locator("#cluster-44").is_visible()
    loaded = "[...document.querySelectorAll('#cluster-44 img')].every(i => i.complete && i.naturalWidth > 0)"
    wait_for(page, loaded)
    page.fill("#jump", "99")
    page.keyboard.press("Enter")
    assert page.locator("#jumped").inner_text() == "There is no cluster 99 on this page."
    page.locator(".matrix a", has_text="0").first.click()
    wait_for(page, "location.hash.startsWith('#cluster-')")
    assert page.locator(opened.of("location.hash")).is_visible()
    assert opened.problems == []


def test_the_map_shows_the_image_pointed_at_by_pointer_and_by_keys(opened: Opened) -> None:
    page = opened.page
    drawing = page.locator(".map svg")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    data = opened.of("JSON.parse(document.querySelector('#map-data').textContent)")
    scale = box["width"] / 1000
    assert page.locator("#tip").is_hidden()
    page.mouse.move(box["x"] + data["xy"][10] * scale, box["y"] + data["xy"][11] * scale)
    assert page.locator("#tip").inner_text() == "画像 5.png: cluster 5, class <b>dog</b>"
    assert opened.of("getComputedStyle(document.querySelector('#tip div')).backgroundImage").startswith(
        'url("data:image/webp'
    )
    drawing.focus()
    page.mouse.move(0, 0)
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text() == f"{EVIL}: cluster 0, class cat"
    assert page.locator("#tip b").count() == page.locator("#tip script").count() == 0
    page.locator(".legend button[data-id=c3]").click()
    assert opened.of("[...document.querySelectorAll('.dots path.on')].map(path => path.dataset.id)") == ["c3"]
    page.select_option("#colouring", "class")
    assert page.locator(".legend button[data-id=t1]").is_visible()
    assert page.locator(".legend button[data-id=c3]").is_hidden()
    assert opened.problems == []


def test_without_scripts_all_clusters_are_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#cluster-44").is_visible()
    assert page.locator(".pager").first.is_hidden()
    context.close()


@pytest.mark.slow
def test_sixty_thousand_images_and_a_thousand_clusters(browser: Any, tmp_path: Path) -> None:
    """Noise, the worst of images to compress."""
    rng = np.random.default_rng(0)
    count = 60_000
    labels = rng.integers(0, 1000, count)
    given = arguments(
        images=rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
        sample_ids=[f"a folder/of long names/{'x' * 40}/{index:08}.png" for index in range(count)],
        labels_N=labels,
        distances_N=rng.random(count),
        ratios_N=rng.random(count),
        targets_N=rng.integers(0, 2, count),
        lineage=Lineage(arguments()["lineage"].rows, [1, 2], [labels, rng.permutation(labels)]),
        places=Map(np.arange(0, count, 15), rng.normal(size=(4000, 2)).astype(np.float32), "pca"),
    )
    path = tmp_path / "report.html"
    path.write_text(render_report(**given), encoding="utf-8")
    assert path.stat().st_size < 15_000_000
    opened = Opened(browser.new_context(), path)
    assert opened.of("document.documentElement.dataset.ready") == "yes"
    assert opened.problems == []
    milliseconds = opened.of("performance.timing.loadEventEnd - performance.timing.navigationStart")
    print(f"{path.stat().st_size / 1e6:.1f} MB, loaded after {milliseconds} ms")
