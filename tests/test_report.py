"""Tables, curves, galleries and the HTML report."""

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deepcluster.inspection import gallery, plots, report, tables
from deepcluster.inspection.gallery import contact_png, most_central
from deepcluster.inspection.report import describe_clusters, render_report

ROWS: list[dict[str, float | int | None]] = [
    {"epoch": 1, "nmi": 0.25, "nmi_previous": None, "loss": 2.0, "smallest": 0, "largest": 30, "effective_k": 7.25},
    {"epoch": 2, "nmi": 0.5, "nmi_previous": 0.75, "loss": 1.5, "smallest": 2.0, "largest": 20, "effective_k": 8.0},
]
BASELINES = {"raw pixels": {"nmi": 0.125, "ari": 0.1}, "untrained backbone": {"nmi": 0.0625}}
EVIL = "<script>alert(1)</script>.png"


class TestTables:
    def test_plain_text_of_epochs(self) -> None:
        assert tables.plain_text(tables.epoch_cells(ROWS)).splitlines() == [
            "epoch  nmi     nmi_previous  loss    smallest  largest  effective_k",
            "    1  0.2500             -  2.0000         0       30          7.2",
            "    2  0.5000        0.7500  1.5000         2       20          8.0",
        ]

    def test_columns_without_values_are_left_out_and_the_order_is_fixed(self) -> None:
        cells = tables.epoch_cells([{"loss": 1.0, "epoch": 3, "nmi": None, "seconds": 5.0}])
        assert cells.columns == ["epoch", "loss"]
        assert cells.rows == [["3", "1.0000"]]

    def test_baselines_have_the_union_of_metrics(self) -> None:
        cells = tables.baseline_cells(BASELINES)
        assert cells.columns == ["features", "nmi", "ari"]
        assert cells.rows == [["raw pixels", "0.1250", "0.1000"], ["untrained backbone", "0.0625", "-"]]

    def test_rich_tables_hold_the_same(self) -> None:
        console = Console(file=io.StringIO(), width=200, record=True)
        console.print(tables.epochs_table(ROWS))
        console.print(tables.baselines_table(BASELINES))
        text = console.export_text()
        for value in ("effective_k", "0.7500", "7.2", "untrained backbone", "0.0625"):
            assert value in text

    def test_a_pipe_gets_whole_plain_lines_however_narrow(self) -> None:
        out = io.StringIO()
        tables.print_table(tables.epoch_cells(ROWS), file=out, width=20)
        assert out.getvalue() == tables.plain_text(tables.epoch_cells(ROWS))

    @pytest.mark.parametrize("width", [24, 120])
    def test_a_terminal_of_any_width_shows_every_number(self, width: int) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        out = Terminal()
        tables.print_table(tables.epoch_cells(ROWS), file=out, width=width)
        text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        for value in ("nmi_previous", "0.7500", "1.5000", "8.0"):
            assert value in text


class TestCurves:
    def test_well_formed_and_the_same_every_time(self) -> None:
        first = plots.curves(ROWS)
        assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
        assert plots.curves([dict(row) for row in ROWS]) == first
        with matplotlib.rc_context({"axes.grid": True, "svg.hashsalt": "other"}):
            assert plots.curves(ROWS) == first

    def test_shows_what_there_is_and_nothing_else(self) -> None:
        svg = plots.curves(ROWS)
        for text in (">agreement<", ">loss<", ">cluster sizes<", ">effective k<", ">nmi_previous<"):
            assert text in svg
        assert ">accuracy<" not in svg
        only = plots.curves([{"epoch": 1, "loss": 2.0, "nmi": None}])
        assert ">loss<" in only
        assert ">agreement<" not in only
        assert "no values to draw" in plots.curves([{"epoch": 1, "nmi": float("nan")}])

    def test_takes_the_colour_of_the_page_and_names_no_address(self) -> None:
        svg = plots.curves(ROWS)
        assert "currentColor" in svg
        assert plots.INK not in svg
        assert re.findall(r'(\S+)="?https?://', svg) == ["xmlns:xlink", "xmlns"]


class TestGallery:
    def test_nearest_first_and_ties_by_index(self) -> None:
        labels = np.array([5, 0, 5, 5, 0, 5], np.int32)
        distances = np.array([0.3, 0.2, 0.1, 0.3, 0.2, np.nan], np.float32)
        found = {
            cluster: indices.tolist() for cluster, indices in most_central(labels, distances, per_cluster=3).items()
        }
        assert found == {0: [1, 4], 5: [2, 0, 3]}
        assert most_central(labels, distances, per_cluster=9)[5].tolist() == [2, 0, 3, 5]

    def test_wrong_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
            most_central(np.zeros(2, np.int32), np.zeros(3, np.float32), per_cluster=1)

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    def test_small_images_are_enlarged_without_blur(self, channels: int, mode: str) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, channels, 28, 28), dtype=np.uint8)
        strip = Image.open(io.BytesIO(contact_png(images)))
        assert (strip.mode, strip.size) == (mode, (3 * 56 + 2 * 2, 56))
        pixels = np.asarray(strip).reshape(56, -1, channels)
        for index in range(3):
            tile = pixels[:, index * 58 : index * 58 + 56]
            np.testing.assert_array_equal(tile[::2, ::2], images[index].transpose(1, 2, 0))
            np.testing.assert_array_equal(tile[1::2, 1::2], tile[::2, ::2])
        assert (pixels[:, 56:58] == 128).all()

    def test_large_images_are_shrunk(self) -> None:
        images = np.full((2, 3, 300, 200), 9, np.uint8)
        assert Image.open(io.BytesIO(contact_png(images))).size == (2 * 64 + 2, 96)
        assert Image.open(io.BytesIO(contact_png(images, max_side=30))).size == (2 * 40 + 2, 60)

    def test_same_bytes(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
        assert contact_png(images) == contact_png(images.copy())

    @pytest.mark.parametrize("images", [np.zeros((0, 1, 8, 8), np.uint8), np.zeros((1, 2, 8, 8), np.uint8)])
    def test_wrong_images(self, images: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"a strip needs at least one image|images must be uint8"):
            contact_png(images)


class TestClusters:
    def test_sizes_purity_and_majority_by_hand(self) -> None:
        labels = np.array([0, 2, 2, 0, 2, 2], np.int32)
        targets = np.array([0, 1, 0, 1, 1, 1])
        found = describe_clusters(labels, np.zeros(6, np.float32), targets, ["cat", "dog"], 2)
        facts = [(c.number, c.size, c.purity, c.majority) for c in found]
        assert facts == [(2, 4, 0.75, "dog"), (0, 2, 0.5, "cat")]
        assert found[0].central.tolist() == [1, 2]


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects elements, attributes and text."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"repeated attribute in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def arguments(**changes: Any) -> dict[str, Any]:
    images = np.random.default_rng(1).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    return {
        "title": "A run",
        "summary": {"nmi": 0.5, "ari": 0.4, "epochs": 2, "backbone": "convnet"},
        "epochs": ROWS,
        "baselines": BASELINES,
        "images": images,
        "sample_ids": ["a.png", EVIL, 'quo"te.png', "line\nbreak.png", "e.png", "f.png"],
        "labels_N": np.array([2, 2, 2, 2, 0, 0], np.int32),
        "distances_N": np.array([4, 3, 2, 1, 1, 2], np.float32),
        "class_names": ["cat", "<b>dog</b>"],
        "targets_N": np.array([1, 0, 1, 1, 1, 0]),
        "params_text": "cluster:\n  k: 3  # <u>&amp;\n",
        "warnings": ["epoch 1: 1 of 3 clusters is empty <i>"],
    } | changes


class TestReport:
    def test_well_formed_and_nothing_can_run_or_be_fetched(self) -> None:
        html = render_report(**arguments())
        page = Page(html)
        assert page.all("script") == []
        assert page.all("b") == page.all("i") == page.all("u") == page.all("link") == []
        assert set(re.findall(r'(\S+)="?https?://', html)) == {"xmlns", "xmlns:xlink"}
        assert len(re.findall("https?://", html)) == 2 * len(page.all("svg"))
        assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def test_the_same_bytes(self) -> None:
        assert render_report(**arguments()) == render_report(**arguments())

    def test_names_are_escaped_and_still_readable(self) -> None:
        html = render_report(**arguments())
        page = Page(html)
        assert "<script" not in html
        assert EVIL in page.text
        assert 'quo"te.png' in page.text
        assert "line\\nbreak.png" in page.text
        assert "75% <b>dog</b>" in page.text
        assert "1 of 3 clusters is empty <i>" in page.text
        assert "cluster:\n  k: 3  # <u>&amp;\n" in page.text

    def test_gallery_is_of_the_most_central_images_largest_cluster_first(self) -> None:
        given = arguments()
        page = Page(render_report(**given, per_cluster=2))
        first, second = page.all("img")
        assert first["alt"] == 'The 2 most central images of cluster 2: line\\nbreak.png, quo"te.png'
        assert second["alt"] == "The 2 most central images of cluster 0: e.png, f.png"
        png = base64.b64decode((first["src"] or "").partition(",")[2])
        assert png == contact_png(given["images"][[3, 2]])
        assert "Cluster 2: 4 images, 75% <b>dog</b>" in page.text
        assert "Cluster 0: 2 images, 50% cat" in page.text

    def test_the_run_stands_beside_the_baselines(self) -> None:
        page = Page(render_report(**arguments()))
        text = " ".join(re.sub(r"\s+", " ", page.text).split())
        assert "featuresnmiari DeepCluster0.50000.4000 raw pixels0.12500.1000 untrained backbone0.0625-" in text
        assert "epochs2backboneconvnet" in text
        assert "one final k-means on the features that the last epoch's backbone gives" in text
        assert "of the backbone as epoch e - 1 left it" in text
        assert "nothing here is measured on held-out images" in text

    def test_without_targets(self) -> None:
        text = Page(render_report(**arguments(targets_N=None, class_names=None))).text
        assert "Cluster 2: 4 images\n" in text
        assert "This data set has no true labels" in text
        assert "True labels were compared" not in text

    def test_without_epochs_baselines_and_warnings(self) -> None:
        html = render_report(**arguments(epochs=[], baselines={}, warnings=[], summary={"images": 6, "nmi": None}))
        text = Page(html).text
        assert "No epoch has been evaluated." in text
        assert "Warnings" not in text
        assert "beside the baselines" not in text
        assert "nmi-" in text

    def test_phone_and_dark_mode(self) -> None:
        html = render_report(**arguments())
        assert "prefers-color-scheme: dark" in html
        names = [attributes.get("name") for attributes in Page(html).all("meta")]
        assert "viewport" in names

    def test_names_that_cannot_be_encoded_do_not_stop_it(self) -> None:
        names = ["\udcff.png", *arguments()["sample_ids"][1:]]
        html = render_report(**arguments(sample_ids=names, params_text="note: \udcff\n"))
        assert b"\\udcff.png" in html.encode("utf-8")

    def test_clusters_beyond_the_limit_are_named(self) -> None:
        page = Page(render_report(**arguments(), max_clusters=1))
        assert len(page.all("img")) == 1
        assert "The 1 smallest clusters are left out." in page.text

    def test_thumbnails_shrink_and_then_end_when_the_page_grows_too_large(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = arguments(images=np.random.default_rng(0).integers(0, 256, (6, 3, 96, 96), dtype=np.uint8))
        full = [len(contact_png(given["images"][rows])) for rows in ([3, 2, 1, 0], [4, 5])]
        monkeypatch.setattr(report, "GALLERY_BYTES", sum(full) // 3)
        page = Page(render_report(**given))
        sizes = [len(base64.b64decode((image["src"] or "").partition(",")[2])) for image in page.all("img")]
        assert len(sizes) == 2
        assert sum(sizes) <= sum(full) // 3
        smallest = len(contact_png(given["images"][[3, 2, 1, 0]], max_side=report.THUMBNAIL_SIDES[-1]))
        monkeypatch.setattr(report, "GALLERY_BYTES", smallest)
        page = Page(render_report(**given))
        assert len(page.all("img")) == 1
        assert "only the first 1 have pictures" in page.text

    def test_noise_in_many_clusters_stays_small(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (600, 3, 64, 64), dtype=np.uint8)
        names = [f"{index}.png" for index in range(600)]
        given = arguments(images=images, sample_ids=names, targets_N=None, class_names=None)
        given |= {"labels_N": np.arange(600) % 150, "distances_N": np.zeros(600, np.float32)}
        assert len(render_report(**given)) < 15_000_000

    def test_lengths_that_differ(self) -> None:
        with pytest.raises(ValueError, match=r"differ in length: \[5, 6\]"):
            render_report(**arguments(sample_ids=["a"] * 5))


def test_a_wanted_side_is_reached_by_every_small_size() -> None:
    for side in range(1, 60):
        strip = Image.open(io.BytesIO(contact_png(np.zeros((1, 1, side, side), np.uint8))))
        assert strip.size[0] >= gallery.SMALLEST_SIDE
