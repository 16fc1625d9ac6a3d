"""Tables, curves, galleries and the HTML report."""

import base64
import hashlib
import io
import re
from functools import cache
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deepcluster.inspection import clusters, gallery, plots, tables, thumbnails
from deepcluster.inspection.clusters import describe_clusters
from deepcluster.inspection.gallery import contact_png, most_central
from deepcluster.inspection.report import Lineage, Map, render_report

ROWS: list[dict[str, float | int | None]] = [
    {"epoch": 1, "nmi": 0.25, "nmi_previous": None, "loss": 2.0, "smallest": 0, "largest": 30, "effective_k": 7.25},
    {"epoch": 2, "nmi": 0.5, "nmi_previous": 0.75, "loss": 1.5, "smallest": 2.0, "largest": 20, "effective_k": 8.0},
]
BASELINES = {"raw pixels": {"nmi": 0.125, "ari": 0.1}, "untrained backbone": {"nmi": 0.0625}}
LINEAGE: list[dict[str, float | int | None]] = [
    {"epoch": 1, "clusters": 3, "churn": None, "splits": None, "merges": None},
    {"epoch": 2, "clusters": 3, "churn": 1 / 6, "splits": 1, "merges": 1},
]
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
        assert "stroke-dasharray" in svg  # lines differ by more than colour
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
        facts = [(c.number, c.size, c.purity, c.classes) for c in found]
        assert facts == [(2, 4, 0.75, (("dog", 0.75), ("cat", 0.25))), (0, 2, 0.5, (("cat", 0.5), ("dog", 0.5)))]
        assert found[0].members["most central"].tolist() == [1, 2]

    def test_borderline_members_have_the_largest_ratios_and_random_ones_are_members(self) -> None:
        labels = np.array([0] * 9 + [1] * 3, np.int32)
        ratios = np.array([0.1, 0.9, 0.2, 0.3, 0.95, 0.4, 0.9, 0.5, 0, 1, 1, 1], np.float32)
        distances = np.arange(12, dtype=np.float32)
        first, second = describe_clusters(labels, distances, None, None, 3, ratios_N=ratios, seed=5)
        assert first.members["nearest to another cluster"].tolist() == [4, 1, 6]
        random = first.members["random"].tolist()
        assert len(set(random)) == 3
        assert set(random) <= set(range(9))
        assert list(second.members) == ["most central"]  # all of its images already
        again = describe_clusters(labels, distances, None, None, 3, ratios_N=ratios, seed=5)[0]
        assert again.members["random"].tolist() == random
        draws = {
            tuple(describe_clusters(labels, distances, None, None, 3, seed=s)[0].members["random"]) for s in range(9)
        }
        assert len(draws) > 1


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects elements, attributes and text."""

    VOID = frozenset({"meta", "img", "input"})

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
        "ratios_N": np.array([0.1, 0.4, 0.3, 0.2, 0.5, 0.6], np.float32),
        "lineage": Lineage(LINEAGE, [1, 2], [np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 2])]),
        "places": Map(np.arange(6), np.arange(12, dtype=np.float32).reshape(6, 2) ** 2, "pca"),
        "explained_d": np.array([0.5, 0.25], np.float32),
    } | changes


@cache
def rendered() -> str:
    """The page of `arguments`, drawn once."""
    return render_report(**arguments())


def quick(**changes: Any) -> str:
    """A page without curves, which take most of the time."""
    return render_report(**arguments(**({"epochs": [], "lineage": None, "explained_d": None} | changes)))


class TestReport:
    def test_well_formed_and_nothing_can_run_or_be_fetched(self) -> None:
        html = rendered()
        page = Page(html)
        script, *blocks = sorted(page.all("script"), key=len)  # only the one without attributes can run
        assert script == {}
        assert [block["type"] for block in blocks] == ["application/json"]
        (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
        code = html.rpartition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert policy == (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; " + f"script-src 'sha256-{digest}'"
        )
        assert page.all("u") == page.all("link") == []  # names and texts here hold <b>, <i> and <u>
        assert {"<b>dog</b>", "<i>"} <= set(re.findall(r"<b>dog</b>|<i>", page.text))
        assert all(set(element) <= {"style"} for element in page.all("i"))
        assert page.all("iframe") == []
        assert set(re.findall(r'(\S+)="?https?://', html)) == {"xmlns", "xmlns:xlink"}
        assert re.search(r"(src|href)=[\"'](?!data:|#)", html) is None
        assert all((image["src"] or "").startswith("data:image/webp;base64,") for image in page.all("img"))
        assert all(image["alt"] for image in page.all("img"))
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def test_the_same_bytes(self) -> None:
        assert render_report(**arguments()) == rendered()

    def test_names_are_escaped_and_still_readable(self) -> None:
        html = rendered()
        page = Page(html)
        assert "<script>alert" not in html
        assert EVIL in page.text
        assert 'quo"te.png' in page.text
        assert "line\\nbreak.png" in page.text
        assert "purity 75%, mostly <b>dog</b>" in page.text
        assert "1 of 3 clusters is empty <i>" in page.text
        assert "cluster:\n  k: 3  # <u>&amp;\n" in page.text

    def test_gallery_is_of_each_cluster_largest_first(self) -> None:
        given = arguments()
        page = Page(quick(per_cluster=2))
        pictures = page.all("img")
        assert [picture["alt"] for picture in pictures] == [
            "Cluster 2, most central: 2 images",
            "Cluster 2, nearest to another cluster: 2 images",
            "Cluster 2, random: 2 images",
            "Cluster 0, all 2: 2 images",
        ]
        content = Image.open(io.BytesIO(base64.b64decode((pictures[0]["src"] or "").partition(",")[2])))
        assert (pictures[0]["width"], pictures[0]["height"]) == ("102", "48")  # six times 8 + 1 + 8 by 8
        shown = np.asarray(content).transpose(2, 0, 1)
        np.testing.assert_array_equal(shown[:, :, :8], given["images"][3])
        np.testing.assert_array_equal(shown[:, :, 9:], given["images"][2])
        assert 'most central: line\\nbreak.png, quo"te.png' in page.text
        assert "Cluster 2: 4 images, purity 75%, mostly <b>dog</b>" in page.text
        assert "<b>dog</b> 75%, cat 25%" in page.text
        assert "Cluster 0: 2 images, purity 50%, mostly cat" in page.text

    def test_one_image_clusters_and_one_class(self) -> None:
        given = {"labels_N": np.array([0, 0, 0, 0, 1, 2], np.int32), "targets_N": np.zeros(6, int)}
        text = Page(quick(**given)).text
        assert "Cluster 1: 1 image, purity 100%, mostly cat" in text
        assert "the only image: e.png" in text

    def test_long_and_foreign_names(self) -> None:
        long = "straße/" + "ö" * 300 + "/画像.png"
        text = Page(quick(sample_ids=[long, *arguments()["sample_ids"][1:]])).text
        assert long not in text
        assert "straße/" + "ö" * 41 + "…" + "ö" * 24 + "/画像.png" in text

    def test_the_run_stands_beside_the_baselines(self) -> None:
        page = Page(rendered())
        text = " ".join(re.sub(r"\s+", " ", page.text).split())
        assert "featuresnmiari DeepCluster0.50000.4000 raw pixels0.12500.1000 untrained backbone0.0625-" in text
        assert "epochs2backboneconvnet" in text
        assert "one final k-means on the features that the last epoch's backbone gives" in text
        assert "of the backbone as epoch e - 1 left it" in text
        assert "nothing here is measured on held-out images" in text

    def test_without_targets(self) -> None:
        text = Page(quick(targets_N=None, class_names=None)).text
        assert "Cluster 2: 4 images\n" in text
        assert "This data set has no true labels" in text
        assert "True labels were compared" not in text

    def test_without_epochs_baselines_and_warnings(self) -> None:
        html = quick(epochs=[], baselines={}, warnings=[], summary={"images": 6, "nmi": None})
        text = Page(html).text
        assert "No epoch has been evaluated." in text
        assert "Warnings" not in text
        assert "beside the baselines" not in text
        assert "nmi-" in text

    def test_phone_and_dark_mode(self) -> None:
        html = rendered()
        assert "prefers-color-scheme: dark" in html
        names = [attributes.get("name") for attributes in Page(html).all("meta")]
        assert "viewport" in names

    def test_names_that_cannot_be_encoded_do_not_stop_it(self) -> None:
        names = ["\udcff.png", *arguments()["sample_ids"][1:]]
        html = quick(sample_ids=names, params_text="note: \udcff\n")
        assert b"\\udcff.png" in html.encode("utf-8")

    def test_clusters_beyond_the_limit_are_named(self) -> None:
        page = Page(quick(max_clusters=1))
        assert [found["id"] for found in page.all("article")] == ["cluster-2"]
        assert "The 1 smallest clusters are left out." in page.text

    def test_pictures_end_where_the_page_would_grow_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = thumbnails.encoded(np.full((8, 17, 3), 128, np.uint8), thumbnails.QUALITIES[-1].lossy)
        assert len(first) < 300
        monkeypatch.setattr(clusters, "GALLERY_BYTES", 300)
        page = Page(quick(per_cluster=2))
        assert len(page.all("img")) == 1
        assert "only the first 1 of 4 rows have pictures" in page.text

    def test_a_thousand_clusters_are_paged(self) -> None:
        images = np.zeros((1100, 1, 8, 8), np.uint8)
        names = [f"{index}.png" for index in range(1100)]
        given = {"images": images, "sample_ids": names, "targets_N": None, "class_names": None, "ratios_N": None}
        given |= {"labels_N": np.arange(1100) % 1050, "distances_N": np.zeros(1100, np.float32)}
        page = Page(quick(**given))
        sheets = [attributes for attributes in page.all("div") if attributes.get("class") == "sheet"]
        assert len(sheets) == 50
        assert ["hidden" in sheet for sheet in sheets] == [False] + [True] * 49
        assert "The 50 smallest clusters are left out." in page.text
        assert sum((found.get("id") or "").startswith("cluster-") for found in page.all("article")) == 1000

    def test_noise_in_many_clusters_stays_small(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (600, 3, 64, 64), dtype=np.uint8)
        names = [f"{index}.png" for index in range(600)]
        given = {"images": images, "sample_ids": names, "targets_N": None, "class_names": None, "ratios_N": None}
        given |= {"labels_N": np.arange(600) % 150, "distances_N": np.zeros(600, np.float32)}
        assert len(quick(**given)) < 15_000_000

    def test_sections_are_in_the_contents_and_left_out_without_data(self) -> None:
        def headings(html: str) -> list[str]:
            found = [attributes["href"] or "" for attributes in Page(html).all("a")]
            return [address[1:] for address in found if not address.startswith("#cluster-")]

        every = ["result", "epochs", "lineage", "map", "classes", "clusters", "variance", "timings", "parameters"]
        assert headings(rendered()) == every
        nothing = {"lineage": None, "places": None, "targets_N": None, "explained_d": None}
        fewer = ["result", "epochs", "clusters", "timings", "parameters"]
        assert headings(quick(**nothing)) == fewer

    def test_timings_only_when_given(self) -> None:
        cells = tables.timing_cells({"train": [(2.0, 100.0), (4.0, 300.0)], "report": [(2.0, 200.0)]})
        first, second = ["train", "2", "6.00", "3.00", "75.0%", "300"], ["report", "1", "2.00", "2.00", "25.0%", "200"]
        assert cells.rows == [first, second]
        assert "report.timings: true puts them here" in Page(rendered()).text
        with_them = Page(quick(timings=cells)).text
        assert "train26.003.0075.0%300" in with_them
        assert "report.timings: true puts them here" not in with_them

    def test_explained_variance_in_words(self) -> None:
        assert "2 components keep 75.0% of the features' variance" in Page(rendered()).text

    def test_lengths_that_differ(self) -> None:
        with pytest.raises(ValueError, match=r"differ in length: \[5, 6\]"):
            quick(sample_ids=["a"] * 5)


def test_a_wanted_side_is_reached_by_every_small_size() -> None:
    for side in range(1, 60):
        strip = Image.open(io.BytesIO(contact_png(np.zeros((1, 1, side, side), np.uint8))))
        assert strip.size[0] >= gallery.SMALLEST_SIDE


class TestThumbnails:
    IMAGES = np.random.default_rng(0).integers(0, 256, (30, 3, 40, 40), dtype=np.uint8)

    def test_a_sheet_has_every_image_in_its_place(self) -> None:
        found = thumbnails.sheet(self.IMAGES, np.arange(3, 10), most_bytes=10**6)
        assert (found.columns, found.side, found.shown) == (3, 40, 80)
        pixels = np.asarray(Image.open(io.BytesIO(found.content)))
        assert pixels.shape == (120, 120, 3)
        np.testing.assert_array_equal(pixels[80:, :40].transpose(2, 0, 1), self.IMAGES[9])
        np.testing.assert_array_equal(pixels[40:80, 80:].transpose(2, 0, 1), self.IMAGES[8])
        assert not pixels[80:, 40:].any()

    def test_quality_gives_way_to_size(self) -> None:
        rows = [np.arange(10 * place, 10 * place + 10) for place in range(3)]
        free = thumbnails.strips(self.IMAGES, rows, most_bytes=10**6)
        assert [(picture.width, picture.height) for picture in free] == [(2 * 409, 80)] * 3
        whole = sum(len(picture.content) for picture in free)
        for most in (whole // 2, whole // 8, whole // 40):
            found = thumbnails.strips(self.IMAGES, rows, most_bytes=most)
            assert len(found) == 3
            assert sum(len(picture.content) for picture in found) <= most
        assert found[0].height == 48  # of images of 16 pixels

    def test_a_sheet_below_its_limit_or_as_coarse_as_can_be(self) -> None:
        whole = len(thumbnails.sheet(self.IMAGES, np.arange(30), most_bytes=10**6).content)
        assert len(thumbnails.sheet(self.IMAGES, np.arange(30), most_bytes=whole // 5).content) <= whole // 5
        assert thumbnails.sheet(self.IMAGES, np.arange(30), most_bytes=1).side == 16

    def test_many_strips_are_counted_on_stderr_and_few_are_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        small = self.IMAGES[:, :, :8, :8]
        assert len(thumbnails.strips(small, [np.arange(2)] * 300, most_bytes=10**6)) == 300
        assert capsys.readouterr().err == ""
        assert len(thumbnails.strips(small, [np.arange(2)] * 301, most_bytes=10**6)) == 301
        assert capsys.readouterr().err.startswith("report: thumbnails: 301 strips, ")

    def test_the_same_bytes(self) -> None:
        one, other = (thumbnails.sheet(self.IMAGES.copy(), np.arange(30), most_bytes=20_000) for _ in range(2))
        assert one == other
