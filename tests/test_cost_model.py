"""The cost model, by hand: round numbers for which every second and byte can be worked out on paper."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cost_cases
from benchmarks import cost_model as model
from benchmarks.cost_model import Cost, Machine, Work

WORK = Work(
    images=1000, pixels=100, features=100, components=10, clusters=20, forward=1e6, weights=5000, iterations=3, batch=64
)
ONE = Machine(devices=1, per_host=1, forward=1e9, training=1e8, products=1e7, clustering=1e7, axes=1e6)
RING = replace(ONE, devices=4, per_host=2, inside=1e6, between=1e3, latency=0.5)


def test_extract_reads_pixels_computes_and_writes_features():
    found = model.extract(WORK, replace(ONE, read=1e5, write=1e6))
    assert (found.compute, found.read, found.written) == (1.0, 100_000, 400_000)
    assert found.disk == pytest.approx(1.0 + 0.4)
    assert (found.seconds, found.limit, found.sent) == (pytest.approx(1.4), "disk", 0)


def test_pca_reads_twice_and_ranks_add_up_the_covariance():
    found = model.pca(replace(WORK, balanced=True), RING)
    products = 1000 * (2 * 100**2 + 2 * 100 * 10) / (4 * 1e7)
    axes = (4 / 3 * 100**3 + 2 * 100**2 * 10) / 1e6
    assert found.compute == pytest.approx(products + axes)
    assert (found.read, found.written) == (800_000, 40_000)
    assert found.sent == 2 * 3 / 4 * 8 * (100**2 + 100)
    assert found.network == pytest.approx(6 * 80_800 / 4 / 1e3)
    assert found.seconds == pytest.approx(found.compute + found.network)


def test_one_triangle_of_the_covariance_costs_about_half():
    panels = replace(ONE, panels=True)
    assert model.covariance_flops(4096, panels) == 4096 * (4096 + 256)
    assert model.covariance_flops(100, panels) == model.covariance_flops(100, ONE) == 2 * 100**2


def test_kmeans_iterates_assigns_and_adds_up_after_each_iteration():
    found = model.cluster(replace(WORK, balanced=True), RING)
    assert found.compute == pytest.approx((3 + 1) * 1000 / 4 * 2 * 20 * 10 / 1e7)
    assert found.sent == 3 * 1.5 * 8 * 20 * 11
    sampled = replace(WORK, points_per_centroid=5)
    assert sampled.trained_on == 100
    assert model.cluster(sampled, ONE).compute == pytest.approx((3 * 100 + 1000) * 400 / 1e7)
    assert replace(WORK, points_per_centroid=500).trained_on == 1000


def test_training_is_three_forward_passes_and_a_sum_of_gradients_a_step():
    work = replace(WORK, seen=2.0)
    found = model.train(work, RING)
    assert model.training_flops(work) == 3 * (1e6 + 2 * 100 * 20)
    assert found.compute == pytest.approx(2000 * 3_012_000 / (4 * 1e8))
    assert model.gradient_bytes(work) == 4 * (5000 + 101 * 20)
    assert found.sent == 32 * 1.5 * 28_080  # 2,000 images in batches of 64
    assert found.seconds == max(found.compute, found.network) == found.network  # hidden behind the backward pass
    assert model.gradient_bytes(replace(work, split_head=True)) == 4 * (5000 + 64 * 100)


def test_dvc_hashes_on_one_host_unless_each_hashes_its_own():
    machine = replace(RING, hashing=1e5, read=1e6)
    kept = 1000 * (400 + 40 + 8) + 8 * 5000
    assert model.publish(WORK, machine) == Cost("publish", compute=kept / 1e5, disk=kept / 1e6, read=kept)
    assert model.publish(WORK, replace(machine, hash_by_rank=True)).compute == kept / 2e5


def test_hosts_share_what_the_store_gives():
    machine = replace(RING, read=100.0, write=50.0, store_read=150.0)
    assert machine.hosts == 2
    assert model.disk(machine, 300, 200) == 300 / 150 + 200 / 100


def test_whole_shards_leave_ranks_idle():
    work = replace(WORK, images=1_281_167, features=4096)
    assert (work.shard_rows, -(-work.images // work.shard_rows)) == (8192, 157)
    assert model.imbalance(work, replace(ONE, devices=512)) == pytest.approx(8192 * 512 / 1_281_167)
    assert model.imbalance(work, replace(ONE, devices=8)) == pytest.approx(20 * 8192 * 8 / 1_281_167)
    assert model.imbalance(replace(work, balanced=True), replace(ONE, devices=512)) == 1
    assert model.imbalance(replace(work, images=100), replace(ONE, devices=4)) == 4  # one shard, three idle


def test_shards_are_those_that_the_artifacts_have():
    from deepcluster.artifacts import store

    assert (model.CHUNK_BYTES, model.SHARD_BYTES) == (store.CHUNK_BYTES, store.SHARD_BYTES)
    for row in (4, 1000, 4096 * 4, 150_528, 3 << 20):
        shards, _ = store._layout((10**8, row), np.dtype(np.uint8))
        assert model.shard_rows(row) == shards[0]


def test_a_ring_goes_at_the_pace_of_its_slowest_link_or_of_the_mean_send():
    assert (model.ring_bytes(80.0, 4), model.ring_bytes(80.0, 1)) == (120.0, 0.0)
    assert model.ring_seconds(4000.0, replace(RING, latency=0.25)) == 6 * 1.0  # the mean send: 0.25 + 0.5 x 1.001 s
    assert model.ring_seconds(4000.0, replace(RING, latency=2.0)) == pytest.approx(6 * (2 + (1 + 0.001) / 2))
    assert model.ring_seconds(4000.0, replace(RING, devices=2)) == 2 * (0.5 + 0.002)  # within one host
    assert model.ring_seconds(1.0, ONE) == 0


def test_a_tree_has_its_lowest_levels_within_hosts():
    assert model.tree_seconds(4000.0, RING) == pytest.approx(2 * (2 * 0.5 + 0.004 + 4.0))
    assert model.tree_seconds(4000.0, replace(RING, devices=5)) == pytest.approx(2 * (3 * 0.5 + 0.004 + 2 * 4.0))
    assert model.tree_seconds(1.0, ONE) == 0


def test_a_stage_takes_the_longest_and_then_the_network():
    assert Cost("pca", compute=3, memory=2, disk=4, network=1).seconds == 5
    assert Cost("train", compute=3, disk=2, network=4).seconds == 4
    assert Cost("pca", compute=3, memory=5).limit == "memory"
    assert [cost.stage for cost in model.epoch(WORK, RING)] == list(model.STAGES)


def test_rates_are_those_at_which_the_calibration_takes_what_it_took():
    from benchmarks import cost_measure

    work = cost_measure._work(cost_measure.CALIBRATION, forward=4e7, weights=400_000)
    taken = {"extract": 3.0, "pca": 2.0, "pca_axes": 0.5, "cluster": 0.7, "train": 9.0, "publish": 0.1}
    found = cost_measure.modelled(work, cost_measure.calibrated(work, taken))
    assert found == pytest.approx({name: taken[name] for name in model.STAGES})


def test_errors_are_of_the_model_and_the_largest_counts():
    from benchmarks import cost_measure

    def size(*, model_of_pca):
        seconds = dict.fromkeys(model.STAGES, 2.0)
        return {"size": {}, "measured": seconds, "model": seconds | {"pca": model_of_pca}}

    found = cost_measure.errors({"sizes": [size(model_of_pca=1.0), size(model_of_pca=2.5)]})
    assert found == pytest.approx({"extract": 0, "pca": -50, "cluster": 0, "train": 0, "publish": 0, "epoch": -10})


@pytest.mark.parametrize(
    ("arch", "network", "sobel"), [("alexnet", cost_cases.ALEXNET, True), ("resnet50", cost_cases.RESNET50, False)]
)
def test_the_networks_flops_are_what_torch_counts(arch, network, sobel):
    from benchmarks.cost_measure import flops

    assert flops(arch, channels=3, side=224, sobel=sobel) == (network.forward, network.weights)


def test_durations_and_bytes_in_the_unit_that_suits():
    shown = [cost_cases.duration(seconds) for seconds in (0.0123, 59, 60, 5400, 86_400 * 2.5)]
    assert shown == ["0.012 s", "59 s", "1 min", "1.5 h", "2.5 d"]
    assert [cost_cases.bytes_(count) for count in (12, 1200, 4.7e11, 3e15)] == ["12 B", "1.2 kB", "470 GB", "3 PB"]
