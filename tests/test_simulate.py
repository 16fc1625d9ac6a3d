"""The schedule played through: sums are right, every shard has one rank, and bytes and seconds are the model's."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cost_cases, cost_model, simulate
from benchmarks.cost_cases import H100

MANY = replace(H100, devices=simulate.RANKS)


@pytest.mark.parametrize(("shards", "ranks"), [(10, 4), (4, 4), (3, 5), (157, 512), (1734, 512)])
def test_every_shard_has_one_rank_and_blocks_are_contiguous(shards, ranks):
    found = simulate.blocks(shards, ranks)
    assert [shard for block in found for shard in block] == list(range(shards))
    sizes = [len(block) for block in found]
    assert len(found) == ranks
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_rows_of_ranks_with_a_short_last_shard_and_idle_ranks():
    assert simulate.rows_of_ranks(25, 10, 2).tolist() == [20, 5]
    assert simulate.rows_of_ranks(25, 10, 5).tolist() == [10, 10, 5, 0, 0]


@pytest.mark.parametrize("reduce", [simulate.ring, simulate.tree], ids=["ring", "tree"])
@pytest.mark.parametrize("ranks", [1, 2, 7, 512])
def test_every_rank_ends_with_the_sum(reduce, ranks):
    values_PV = np.random.default_rng(0).integers(-99, 99, (ranks, 2 * ranks)).astype(float)
    found = reduce(np.zeros(ranks), 8.0, replace(H100, devices=ranks), values_PV)
    np.testing.assert_array_equal(found.values_PV, np.tile(values_PV.sum(axis=0), (ranks, 1)))


@pytest.mark.parametrize("size", [1e6, 1e8, 1e10])
def test_a_ring_sends_and_takes_what_the_model_says(size):
    found = simulate.ring(np.zeros(simulate.RANKS), size, MANY)
    np.testing.assert_allclose(found.sent_P, cost_model.ring_bytes(size, simulate.RANKS))
    assert found.clocks_P.max() == pytest.approx(cost_model.ring_seconds(size, MANY), rel=0.03)


@pytest.mark.parametrize("size", [1e6, 1e8, 1e10])
def test_a_tree_takes_what_the_model_says_and_loads_the_root(size):
    found = simulate.tree(np.zeros(simulate.RANKS), size, MANY)
    assert found.clocks_P.max() == pytest.approx(cost_model.tree_seconds(size, MANY), rel=1e-9)
    assert found.sent_P.max() == found.sent_P[0] == 9 * size
    assert found.sent_P.sum() == 2 * 511 * size


def test_a_late_rank_delays_all():
    clocks_P = np.zeros(8)
    clocks_P[3] = 5.0
    assert simulate.ring(clocks_P, 8.0, H100).clocks_P.min() > 5.0
    assert simulate.tree(clocks_P, 8.0, H100).clocks_P.min() >= 5.0


@pytest.mark.parametrize("network", cost_cases.NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("data", cost_cases.DATA_SETS, ids=lambda data: data.name)
def test_played_epochs_agree_with_the_model(data, network):
    work = cost_cases.work(data, network, simulate.RANKS)
    played, told = simulate.play(work, MANY), simulate.model_seconds(work, MANY)
    assert played.rows_P.sum() == work.images
    assert played.rows_P.max() / played.rows_P.mean() == pytest.approx(cost_model.imbalance(work, MANY))
    assert played.seconds == pytest.approx(told, rel=0.03)
    np.testing.assert_allclose(played.sent_P["pca"], cost_model.pca(work, MANY).sent)
    np.testing.assert_allclose(played.sent_P["cluster"], cost_model.cluster(work, MANY).sent)
