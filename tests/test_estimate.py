"""`deepcluster estimate`: sizes without decoding, arithmetic by hand, and the command's words; no clock but if slow."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT, command_environment, make_project, write_images
from PIL import Image

from deepcluster.estimate import evaluation
from deepcluster.estimate import forecast as module
from deepcluster.estimate import rates as rates_module
from deepcluster.estimate.answer import Answer, as_json, duration, in_bytes, table, verdict
from deepcluster.estimate.forecast import Cost, forecast, run_seconds
from deepcluster.estimate.rates import Rates, seconds_each
from deepcluster.estimate.size import DataSize, data_size
from deepcluster.params import Params, load_params
from deepcluster.params.sections import Data

RATES = Rates(
    decode=0.01,
    forward=0.001,
    train=0.002,
    pca_row=1e-4,
    pca_axes=0.5,
    cluster=1e-8,
    final=2e-8,
    pixels=3e-8,
    features=256,
    weights=400_000,
    memory_extract=5e7,
    memory_train=6e7,
    pair=4e-8,
)
SIZE = DataSize(count=10_000, channels=3, side=32, classes=10, source="known")
ALL_OFF = {"WRITE": float("inf"), "READ": float("inf"), "STAGE": 0.0, "START": 0.0, "REPORT": 0.0, "BASE": 0.0}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without disks, start-up and the process itself: what remains is N times a rate."""
    for name, value in ALL_OFF.items():
        monkeypatch.setattr(module, name, value)


PLAIN: dict[str, Any] = {
    "refine__after": None,
    "refine__k": None,
    "evaluate__knn": [],
    "evaluate__probe": "none",
    "evaluate__retrieval": False,
    "evaluate__overclustering": 0,
}
V2: dict[str, Any] = {
    "train__method": "deepcluster_v2",
    "train__v2__outputs": 8,
    "cluster__clusterings": 3,
    "cluster__spherical": True,
    "pca__enabled": False,
}
SEARCHES = 50 + 1 + 2


def trust_seconds(k: int) -> float:
    """5,000 images and 2,000 views; 5 times the halves of 5,000, best of 5."""
    return 7_000 * 0.001 + 5 * 5 * SEARCHES * 5_000 * k * 2e-8


def judging(**changes: Any) -> float:
    """Seconds that settings of `evaluate` add."""
    return costs(params_of(**changes))["evaluate"].seconds - costs(params_of())["evaluate"].seconds


def params_of(**changes: Any) -> Params:
    """The shipped params, less refinement and what true labels measure, with other values: cluster__k=5."""
    content = load_params(CHECKOUT / "params.yaml").model_dump(mode="json")
    for key, value in (PLAIN | changes).items():
        section = content
        *parents, name = key.split("__")
        for parent in parents:
            section = section[parent]
        section[name] = value
    return Params.model_validate(content)


def costs(params: Params, size: DataSize = SIZE, rates: Rates = RATES) -> dict[str, Cost]:
    return {cost.stage: cost for cost in forecast(params, size, rates)}


@pytest.mark.usefixtures("bare")
class TestSeconds:
    """By hand: k = 30, 20 iterations, 20 restarts, 4 x N images an epoch."""

    def test_of_every_stage(self):
        found = {name: cost.seconds for name, cost in costs(params_of()).items()}
        searches = 20 * SEARCHES
        assert found == pytest.approx(
            {
                "prepare": 10_000 * 0.01,
                "initialise": 0,
                "extract": 10_000 * 0.001,
                "pca": 10_000 * 1e-4 + 0.5,
                "cluster": 1e-8 * 30 * (20 * 10_000 + 10_000),
                "train": 40_000 * 0.002,
                "evaluate": 2 * (10_000 * 0.001 + 10_000 * 10 * searches * 2e-8)
                + 10_000 * 10 * searches * 3e-8
                + trust_seconds(10),
                "report": 0,
            }
        )

    def test_an_unlabelled_data_set_has_no_baselines_and_cluster_k(self):
        unlabelled = DataSize(10_000, 3, 32, None, "known")
        rows = 10_000 * 30 * 20 * SEARCHES
        assert costs(params_of(), unlabelled)["evaluate"].seconds == pytest.approx(10 + rows * 2e-8 + trust_seconds(30))
        few = costs(params_of(evaluate__k=3), unlabelled)["evaluate"].seconds
        assert few == pytest.approx(10 + rows / 10 * 2e-8 + trust_seconds(3))
        refined = costs(params_of(refine__after=16, refine__k=3), unlabelled)["evaluate"].seconds
        assert refined == pytest.approx(few)  # k of the last epoch

    def test_refined_epochs_have_their_own_clusters(self):
        refined = costs(params_of(refine__after=15, refine__k=10))["cluster"]
        first = 1e-8 * 30 * (20 + 1) * 10_000
        last = 1e-8 * 10 * 10 * (20 + 2 + 1) * 10_000  # ten restarts from k-means++
        assert refined.seconds_in_all == pytest.approx(15 * first + 5 * last)
        assert costs(params_of(refine__after=25, refine__k=10))["cluster"].seconds == pytest.approx(first)

    def test_nearest_neighbours_compare_a_fifth_with_the_rest(self):
        assert judging(evaluate__knn=[20, 200]) == pytest.approx(2_000 * 8_000 * (2 * 2e-8 + 3e-8))

    def test_retrieval_sorts_as_well(self):
        assert judging(evaluate__retrieval=True) == pytest.approx(2_000 * 8_000 * (2 * 2e-8 + 3e-8 + 3 * 1e-7))

    def test_over_clustering_is_one_search(self):
        assert judging(evaluate__overclustering=10) == pytest.approx(10_000 * 100 * SEARCHES * (2 * 2e-8 + 3e-8))
        assert judging(evaluate__overclustering=1_001) == pytest.approx(0)  # more than images

    def test_a_probe_tries_five_rates_and_trains_the_best_again(self):
        pairs = 2 * 256 * 10 * 1_000 * (5 + 1)  # 1,000 steps at least
        around = 2_000 * evaluation.PROBE_STEP
        assert judging(evaluate__probe="last") == pytest.approx(pairs * (2 * 2e-8 + 3e-8) + 3 * around)
        rates = Rates(**vars(RATES) | {"blocks": (512,)})
        found = costs(params_of(evaluate__probe="blocks"), rates=rates)["evaluate"].seconds
        last = costs(params_of(evaluate__probe="last"))["evaluate"].seconds
        assert found - last == pytest.approx(2 * (pairs * 2 * 2e-8 + around + 10_000 * 0.001))

    def test_a_test_split_is_read_and_passes_the_network(self):
        size = DataSize(10_000, 3, 32, 10, "known", test=1_000)
        with_split, without = costs(params_of(), size), costs(params_of())
        assert with_split["prepare"].seconds - without["prepare"].seconds == pytest.approx(1_000 * 0.01)
        assert with_split["prepare"].disk == 11_000 * 3 * 32 * 32
        assert with_split["evaluate"].seconds - without["evaluate"].seconds == pytest.approx(2 * 1_000 * 0.001)
        neighbours = costs(params_of(evaluate__knn=[20]), size)["evaluate"].seconds - with_split["evaluate"].seconds
        assert neighbours == pytest.approx(1_000 * 10_000 * (2 * 2e-8 + 3e-8))

    def test_deepcluster_v2_extracts_once_and_clusters_projections_several_times(self):
        found = costs(params_of(**V2))
        assert found["extract"].seconds_in_all == pytest.approx(10_000 * 0.001)
        assert found["extract"].disk == 10_000 * 8 * 4
        assert found["cluster"].seconds == pytest.approx(3 * 1e-8 * 30 * (20 + 1) * 10_000)
        assert found["cluster"].disk == 3 * (10_000 * 8 + 4 * 30 * 8)
        assert found["train"].disk == 400_000 * 4 * 2 + 10_000 * 8 * 4

    def test_k_means_on_a_sample_of_the_rows_assigns_all(self):
        sampled = costs(params_of(cluster__points_per_centroid=10, cluster__restarts=3))["cluster"]
        assert sampled.seconds == pytest.approx(1e-8 * 30 * 3 * (20 * 300 + 10_000))

    def test_pic_compares_all_pairs(self):
        assert costs(params_of(cluster__method="pic"))["cluster"].seconds == pytest.approx(4e-8 * 10_000**2)

    def test_spectral_compares_all_pairs_finds_vectors_and_clusters_among_them(self):
        found = costs(params_of(cluster__method="spectral", cluster__spectral__extra_vectors=6, cluster__restarts=3))
        among = 3 * 21 * 30 * 36 / 64  # of 64 components
        by_hand = 4e-8 * 10_000**2 + 2e-7 * 36**2 * 10_000 + 1e-8 * among * 10_000
        assert found["cluster"].seconds == pytest.approx(by_hand)

    def test_refined_epochs_may_have_a_graph_where_the_first_have_none(self):
        found = costs(params_of(refine__after=15, refine__k=10, refine__method="spectral"))["cluster"]
        first = 1e-8 * 30 * (20 + 1) * 10_000
        among = 10 * (20 + 2 + 1) * 10 * 13 / 64  # ten restarts from k-means++
        last = 4e-8 * 10_000**2 + 2e-7 * 13**2 * 10_000 + 1e-8 * among * 10_000
        assert found.seconds_in_all == pytest.approx(15 * first + 5 * last)

    def test_without_pca(self):
        assert costs(params_of(pca__enabled=False))["pca"].seconds == 0

    def test_epochs_count_for_the_four_stages_and_the_run_is_their_sum(self):
        found = costs(params_of(epochs=7))
        assert {name: cost.times for name, cost in found.items() if cost.times != 1} == dict.fromkeys(
            ("extract", "pca", "cluster", "train"), 7
        )
        by_hand = sum(cost.seconds * cost.times for cost in found.values())
        assert run_seconds(list(found.values())) == pytest.approx(by_hand)


class TestBusy:
    def test_what_is_constant_takes_longer_on_a_busy_machine(self):
        idle, busy = costs(params_of(epochs=1)), costs(params_of(epochs=1), rates=Rates(**vars(RATES) | {"busy": 3.0}))
        longer = {name: busy[name].seconds - idle[name].seconds for name in idle}
        stage = 2 * module.STAGE
        assert longer == pytest.approx(
            dict.fromkeys(idle, stage) | {"prepare": stage + 2 * module.START, "report": stage + 2 * module.REPORT}
        )

    def test_is_wall_time_over_own_time(self, monkeypatch):
        own, wall = iter([0.0, 0.1, 0.2]), iter([5.0, 5.8])
        monkeypatch.setattr(rates_module.time, "thread_time", lambda: next(own))
        monkeypatch.setattr(rates_module.time, "perf_counter", lambda: next(wall))
        assert rates_module._busy() == pytest.approx(4.0)


class TestDisk:
    def test_of_every_artifact(self):
        found = {name: cost.disk for name, cost in costs(params_of()).items()}
        assert found["prepare"] == 10_000 * 3 * 32 * 32
        assert found["extract"] == 10_000 * 256 * 4
        assert found["pca"] == 10_000 * 64 * 4 + 4 * 65 * 256
        assert found["cluster"] == 10_000 * 8 + 4 * 30 * 64
        assert found["train"] == 400_000 * 4 * 2  # weights and momentum

    @pytest.mark.parametrize(
        ("changes", "states"), [({"momentum": 0.0}, 0), ({"name": "adam"}, 2), ({"name": "lars"}, 1)]
    )
    def test_of_an_optimizer(self, changes, states):
        optimizer = {f"train__optimizer__{key}": value for key, value in changes.items()}
        assert costs(params_of(**optimizer))["train"].disk == 400_000 * 4 * (1 + states)

    def test_agrees_with_a_real_run(self, finished, monkeypatch):
        """Files of a finished run; they end with whole chunks, and have metadata beside them."""
        monkeypatch.chdir(finished.root)
        params = load_params()
        weights = sum(len(path.read_bytes()) for path in Path("data/epochs/1/checkpoint").glob("model.safetensors"))
        rates = Rates(**vars(RATES) | {"weights": weights // 4})
        found = costs(params, data_size(params.data), rates)
        for stage, folder in [("extract", "features.zarr"), ("train", "checkpoint"), ("pca", "pca.zarr")]:
            files = [path for path in Path("data/epochs/1", folder).rglob("*") if path.is_file()]
            real = sum(path.stat().st_size for path in files if path.name != "zarr.json")
            assert found[stage].disk == pytest.approx(real, rel=0.15), stage


class TestMemory:
    def test_grows_with_images_batches_and_features(self, monkeypatch):
        monkeypatch.setattr(module, "BASE", 1e9)
        found = costs(params_of())
        pixels = 10_000 * 3 * 32 * 32
        assert found["extract"].memory == 1e9 + 5e7 + pixels
        assert found["train"].memory == 1e9 + 6e7 + pixels + 4 * 400_000 * 3
        rows = 4.0 * 10_000 * 64
        assert found["cluster"].memory == 1e9 + 3 * rows + 40 * 10_000
        wide = 4.0 * 10_000 * 3072  # pixels are wider than features
        assert found["evaluate"].memory == 1e9 + pixels + 5 * wide
        unlabelled = costs(params_of(), DataSize(10_000, 3, 32, None, "known"))["evaluate"].memory
        assert unlabelled == 1e9 + pixels + 3 * 4.0 * 10_000 * 256 + 40 * 10_000


class TestSize:
    def test_of_named_sets_from_the_catalogue(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert data_size(Data()) == DataSize(1_797, 1, 8, 10, "known")
        found = data_size(Data(name="cifar10", grayscale=True, image_size=20))
        assert (found.count, found.channels, found.side, found.test) == (50_000, 1, 20, 10_000)
        assert data_size(Data(name="cifar10", test_split="none")).test == 0
        assert data_size(Data(name="stl10", split="unlabeled", test_split="test")).test == 0

    def test_of_a_folder_from_names_and_headers(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_images(tmp_path / "images", count=10)
        (tmp_path / "images/above/000.png").write_bytes(b"damaged, and looked at first")
        found = data_size(Data(name="folder", root=str(tmp_path / "images")))
        assert (found.count, found.channels, found.side, found.classes) == (10, 3, 8, 2)
        assert len(found.files) == 10
        assert data_size(Data(name="folder", root="images", image_size=64, grayscale=True)).side == 64

    def test_of_a_prepared_set_from_its_artifact(self, finished, monkeypatch):
        monkeypatch.chdir(finished.root)
        data = load_params().data
        found = data_size(data)
        assert (found.count, found.channels, found.side, found.classes) == (48, 1, 8, 2)
        assert (found.source, found.test) == ("data/dataset/images.zarr", 0)
        assert data_size(data.model_copy(update={"image_size": 16})).source.startswith("names in ")


class TestSecondsEach:
    def test_is_that_of_one_of_the_largest_number(self, monkeypatch):
        clock = [0.0]
        monkeypatch.setattr(rates_module.time, "perf_counter", lambda: clock[0])
        asked: list[int] = []

        def work(number: int) -> None:
            asked.append(number)
            clock[0] += 0.5 + 0.01 * number  # a start that few would pay alone

        found = seconds_each(work, 100, budget=20.0)
        assert asked[:2] == [4, 4]
        assert (asked[-1], found.number) == (100, 100)
        assert found.seconds == pytest.approx(0.015)
        assert clock[0] <= 20.0

    def test_measures_once_though_time_is_up(self, monkeypatch):
        clock = [0.0]
        monkeypatch.setattr(rates_module.time, "perf_counter", lambda: clock[0])
        asked: list[int] = []

        def work(number: int) -> None:
            asked.append(number)
            clock[0] += 100.0

        assert seconds_each(work, 64, budget=1.0).seconds == 25.0
        assert asked == [4, 4]


class TestAnswer:
    COSTS = (Cost("extract", 1.0, 3, 2e9, 5e9), Cost("train", 100.0, 3, 1e6, 2e9))

    def answer(self, **changes: Any) -> Answer:
        return Answer(**{"costs": self.COSTS, "copies": 1, "disk_free": 7e9, "memory_available": 6e9} | changes)

    def test_table(self):
        assert table(self.answer()).rows == [
            ["extract", "3", "1.0 s", "3.0 s", "2 GB", "6 GB", "5 GB"],
            ["train", "3", "2 min", "5 min", "1 MB", "3 MB", "2 GB"],
            ["whole run", "", "", "5 min", "", "6 GB", "5 GB"],
        ]

    def test_it_fits(self):
        assert list(verdict(self.answer())) == [
            "Disk: 6 GB (once, as DVC's cache is linked), 7 GB free",
            "Memory: at most 5 GB (extract), 6 GB available",
        ]

    def test_a_long_train_stage_keeps_its_state_twice_in_progress(self):
        costs = (Cost("extract", 100.0, 3, 2e9, 5e9), Cost("train", 60.0, 3, 1e9, 2e9))
        found = as_json(self.answer(costs=costs, copies=2))
        assert (found["disk"], found["disk_in_progress"]) == (2 * 9e9 + 2e9, 2e9)
        short = (costs[0], Cost("train", 59.0, 3, 1e9, 2e9))
        assert self.answer(costs=short, copies=2).disk == 2 * 9e9

    def test_copies_in_the_cache_double_the_disk(self):
        disk, _ = verdict(self.answer(copies=2))
        assert disk == (
            "warning: the disk has 7 GB free, and 12 GB are needed (twice, as DVC's cache can only hold copies); take "
            "fewer epochs, or keep feature dumps out of the cache and delete old ones (docs/architecture.md)"
        )

    def test_too_little_memory(self):
        _, memory = verdict(self.answer(memory_available=4e9))
        assert memory == (
            "warning: extract needs about 5 GB of memory, and 4 GB are available; take a smaller extract.batch_size or "
            "data.image_size"
        )

    @pytest.mark.parametrize(("free", "available", "fits"), [(7e9, 6e9, True), (5e9, 6e9, False), (7e9, 4e9, False)])
    def test_json_says_whether_it_fits(self, free, available, fits):
        found = as_json(self.answer(disk_free=free, memory_available=available))
        assert found["fits"] is fits
        assert found["seconds"] == pytest.approx(303)
        assert found["stages"][0] == {"stage": "extract", "times": 3, "seconds": 1.0, "disk": 2e9, "memory": 5e9}

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.4, "99 s"), (100, "2 min"), (5969, "99 min"),
         (5971, "1.7 h"), (259_199, "72.0 h"), (259_201, "3 days")],
    )  # fmt: skip
    def test_duration(self, seconds, text):
        assert duration(seconds) == text

    @pytest.mark.parametrize(
        ("number", "text"),
        [(0, "0 kB"), (1_540, "2 kB"), (1e6, "1 MB"), (999.6e6, "1 GB"), (2.05e9, "2.05 GB"), (3e12, "3 TB")],
    )
    def test_bytes(self, number, text):
        assert in_bytes(number) == text


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "params.yaml").write_bytes((CHECKOUT / "params.yaml").read_bytes())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
        monkeypatch.setattr(rates_module, "calibrate", lambda *_, **__: RATES)
        return tmp_path

    def test_prints_a_table_and_a_verdict_and_writes_nothing(self, outcome, folder):
        status, out, _ = outcome("estimate")
        assert status == 0
        lines = out.splitlines()
        assert lines[0] == (
            "digits: 1,797 images of 1 x 8 x 8 (known); convnet on cpu, 256 features, k = 30, 20 epochs"
        )
        assert [line.split()[0] for line in lines[3:12]] == [
            "prepare", "initialise", "extract", "pca", "cluster", "train", "evaluate", "report", "whole",
        ]  # fmt: skip
        assert lines[-2].startswith("Disk: ")
        assert lines[-1].startswith("Memory: at most ")
        assert [path.name for path in folder.iterdir()] == ["params.yaml"]

    def test_overrides_are_a_view_only(self, outcome, folder):
        before = Path("params.yaml").read_bytes()
        status, out, _ = outcome("estimate", "--json", "-S", "epochs=3", "-S", "data.name=mnist")
        found = json.loads(out)
        assert (status, found["images"]) == (0, 60_000)
        assert {stage["stage"]: stage["times"] for stage in found["stages"]}["train"] == 3
        assert Path("params.yaml").read_bytes() == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("-S", "cluster.k=1"), "params.yaml: cluster.k: must be >= 2; got 1"),
            (("-S", "cluster.k=2000"), "cluster.k: must be <= N = 1797 images; got 2000"),
            (("-S", "data.split=val"), "digits has no split 'val'; see docs/data.md"),
            (("-S", "data.name=folder", "-S", "data.root=none"), "none: no such folder"),
        ],
    )
    def test_mistakes(self, outcome, folder, arguments, message):
        status, out, err = outcome("estimate", *arguments)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == f"error: {message}"

    def test_outside_of_a_project(self, outcome, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        message = "params.yaml: not found; run this in the project's folder, the one with dvc.yaml"
        assert outcome("estimate") == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__arch": "resnet18", "cluster__method": "pic", "cluster__k": 5},
        {"refine__after": 3, "refine__k": 4, "refine__method": "spectral"},
        {"train__contrastive__strategy": "two_views", "train__contrastive__projection": 8, "train__freeze": ["body.0"]},
        {"pca__enabled": False, "cluster__backend": "sklearn", "train__optimizer__name": "adam"},
        {"evaluate__probe": "blocks", "train__optimizer__name": "lars"},
        V2,
    ],
)
def test_calibration_measures_every_kind_of_setting(tmp_path, changes):
    import torch

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (12, 12)).astype(np.uint8)).save(tmp_path / "a.png")
    size = DataSize(60, 1, 8, 10, "a test", tmp_path, ("a.png",))
    found = rates_module.calibrate(params_of(**changes), size, device=torch.device("cpu"), gpu=False, seconds=0.01)
    measured = [found.decode, found.forward, found.train, found.cluster, found.final, found.pixels]
    assert all(0 < seconds < 60 for seconds in measured)
    assert (found.pca_row > 0) is (changes.get("pca__enabled", True))
    assert found.features == (512 if "model__arch" in changes else 256)
    assert found.weights > 100_000
    assert bool(found.blocks) is ("evaluate__probe" in changes)
    graphs = "pic" in changes.values() or "spectral" in changes.values()
    assert 0 < found.pair < 1e-4 if graphs else found.pair == 0


@pytest.mark.slow
def test_agrees_with_a_real_run_of_digits(tmp_path):
    """Digits, four epochs, just after; a machine that others use changes its speed by more than the estimate errs."""
    environment = command_environment(tmp_path)
    write_images(tmp_path / "images")
    project = make_project(tmp_path / "digits", tmp_path / "images", environment)
    (project.root / "params.yaml").write_bytes((CHECKOUT / "params.yaml").read_bytes())
    project.run("deepcluster", "plan", "-S", "epochs=4")
    found = json.loads(project.run("deepcluster", "estimate", "--json").stdout)
    start = time.perf_counter()
    project.run("deepcluster", "run")
    seconds = time.perf_counter() - start
    rows = list(csv.DictReader((project.root / "data/timings.csv").open()))
    real = {
        stage["stage"]: [float(row["seconds"]) for row in rows if row["stage"] == stage["stage"]]
        for stage in found["stages"]
    }
    print(f"estimated {found['seconds']:.1f} s, took {seconds:.1f} s; " + ", ".join(
        f"{one['stage']} {one['seconds']:.2f} for {np.median(real[one['stage']]):.2f}" for one in found["stages"]
    ))  # fmt: skip
    assert 1 / 3 < found["seconds"] / seconds < 3
