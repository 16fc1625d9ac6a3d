"""The flow diagram, the map, the confusion matrix and the warnings, each by hand-made numbers."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from deepcluster.clustering.health import Limits
from deepcluster.inspection import flow
from deepcluster.inspection.advice import warnings_of
from deepcluster.inspection.confusion import OTHERS, confusion, matrix
from deepcluster.inspection.page import chosen, data_block, name_text, text
from deepcluster.inspection.scatter import pixels, scatter
from deepcluster.metrics import hungarian_accuracy


class TestFlow:
    def test_sizes_and_flows_with_the_rest_summed(self):
        one, two = np.array([0, 0, 0, 7, 7, 3, 5]), np.array([0, 7, 7, 7, 7, 5, 3])
        assert flow.largest([one, two], 2) == [0, 7]
        sizes, moved = flow.tables([one, two], [0, 7])
        assert sizes.tolist() == [[3, 2, 2], [1, 4, 2]]
        assert moved.tolist() == [[[1, 2, 0], [0, 2, 0], [0, 0, 2]]]

    def test_ids_beyond_the_followed_ones_are_others(self):
        sizes, _ = flow.tables([np.array([9, 1, 0])], [1])
        assert sizes.tolist() == [[1, 2]]

    def test_the_drawing_has_a_bar_a_cluster_and_a_band_a_flow(self):
        one, two = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 1, 2])
        svg = ElementTree.fromstring(flow.diagram([3, 8], [one, two]))
        bars, bands = svg.findall("rect"), svg.findall("path")
        assert [bar.findtext("title") for bar in bars] == [
            "epoch 3, cluster 0: 3 images",
            "epoch 3, cluster 1: 2 images",
            "epoch 3, cluster 2: 1 image",
            "epoch 8, cluster 0: 1 image",
            "epoch 8, cluster 1: 4 images",
            "epoch 8, cluster 2: 1 image",
        ]
        heights = [float(bar.get("height", 0)) for bar in bars]
        assert heights[0] == pytest.approx(3 * heights[2], abs=0.2)
        assert [band.findtext("title") for band in bands] == [
            "1 image from cluster 0 (epoch 3) to cluster 0 (epoch 8)",
            "2 images from cluster 0 (epoch 3) to cluster 1 (epoch 8)",
            "2 images from cluster 1 (epoch 3) to cluster 1 (epoch 8)",
            "1 image from cluster 2 (epoch 3) to cluster 2 (epoch 8)",
        ]
        assert svg.get("aria-label", "").startswith("Images going from cluster to cluster over 2 epochs")

    def test_bands_of_a_bar_do_not_overlap(self):
        one, two = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 1, 2])
        svg = ElementTree.fromstring(flow.diagram([1, 2], [one, two]))
        ends = [re.match(r"M\S+ (\S+)C.* (\S+)v(\S+?)C", path.get("d", "")).groups() for path in svg.findall("path")]
        numbers = [tuple(map(float, end)) for end in ends]
        assert numbers[1][0] == pytest.approx(numbers[0][0] + numbers[0][2], abs=0.2)  # both leave cluster 0
        assert numbers[2][1] == pytest.approx(numbers[1][1] + numbers[1][2], abs=0.2)  # both enter cluster 1

    def test_a_thousand_clusters_stay_small(self):
        rng = np.random.default_rng(0)
        epochs = [rng.integers(0, 1000, 20_000) for _ in range(20)]
        assert len(flow.diagram(range(20), epochs)) < 1_000_000


class TestMap:
    def test_one_scale_for_both_axes_and_the_second_upwards(self):
        places = pixels(np.array([[0, 0], [2, 0], [0, 1]], np.float32))
        assert places.tolist() == [[20, 580], [980, 580], [20, 100]]

    def test_identical_places(self):
        assert pixels(np.zeros((3, 2), np.float32)).tolist() == [[500, 340]] * 3

    def drawn(self, **changes):
        images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
        return scatter(
            **{
                "plane_S2": np.array([[0, 0], [1, 1], [2, 0]], np.float32),
                "sample_S": np.array([0, 2, 4]),
                "method": "pca",
                "labels_N": np.array([7, 0, 7, 0, 3], np.int32),
                "targets_N": np.array([1, 0, 0, 0, 1]),
                "class_names": ["<i>cat", "dog"],
                "images": images,
                "sample_ids": ["</script><b>.png", "b", "c", "d", "e"],
            }
            | changes
        )

    def data(self, html):
        return json.loads(re.search(r'<script type="application/json" id="map-data">(.*?)</script>', html).group(1))

    def test_the_data_of_the_images_on_the_map_alone(self):
        data = self.data(self.drawn())
        assert data["cluster"] == [7, 7, 3]
        assert data["target"] == [1, 0, 1]
        assert data["names"] == ["</script><b>.png", "c", "e"]
        assert data["classes"] == ["<i>cat", "dog"]
        assert (data["sprite"]["side"], data["sprite"]["shown"], data["sprite"]["columns"]) == (8, 48, 2)

    def test_a_path_a_cluster_and_one_a_class_the_frequent_first(self):
        html = self.drawn()
        assert re.findall(r'<path class="s0" data-id="(\w+)"', html) == ["c7", "c3", "t1", "t0"]
        assert re.findall(r'<button type="button" data-id="(\w+)"', html) == ["c7", "c3", "t1", "t0"]
        assert "&lt;i&gt;cat</button>" in html

    def test_without_targets(self):
        html = self.drawn(targets_N=None, class_names=None)
        assert "true class" not in html
        assert "target" not in self.data(html)

    def test_looks_are_told_apart_by_more_than_colour_and_the_rest_is_grey(self):
        labels = np.arange(25)
        html = self.drawn(
            plane_S2=np.random.default_rng(0).normal(size=(25, 2)),
            sample_S=labels,
            labels_N=labels,
            targets_N=None,
            images=np.zeros((25, 1, 8, 8), np.uint8),
            sample_ids=list(map(str, labels)),
        )
        looks = re.findall(r'<path class="(s\d)" data-id="c\d+" stroke="(\S+)"', html)
        assert len(set(looks[:18])) == 18
        assert set(looks[18:]) == {("s0", "#8a8f96")}
        assert "the other 7 are grey" in html


class TestConfusion:
    def test_by_hand(self):
        targets = np.array([0, 0, 0, 1, 1, 2, 2, 2])
        labels = np.array([5, 5, 8, 8, 8, 5, 9, 9])
        found = confusion(targets, labels)
        assert found.classes == [0, 1, 2]
        assert found.clusters == [5, 8, 9]
        assert found.counts.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 2]]
        assert found.matched == [0, 1, 2]
        right = sum(found.counts[row, column] for row, column in enumerate(found.matched))
        assert right / 8 == hungarian_accuracy(labels, targets)

    def test_more_clusters_than_classes_come_after_the_matched_ones_by_size(self):
        targets = np.repeat([0, 1], [6, 3])
        labels = np.array([4, 4, 4, 1, 1, 0, 2, 2, 2])
        found = confusion(targets, labels)
        assert found.clusters == [4, 2, 1, 0]
        assert found.matched == [0, 1]

    def test_fewer_clusters_than_classes(self):
        found = confusion(np.array([0, 0, 1, 2]), np.array([3, 3, 3, 3]))
        assert (found.clusters, found.matched) == ([3], [0, -1, -1])

    def test_what_does_not_fit_is_summed(self):
        targets = np.repeat([0, 1, 2], [5, 1, 4])
        labels = np.concatenate([np.repeat([0, 1], [4, 1]), [2], np.repeat([3, 1], [3, 1])])
        found = confusion(targets, labels, most_rows=2, most_columns=2)
        assert found.classes == [0, 2, OTHERS]
        assert found.clusters == [0, 3, OTHERS]
        assert found.counts.tolist() == [[4, 0, 1], [0, 3, 1], [0, 0, 1]]
        html = matrix(found, ["a", "b", "<u>"])
        assert "other classes" in html
        assert "&lt;u&gt;" in html
        assert '<a href="#cluster-3">3</a>' in html
        assert "<b>4</b>" in html


LIMITS = Limits(min_effective_k=0.2, max_largest_share=0.5, max_empty=0.5, min_feature_rank=1.05, max_drift=1.0)


class TestWarnings:
    def given(self, **changes):
        row = {"epoch": 1, "k": 10, "largest": 20, "effective_k": 9.0, "empty": 0, "feature_rank": 5.0}
        settings = {
            "epochs": [row, row | {"epoch": 2}, row | {"epoch": 3}],
            "lineage": [],
            "sizes_K": np.full(10, 10),
            "final": {"nmi": 0.5},
            "baselines": {},
            "limits": LIMITS,
            "classes": 3,
            "components": 64,
            "methods": {"cluster": "kmeans", "refine": "kmeans"},
            "refined_after": None,
        }
        return settings | changes

    def epochs(self, **worst):
        first, second, third = self.given()["epochs"]
        return [first, second | worst, third | worst]

    def test_none_for_a_sound_run(self):
        assert warnings_of(**self.given(baselines={"pixels": {"nmi": 0.4}}, lineage=[{"churn": 0.5}])) == []

    @pytest.mark.parametrize(
        ("worst", "sentence"),
        [
            (
                {"feature_rank": 1.01},
                "Epochs 2 to 3: collapse: the features varied along as few as 1.01 directions (effective rank), so all "
                "images looked alike to the backbone; try a lower train.optimizer.lr, more augmentation, or "
                "pca.whiten.",
            ),
            (
                {"largest": 60},
                "Epochs 2 to 3: collapse: one cluster held up to 60% of the images; try another cluster.k, pca.whiten, "
                "cluster.restarts, or a lower train.optimizer.lr.",
            ),
            (
                {"effective_k": 1.5},
                "Epochs 2 to 3: collapse: the clusters were as uneven as if only 15% of them were used (effective k); "
                "try a smaller cluster.k, pca.whiten, or a lower train.optimizer.lr.",
            ),
            (
                {"empty": 6},
                "Epochs 2 to 3: collapse: up to 60% of the clusters were empty, since there were fewer distinct images "
                "than clusters; try a smaller cluster.k, or look for duplicated images.",
            ),
        ],
    )
    def test_epochs_that_collapsed(self, worst, sentence):
        assert warnings_of(**self.given(epochs=self.epochs(**worst))) == [sentence]

    def test_at_the_limits_is_sound(self):
        edge = {"feature_rank": 1.05, "largest": 55, "effective_k": 2.0, "empty": 5}
        assert warnings_of(**self.given(epochs=self.epochs(**edge))) == []

    def test_a_drift_over_its_limit(self):
        limits, rows = replace(LIMITS, max_drift=0.5), self.epochs(nmi_previous=0.25)
        assert warnings_of(**self.given(epochs=rows, limits=limits)) == [
            "Epochs 2 to 3: drift: the labels shared as little as 0.25 NMI with those of the epoch before; try "
            "a smaller cluster.k or a lower train.optimizer.lr."
        ]
        assert warnings_of(**self.given(epochs=self.epochs(nmi_previous=0.5), limits=limits)) == []

    def test_one_component_has_rank_1_always(self):
        assert warnings_of(**self.given(epochs=self.epochs(feature_rank=1.0), components=1)) == []

    def test_refined_epochs_are_judged_by_their_own_k_and_told_their_own_settings(self):
        row = self.given()["epochs"][0]
        sound = [row | {"k": 30, "effective_k": 20.0}, row | {"epoch": 2, "k": 4, "effective_k": 3.5}]
        assert warnings_of(**self.given(epochs=sound, refined_after=1)) == []
        bad = [row | {"k": 30, "effective_k": 3.0}, row | {"epoch": 2, "k": 4, "largest": 70}]
        assert warnings_of(**self.given(epochs=bad, refined_after=1)) == [
            "Epoch 1: collapse: the clusters were as uneven as if only 10% of them were used (effective k); try a "
            "smaller cluster.k, pca.whiten, or a lower train.optimizer.lr.",
            "Epoch 2: collapse: one cluster held up to 70% of the images; try another refine.k, refine.whiten, "
            "refine.restarts, or a lower train.optimizer.lr.",
        ]

    def test_images_that_move_because_k_changes_are_no_restless_labels(self):
        rows = [{"churn": None}, {"churn": 0.8}, {"churn": 0.8}]
        assert warnings_of(**self.given(lineage=rows, refined_after=2)) == []
        assert warnings_of(**self.given(lineage=rows, refined_after=1)) == [
            "In the last epoch 80% of the images went to another cluster: the pseudo-labels have not settled; try more "
            "epochs, a lower train.optimizer.lr or a smaller refine.k."
        ]

    @pytest.mark.parametrize(
        ("methods", "early", "late"),
        [
            (
                {"cluster": "spectral", "refine": "spectral"},
                "another cluster.k, other cluster.spectral.neighbours or extra_vectors, pca.whiten",
                "another refine.k, other cluster.spectral.neighbours or extra_vectors, refine.whiten",
            ),
            (
                {"cluster": "pic", "refine": "kmeans"},
                "another cluster.pic.sigma, pca.whiten",
                "another refine.k, refine.whiten, refine.restarts",
            ),
        ],
    )
    def test_advice_is_for_the_method_of_the_epoch(self, methods, early, late):
        first, second = warnings_of(**self.given(epochs=self.epochs(largest=60), methods=methods, refined_after=2))
        assert first.endswith(f"try {early}, or a lower train.optimizer.lr.")
        assert second.endswith(f"try {late}, or a lower train.optimizer.lr.")

    def test_pic_is_told_what_makes_fewer_clusters(self):
        rows, methods = [{"churn": None}, {"churn": 0.8}], {"cluster": "pic"}
        (sentence,) = warnings_of(**self.given(lineage=rows, methods=methods))
        assert sentence.endswith("a lower train.optimizer.lr or more cluster.pic.neighbours.")

    def test_the_result_is_held_to_the_limits_of_params(self):
        sizes = np.array([20, 70, 5, 5])
        (sentence,) = warnings_of(**self.given(sizes_K=sizes))
        assert sentence.startswith("Final clustering: collapse: the largest of 4 clusters holds 70% of the images; ")
        assert warnings_of(**self.given(sizes_K=sizes, limits=replace(LIMITS, max_largest_share=0.7))) == []

    def test_the_result(self):
        sizes = np.array([1, 97, 1, 1])
        assert warnings_of(**self.given(sizes_K=sizes)) == [
            "Final clustering: collapse: the largest of 4 clusters holds 97% of the images; try an earlier epoch, a "
            "lower train.optimizer.lr or more augmentation.",
            "3 of the 4 final clusters hold a single image: outliers, or evaluate.k is too large for this data set.",
        ]

    def test_a_baseline_that_is_better(self):
        assert warnings_of(**self.given(baselines={"k-means on raw pixels": {"nmi": 0.75}})) == [
            "k-means on raw pixels gives better clusters than the trained features (nmi 0.7500 against 0.5000): this "
            "training did not help; try more epochs, a larger cluster.k or other augmentation."
        ]

    def test_one_class_only(self):
        assert warnings_of(**self.given(classes=1, baselines={"pixels": {"nmi": 0.75}})) == [
            "All images have the same true label, so nmi, ari and accuracy say nothing about the clusters."
        ]

    def test_labels_that_have_not_settled(self):
        assert warnings_of(**self.given(lineage=[{"churn": None}, {"churn": 0.8}], classes=None)) == [
            "In the last epoch 80% of the images went to another cluster: the pseudo-labels have not settled; try more "
            "epochs, a lower train.optimizer.lr or a smaller cluster.k."
        ]


class TestText:
    def test_names(self):
        assert name_text("a" * 80) == "a" * 80
        assert name_text("a" * 50 + "b" * 50) == "a" * 48 + "…" + "b" * 31
        assert name_text("<&\"'>\u202e\n") == "&lt;&amp;&quot;&#x27;&gt;\\u202e\\n"
        assert text(3) == "3"

    def test_no_name_ends_a_block_of_data(self):
        block = data_block("d", ["</script><!--", "é\u2028"])
        assert block.count("<") == 2
        assert json.loads(block.partition(">")[2].rpartition("<")[0]) == ["</script><!--", "é\u2028"]

    def test_evenly_chosen(self):
        assert chosen(range(5), 5) == [0, 1, 2, 3, 4]
        assert chosen(range(100), 3) == [0, 50, 99]
