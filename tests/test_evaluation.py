"""k-NN, retrieval, naming of clusters, held-out rows: against numbers by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from deepcluster.evaluation.held_out import A_FIFTH, TEST_SPLIT, Examples, held_out, stratified_fifth
from deepcluster.evaluation.naming import NO_CLASS, classes_of_clusters, scores_elsewhere
from deepcluster.evaluation.neighbours import knn_accuracies, most_similar, votes
from deepcluster.evaluation.retrieval import average_precision, chosen_queries, mean_average_precision


def noisy(classes: int = 5, rows: int = 300, width: int = 8, spread: float = 0.8) -> Examples:
    """Overlapping classes: no measure of them is 0 or 1."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width))
    targets = rng.integers(0, classes, rows)
    values = (centres[targets] + rng.normal(size=(rows, width)) * spread).astype(np.float32)
    cut = rows * 2 // 3
    return Examples(values[:cut], targets[:cut], values[cut:], targets[cut:])


class TestNearestNeighbours:
    def test_votes_by_hand(self):
        """One neighbour at s = 0.9 weighs exp(0.9 / 0.07), two at 0.8 together 2 exp(0.8 / 0.07): 4.17 to 2."""
        similarities = np.array([[0.9, 0.8, 0.8], [0.9, 0.88, 0.88], [0.5, 0.5, -1.0]])
        classes = np.array([[2, 1, 1], [2, 1, 1], [3, 0, 0]])
        assert votes(similarities, classes).tolist() == [2, 1, 0]  # the last one is a draw: the lowest number
        assert votes(similarities, classes, temperature=10.0).tolist() == [1, 1, 0]

    def test_accuracy_by_hand(self):
        """Two directions; the third row to score lies nearer to the wrong one."""
        learn = np.array([[1, 0], [2, 0.2], [0, 1], [0.1, 5]], np.float32)
        score = np.array([[3, 0.1], [0, 2], [1, 2]], np.float32)
        examples = Examples(learn, np.array([0, 0, 1, 1]), score, np.array([0, 1, 0]))
        assert knn_accuracies(examples, [1, 2]) == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}

    @pytest.mark.parametrize("k", [1, 20, 150])
    def test_scikit_learn_with_the_same_weights(self, k):
        examples = noisy()
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
        theirs.fit(examples.learn_LD, examples.learn_targets_L)
        expected = theirs.score(examples.score_SD, examples.score_targets_S)
        assert 0.3 < expected < 1
        assert knn_accuracies(examples, [k]) == {k: expected}

    def test_neighbours_are_by_cosine_nearest_first_and_zeros_are_like_nothing(self):
        learn = np.array([[100, 1], [0, 0], [1, 1]], np.float32)
        similarities, rows = most_similar(learn, np.array([[0.5, 0.5]], np.float32), 3)
        assert rows.tolist() == [[2, 0, 1]]
        np.testing.assert_allclose(similarities, [[1, 101 / np.sqrt(2 * 10001), 0]], atol=1e-6)

    def test_k_beyond_the_rows_to_learn_from_is_left_out(self):
        examples = noisy()
        assert list(knn_accuracies(examples, [20, 200, 201])) == [20, 200]
        assert knn_accuracies(examples, [201]) == {}
        assert knn_accuracies(examples, []) == {}

    def test_many_blocks_give_what_one_gives(self, monkeypatch):
        examples = noisy()
        whole = most_similar(examples.learn_LD, examples.score_SD, 7)
        monkeypatch.setattr("deepcluster.evaluation.neighbours._BLOCK_ROWS", 9)
        blocks = most_similar(examples.learn_LD, examples.score_SD, 7)
        np.testing.assert_array_equal(whole[1], blocks[1])
        np.testing.assert_allclose(whole[0], blocks[0], atol=1e-6)


class TestRetrieval:
    def test_average_precision_by_hand(self):
        """Ranked relevant, not, relevant, not, relevant: precisions 1/1, 2/3, 3/5."""
        scores = np.array([0.1, 0.5, 0.3, 0.9, 0.7], np.float32)
        relevant = np.array([True, True, False, True, False])
        assert average_precision(scores, relevant) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)

    def test_equal_scores_share_the_last_rank(self):
        assert average_precision(np.array([1, 1, 1, 0.0]), np.array([True, False, False, True])) == pytest.approx(
            (1 / 3 + 2 / 4) / 2
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_scikit_learn(self, seed):
        rng = np.random.default_rng(seed)
        scores = np.round(rng.normal(size=200), 1).astype(np.float32)  # with many ties
        relevant = rng.random(200) < 0.2
        assert average_precision(scores, relevant) == pytest.approx(average_precision_score(relevant, scores))

    def test_mean_over_queries_against_scikit_learn(self):
        examples = noisy()
        unit = examples.learn_LD / np.linalg.norm(examples.learn_LD, axis=1, keepdims=True)
        expected = [
            average_precision_score(examples.learn_targets_L == target, unit @ (query / np.linalg.norm(query)))
            for query, target in zip(examples.score_SD, examples.score_targets_S, strict=True)
        ]
        assert mean_average_precision(examples, seed=0) == pytest.approx(np.mean(expected), abs=1e-6)
        chosen = chosen_queries(len(expected), seed=3, most=20)
        found = mean_average_precision(examples, seed=3, most_queries=20)
        assert found == pytest.approx(np.mean(np.array(expected)[chosen]), abs=1e-6)
        assert found != pytest.approx(np.mean(expected), abs=1e-3)

    def test_queries_of_a_class_that_is_not_ranked_are_left_out(self):
        learn = np.eye(2, dtype=np.float32)
        examples = Examples(learn, np.array([0, 1]), learn, np.array([0, 7]))
        assert mean_average_precision(examples, seed=0) == 1.0
        assert mean_average_precision(Examples(learn, np.array([0, 1]), learn, np.array([7, 7])), seed=0) is None

    def test_nothing_relevant(self):
        with pytest.raises(ValueError, match="at least one relevant entry"):
            average_precision(np.zeros(3), np.zeros(3, bool))

    def test_queries_are_drawn_once_each(self):
        assert chosen_queries(5, seed=0, most=5).tolist() == [0, 1, 2, 3, 4]
        drawn = chosen_queries(1000, seed=0, most=50)
        assert len(set(drawn)) == 50
        assert drawn.tolist() == sorted(drawn)
        assert drawn.tolist() != chosen_queries(1000, seed=1, most=50).tolist()


class TestNaming:
    """Clusters 0, 1, 3 of four; class 5 in the majority of two of them."""

    labels = np.array([0, 0, 0, 0, 1, 1, 1, 3, 3])
    targets = np.array([5, 5, 5, 8, 5, 5, 8, 8, 8])

    def test_by_hand(self):
        one = classes_of_clusters(self.labels, self.targets, k=4, how="one_to_one")
        many = classes_of_clusters(self.labels, self.targets, k=4, how="many_to_one")
        assert one.tolist() == [5, NO_CLASS, NO_CLASS, 8]
        assert many.tolist() == [5, 5, NO_CLASS, 8]

    def test_names_come_from_the_training_images_alone(self):
        """Right of the other images: 0 -> 5 and 3 -> 8 one to one; 1 -> 5 too, many to one; cluster 2 has no name."""
        labels, targets = np.array([0, 1, 1, 2, 3, 3]), np.array([5, 5, 5, 8, 8, 5])
        found = scores_elsewhere(self.labels, self.targets, labels, targets, k=4)
        assert found["accuracy"] == pytest.approx(2 / 6)
        assert found["many_to_one"] == pytest.approx(4 / 6)
        matched_anew = scores_elsewhere(labels, targets, labels, targets, k=4)
        assert (matched_anew["accuracy"], matched_anew["many_to_one"]) == (pytest.approx(3 / 6), pytest.approx(5 / 6))
        assert (found["nmi"], found["ari"]) == (matched_anew["nmi"], matched_anew["ari"])


class TestHeldOut:
    def test_a_fifth_of_each_class(self):
        targets = np.repeat([0, 1, 2, 3], [50, 23, 2, 1])
        taken = stratified_fifth(targets, seed=0)
        assert np.bincount(targets[taken], minlength=4).tolist() == [10, 5, 1, 0]
        assert taken.tolist() == sorted(set(taken))
        assert (
            taken.tolist() == stratified_fifth(targets, seed=0).tolist() != stratified_fifth(targets, seed=1).tolist()
        )

    def test_without_a_test_split_rows_are_parted(self):
        rows = np.arange(40, dtype=np.float32)[:, None]
        targets = np.arange(40) % 4
        found = held_out(targets, None, seed=0)
        examples = found.examples(rows, None)
        assert sorted([*examples.learn_LD[:, 0], *examples.score_SD[:, 0]]) == rows[:, 0].tolist()
        assert examples.learn_targets_L.tolist() == (examples.learn_LD[:, 0] % 4).tolist()
        assert examples.score_targets_S.tolist() == (examples.score_SD[:, 0] % 4).tolist()
        assert found.described == {"what": A_FIFTH, "images": 8}

    def test_a_test_split_is_scored_whole_and_all_the_rest_learnt_from(self):
        rows, tests = np.zeros((6, 2), np.float32), np.ones((3, 2), np.float32)
        found = held_out(np.arange(6) % 2, np.array([0, 1, 0]), seed=0)
        examples = found.examples(rows, tests)
        assert (len(examples.learn_LD), len(examples.score_SD)) == (6, 3)
        assert examples.score_targets_S.tolist() == [0, 1, 0]
        assert found.described == {"what": TEST_SPLIT, "images": 3}
        with pytest.raises(ValueError, match="no rows of the test images"):
            found.examples(rows, None)
