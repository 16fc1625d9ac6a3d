"""What `deepcluster show` computes, on arrays whose answers are known."""

import numpy as np
import pytest

from deepcluster.clustering.health import effective_rank
from deepcluster.show import statistics
from deepcluster.show.statistics import image_statistics, layer_statistics, row_statistics, size_statistics


def blocks(rows_ND, size):
    return (rows_ND[start : start + size] for start in range(0, len(rows_ND), size))


def planted(rows=500, rank=3, width=16):
    """Rows that vary equally along `rank` directions, about an offset; then two dead dimensions and two constant."""
    rng = np.random.default_rng(0)
    varying_NR = rng.normal(size=(rows, rank))
    varying_NR, _ = np.linalg.qr(varying_NR - varying_NR.mean(axis=0))
    directions, _ = np.linalg.qr(rng.normal(size=(width, rank)))
    features_ND = 30 * varying_NR @ directions.T + 7
    return np.hstack([features_ND, np.zeros((rows, 2)), np.full((rows, 2), -2.5)]).astype(np.float32)


class TestRows:
    @pytest.mark.parametrize("size", [1, 7, 500, 1000])
    def test_planted_dimensions_and_rank(self, size):
        features_ND = planted()
        found = row_statistics(blocks(features_ND, size), features_ND.shape)
        assert (found.rows, found.nan, found.infinite, found.bad_rows) == (500, 0, 0, 0)
        assert (found.dead, found.constant) == ([16, 17], [18, 19])
        assert found.effective_rank == pytest.approx(3, abs=1e-4)
        assert found.rank_rows == 500
        exact = features_ND.astype(np.float64)
        norms = np.linalg.norm(exact, axis=1)
        assert found.norms == pytest.approx(
            {"min": norms.min(), "median": np.median(norms), "mean": norms.mean(), "max": norms.max()}
        )
        assert found.mean == pytest.approx(exact.mean())
        assert found.deviation == pytest.approx(exact.std())
        assert found.zeros == pytest.approx(2 / 20)

    def test_rows_with_nan_or_infinity_are_counted_and_left_out(self):
        features_ND = planted()
        clean = row_statistics(blocks(np.delete(features_ND, [3, 250], axis=0), 90), (498, 20))
        features_ND[3, :2] = np.nan
        features_ND[250, 16:19] = np.inf, -np.inf, np.nan
        found = row_statistics(blocks(features_ND, 100), features_ND.shape)
        assert (found.rows, found.nan, found.infinite, found.bad_rows) == (500, 3, 2, 2)
        assert (found.dead, found.constant) == ([16, 17], [18, 19])
        assert found.norms == clean.norms
        assert found.effective_rank == pytest.approx(clean.effective_rank)
        assert found.deviation == pytest.approx(clean.deviation)

    def test_a_value_that_differs_once_is_no_constant(self):
        features_ND = planted()
        features_ND[499, 16] = 1e-30
        features_ND[0, 18] = -2.4999998
        found = row_statistics(blocks(features_ND, 64), features_ND.shape)
        assert (found.dead, found.constant) == ([17], [19])

    def test_of_many_rows_evenly_spaced_ones_give_the_rank(self):
        features_ND = np.random.default_rng(1).normal(size=(1000, 6)).astype(np.float32) * [1, 2, 3, 4, 5, 6]
        found = row_statistics(blocks(features_ND.astype(np.float32), 33), (1000, 6), rank_rows=100)
        assert found.rank_rows == 100
        chosen = features_ND[::10].astype(np.float32)
        expected = effective_rank(np.linalg.eigvalsh(np.cov(chosen.astype(np.float64), rowvar=False)))
        assert found.effective_rank == pytest.approx(expected, rel=1e-6)
        assert found.norms["max"] == pytest.approx(np.linalg.norm(features_ND, axis=1).max())  # of all rows

    def test_rounding_of_wide_rows_is_no_rank(self):
        rng = np.random.default_rng(2)
        features_ND = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 1100)) + 3).astype(np.float32)
        found = row_statistics(blocks(features_ND, 128), features_ND.shape)
        centred = features_ND.astype(np.float64) - features_ND.mean(axis=0, dtype=np.float64)
        expected = effective_rank(np.linalg.svd(centred, compute_uv=False)[:5] ** 2)
        assert found.effective_rank == pytest.approx(expected, rel=1e-3)

    def test_half_precision_dumps(self):
        features_ND = planted().astype(np.float16)
        found = row_statistics(blocks(features_ND, 50), features_ND.shape)
        assert found.norms["max"] == pytest.approx(np.linalg.norm(features_ND.astype(np.float64), axis=1).max())
        assert (found.dead, found.constant) == ([16, 17], [18, 19])

    def test_one_row_and_rows_that_are_all_bad(self):
        one = row_statistics(iter([np.ones((1, 3), np.float32)]), (1, 3))
        assert (one.rows, one.effective_rank, one.dead, one.constant) == (1, None, [], [0, 1, 2])
        bad = row_statistics(iter([np.full((4, 3), np.nan, np.float32)]), (4, 3))
        assert (bad.bad_rows, bad.nan, bad.norms, bad.mean, bad.effective_rank) == (4, 12, None, None, None)
        assert (bad.dead, bad.constant) == ([], [])

    def test_constant_rows_have_rank_zero(self):
        found = row_statistics(iter([np.full((5, 3), 2, np.float32)]), (5, 3))
        assert (found.effective_rank, found.deviation) == (0.0, 0.0)

    def test_no_rank_where_its_matrix_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(statistics, "too_large", lambda needed: "need too much")
        found = row_statistics(blocks(planted(), 100), (500, 20))
        assert found.effective_rank is None
        assert found.dead == [16, 17]


class TestImages:
    def test_by_hand(self):
        images = np.zeros((5, 2, 2, 2), np.uint8)
        images[1, 0] = 255  # one value a channel
        images[2, 0, 0, 0] = 51
        images[3] = images[2]
        images[4, 1] = [[0, 255], [0, 255]]
        found = image_statistics(blocks(images, 2))
        assert (found.lowest, found.highest, found.constant, found.repeated) == (0, 255, 2, 1)
        assert found.mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)))
        assert found.deviation == pytest.approx((images / 255).std(axis=(0, 2, 3)))

    def test_none(self):
        with pytest.raises(ValueError, match="no images"):
            image_statistics(iter([]))


def test_sizes():
    found = size_statistics(np.array([1, 0, 4, 1, 10]))
    assert (found["smallest"], found["largest"], found["empty"]) == (1, 10, 1)
    assert (found["median"], found["of_one_image"]) == (2.5, 2)


WEIGHTS = {
    "body.10.weight": np.array([[6.0]], np.float32),
    "body.2.weight": np.array([3.0, 4.0], np.float32),
    "body.2.bias": np.array([12.0], np.float32),
    "body.2.running_mean": np.array([100.0], np.float32),
    "body.2.num_batches_tracked": np.array(7, np.int64),
}


class TestLayers:
    def test_norms_and_change_by_hand(self):
        before = {
            "body.10.weight": np.array([[-2.0]], np.float32),
            "body.2.weight": np.array([3.0, 0.0], np.float32),
            "body.2.bias": np.array([4.0], np.float32),
        }
        second, tenth = layer_statistics(WEIGHTS, before)
        assert (second.name, second.shapes, second.parameters) == ("body.2", {"bias": (1,), "weight": (2,)}, 3)
        assert (second.norm, second.rms) == (13, pytest.approx(13 / 3**0.5))
        assert second.change == pytest.approx(80**0.5 / 5)  # (0, 4, 8) / |(3, 0, 4)|
        assert (tenth.name, tenth.norm, tenth.change) == ("body.10", 6, 4)

    def test_no_change_without_an_epoch_before_or_with_other_shapes(self):
        assert [layer.change for layer in layer_statistics(WEIGHTS, None)] == [None, None]
        other = {"body.2.weight": np.zeros(5), "body.2.bias": np.zeros(1), "body.10.weight": np.zeros((1, 1))}
        assert [layer.change for layer in layer_statistics(WEIGHTS, other)] == [None, None]

    def test_not_finite(self):
        (layer,) = layer_statistics({"w": np.array([1, np.nan, np.inf])}, None)
        assert (layer.name, layer.non_finite) == ("w", 2)
