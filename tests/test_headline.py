"""scores.json: what of metrics.json stands in one row of `dvc metrics show`."""

from typing import Any

from deepcluster.headline import scores

UNLABELLED: dict[str, Any] = {
    "epoch": 3,
    "k": 10,
    "final": {},
    "baselines": {},
    "clusters": {"smallest": 5, "largest": 90, "empty": 0, "effective_k": 8.5},
    "pseudo_labels": {"epoch": 3, "nmi": None, "ari": None, "accuracy": None, "k": 10},
    "trust": {"images": 1797, "view_agreement": 0.75, "silhouette": 0.5, "half_stability": None, "drift": 0.25},
}
LABELLED = UNLABELLED | {
    "final": {"nmi": 0.5, "ari": 0.25, "accuracy": 0.625},
    "baselines": {"pixels": {"nmi": 0.4, "ari": 0.2, "accuracy": 0.3}},
    "held_out": {"what": "the test split", "images": 100},
    "many_to_one": {"final": 0.7, "baselines": {"pixels": 0.3}},
    "test": {"final": {"nmi": 0.45, "ari": 0.2, "accuracy": 0.6, "many_to_one": 0.65}, "baselines": {}},
    "knn": {"final": {"k20": 0.875, "k200": 0.8}, "baselines": {"pixels": {"k20": 0.7, "k200": 0.6}}},
    "probe": {"final": {"block1": 0.6, "features": 0.9}, "baselines": {}},
    "retrieval": {"final": {"map": 0.55}, "baselines": {}},
    "overclustering": {"k": 100, "final": {"nmi": 0.6, "accuracy": 0.2, "many_to_one": 0.95}, "baselines": {}},
}


def test_a_labelled_run_has_the_scores_of_its_trained_features_in_one_flat_row():
    assert scores(LABELLED) == {
        "epoch": 3,
        "k": 10,
        "nmi": 0.5,
        "ari": 0.25,
        "accuracy": 0.625,
        "many_to_one": 0.7,
        "test_nmi": 0.45,
        "test_accuracy": 0.6,
        "knn_20": 0.875,
        "knn_200": 0.8,
        "probe": 0.9,
        "map": 0.55,
        "over_many_to_one": 0.95,
        "effective_k": 8.5,
        "view_agreement": 0.75,
        "silhouette": 0.5,
    }


def test_without_labels_what_needs_none():
    assert scores(UNLABELLED) == {"epoch": 3, "k": 10, "effective_k": 8.5, "view_agreement": 0.75, "silhouette": 0.5}
    assert scores(UNLABELLED | {"trust": {}}) == {"epoch": 3, "k": 10, "effective_k": 8.5}
