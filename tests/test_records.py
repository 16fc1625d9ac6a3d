"""benchmarks.experiments, records and scores: what is run, what is recorded of it, and the arithmetic over seeds."""

import hashlib
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import experiments, records, scores
from benchmarks.experiments import Experiment, ExperimentsError, chosen, load_experiments
from benchmarks.records import Record
from deepcluster.params import Params, load_params

HARDWARE = {"cpu": "Some CPU", "cores": 2, "memory_gb": 8, "system": "Linux", "python": "3.99", "gpu": None}
RECORD = Record(
    experiment="digits", seed=3, status="finished", error=None, failed_at=None, date="2030-01-02", commit="abc",
    dirty=False, params_sha256="0" * 64, wall_seconds=41.0, cpu_seconds=70.0, alone=True, threads=2,
    stages={"train": 20.0}, peak_memory_mb=900.0, hardware=HARDWARE,
    versions={"torch": "9.9"}, metrics={"final": {"nmi": 0.9, "accuracy": 0.95}},
    epochs=["epoch,nmi,nmi_previous", "1,0.5,", "2,0.75,0.5"], params=records.canonical(Params()),
)  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "experiments.yaml"
    path.write_text(text)
    return path


class TestExperiments:
    def test_the_shipped_file_is_valid_and_so_are_all_its_settings(self):
        for entry in load_experiments().values():
            assert entry.params(entry.seeds[0]).seed == entry.seeds[0]

    def test_a_number_of_seeds_counts_from_one(self, tmp_path):
        path = write(tmp_path, "a: {group: results, asks: b, seeds: 3}\nc: {group: results, asks: d, seeds: [7, 5]}\n")
        found = load_experiments(path)
        assert (found["a"].seeds, found["c"].seeds) == ([1, 2, 3], [7, 5])

    def test_an_experiment_starts_from_its_base(self, tmp_path):
        path = write(
            tmp_path,
            "a: {group: results, asks: x, seeds: 1, recipe: mnist-cpu, root: here, set: [cluster.k=7, epochs=5]}\n"
            "b: {group: ablations, asks: x, seeds: 1, base: a, set: [epochs=6]}\n"
            "c: {group: ablations, asks: x, seeds: 1, base: b, set: [cluster.k=8]}\n",
        )
        found = load_experiments(path)["c"]
        assert (found.recipe_file, found.root) == ("recipes/mnist-cpu.yaml", "here")
        assert (found.set, sorted(found.settings)) == (["cluster.k=8"], ["cluster.k=8", "epochs=6"])
        params = found.params(4)
        assert (params.cluster.k, params.epochs, params.seed, params.train.precision) == (8, 6, 4, "bf16")
        assert found.overrides(4, "/m") == [*found.settings, "seed=4", "data.root=/m"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "a: {group: result, asks: b, seeds: 1}",
                "a: group: Input should be 'results' or 'ablations'; got 'result'",
            ),
            ("a: {group: results, asks: b, seeds: 1, sets: []}", "a: sets: Extra inputs are not permitted; got []"),
            (
                "a: {group: results, seeds: 1}",
                "a: asks: Field required; got {'name': 'a', 'group': 'results', 'seeds': 1}",
            ),
            ("a: 3", "a: expected keys such as group, asks, recipe, set, seeds"),
            (
                "a: {group: results, asks: b, seeds: [1, 1]}",
                "a: seeds: must be a number of seeds, or a list of different ones; got [1, 1]",
            ),
            ("a: {group: results, asks: b, seeds: 1, base: z}", "a: base: must be another experiment; got 'z'"),
            (
                "a: {group: results, asks: b, seeds: 1, set: [seed=3]}",
                "a: set: seed and data.root come from `seeds` and `root`",
            ),
            ("results: {group: results, asks: b, seeds: 1}", "results: is the name of a group"),
        ],
    )
    def test_mistakes(self, tmp_path, text, message):
        path = write(tmp_path, text)
        with pytest.raises(ExperimentsError) as error:
            load_experiments(path)
        assert str(error.value) == f"{path}: {message}"

    def test_bases_in_a_circle(self, tmp_path):
        entries = (f"{a}: {{group: results, asks: x, seeds: 1, base: {b}}}\n" for a, b in ("ab", "ba"))
        path = write(tmp_path, "".join(entries))
        with pytest.raises(ExperimentsError) as error:
            load_experiments(path)
        assert str(error.value) == f"{path}: a: base: leads back to itself"

    def test_settings_that_are_refused_name_the_experiment(self):
        entry = Experiment(name="a", group="results", asks="x", seeds=[1], set=["cluster.k=1"])
        with pytest.raises(ExperimentsError, match=r"^experiment a: params\.yaml: cluster\.k: must be >= 2; got 1$"):
            entry.params(1)

    def test_by_name_or_by_group(self):
        entries = {name: Experiment(name=name, group=group, asks="x", seeds=[1])
                   for name, group in (("a", "results"), ("b", "ablations"), ("c", "results"))}  # fmt: skip
        assert [each.name for each in chosen(entries, [])] == ["a", "b", "c"]
        assert [each.name for each in chosen(entries, ["results", "a"])] == ["a", "c"]
        with pytest.raises(ExperimentsError, match=r"^digit: no such experiment$"):
            chosen(entries, ["digit"])
        with pytest.raises(ExperimentsError, match=r"^digit: no such experiment; did you mean 'digits'\?$"):
            chosen(load_experiments(), ["digit"])


class TestRecord:
    def test_comes_back_as_it_was_written_one_line_a_setting_and_an_epoch(self, tmp_path):
        path = records.write_record(RECORD, tmp_path / "runs")
        assert path == tmp_path / "runs/digits-s3.json"
        assert records.read_record(path) == RECORD
        lines = path.read_text().splitlines()
        assert '  "cluster.k": 10,' in lines
        assert '  "2,0.75,0.5"' in lines
        assert [file.name for file in path.parent.iterdir()] == ["digits-s3.json"]

    def test_what_json_lacks_is_null(self, tmp_path):
        path = records.write_record(replace(RECORD, metrics={"a": float("nan"), "b": [float("inf"), 1.0]}), tmp_path)
        assert json.loads(path.read_text(), parse_constant=pytest.fail)["metrics"] == {"a": None, "b": [None, 1.0]}

    def test_without_epochs_or_metrics(self, tmp_path):
        failed = replace(RECORD, status="failed", metrics={}, epochs=[])
        assert records.read_record(records.write_record(failed, tmp_path)) == failed

    @pytest.mark.parametrize("text", ["", "[]", '{"experiment": "digits"}', "null"])
    def test_a_file_that_is_none(self, tmp_path, text):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ExperimentsError, match=r"x\.json: not a record of a run: "):
            records.read_record(tmp_path / "x.json")

    def test_numbers_and_rows(self):
        assert RECORD.metric("final", "nmi") == 0.9
        assert RECORD.metric("final", "ari") is None
        assert RECORD.metric("final", "nmi", "deeper") is None
        assert RECORD.metric("final") is None
        assert RECORD.rows == [
            {"epoch": 1.0, "nmi": 0.5, "nmi_previous": None}, {"epoch": 2.0, "nmi": 0.75, "nmi_previous": 0.5}
        ]  # fmt: skip

    def test_a_record_of_no_experiment_is_found(self, tmp_path):
        for seed in (1, 2):
            records.write_record(replace(RECORD, seed=seed), tmp_path)
        entry = Experiment(name="digits", group="results", asks="x", seeds=[1])
        assert records.strays({"digits": entry}, tmp_path) == [tmp_path / "digits-s2.json"]
        assert list(records.read_records(entry, tmp_path)) == [1]


class TestHash:
    def test_is_sha256_of_the_settings_without_seed_and_place(self):
        settings = records.flat(load_params(experiments.CHECKOUT / "params.yaml").model_dump(mode="json"))
        del settings["seed"], settings["data.root"]
        expected = hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert records.params_sha256(load_params(experiments.CHECKOUT / "params.yaml")) == expected

    @pytest.mark.parametrize(
        ("change", "same"),
        [
            ({"seed": 7}, True),
            ({"data": {"root": "/elsewhere/images"}}, True),
            ({"cluster": {"k": 11}}, False),
            ({"epochs": 11}, False),
        ],
    )
    def test_what_changes_it(self, change, same):
        one, other = records.params_sha256(Params()), records.params_sha256(Params.model_validate(change))
        assert (one == other) == same

    def test_a_record_keeps_of_the_place_its_last_component(self):
        params = Params.model_validate({"data": {"root": "/home/someone/images"}})
        assert records.canonical(params)["data.root"] == "images"


class TestChangedKeys:
    def test_names_what_differs_and_no_seed_or_place(self):
        now = Params.model_validate({"seed": 9, "data": {"root": "/x"}, "cluster": {"k": 30}, "epochs": 4})
        assert records.changed_keys(records.canonical(Params()), now) == ["epochs", "cluster.k"]

    def test_a_key_newer_than_the_record_counts_where_it_is_not_its_default(self):
        recorded = records.canonical(Params())
        del recorded["cluster.warm_start"]
        assert records.changed_keys(recorded, Params()) == []
        changed = Params.model_validate({"cluster": {"warm_start": True}})
        assert records.changed_keys(recorded, changed) == ["cluster.warm_start"]

    def test_a_key_that_is_no_more_says_nothing(self):
        assert records.changed_keys(records.canonical(Params()) | {"cluster.gone": 3}, Params()) == []


def test_csv_is_rounded_to_four_decimals():
    text = "epoch,nmi,loss,note\n1,0.123449,1234.5,\n2,0.5,-2e-9,nan\n10,100,1.0,x\n"
    assert records.rounded(text) == ["epoch,nmi,loss,note", "1,0.1234,1234.5,", "2,0.5,0,nan", "10,100,1,x"]
    assert records.rounded("") == []


def with_metrics(**metrics: Any) -> Record:
    return replace(RECORD, metrics=metrics)


def with_accuracy(accuracy: float) -> Record:
    return with_metrics(final={"accuracy": accuracy})


class TestScores:
    @pytest.mark.parametrize(
        ("metrics", "measure", "features", "expected"),
        [
            ({"final": {"nmi": 0.5}}, "nmi", "final", 0.5),
            ({"baselines": {"pixels": {"nmi": 0.25}}}, "nmi", "pixels", 0.25),
            ({"pseudo_labels": {"nmi": 0.75}}, "pseudo-nmi", "final", 0.75),
            ({"test": {"final": {"accuracy": 0.5}}}, "test-accuracy", "final", 0.5),
            ({"test": {"accuracy": 0.5}}, "test-accuracy", "final", 0.5),
            ({"test": {"pixels": {"nmi": 0.5}}}, "test-nmi", "pixels", 0.5),
            ({"test": {"baselines": {"untrained": {"nmi": 0.5}}}}, "test-nmi", "untrained", 0.5),
            ({"knn": {"final": {"k20": 0.5, "k200": 0.25}}}, "knn", "final", 0.5),
            ({"knn": {"baselines": {"pixels": {"k20": 0.5}}}}, "knn", "pixels", 0.5),
            ({"probe": {"final": {"features": 0.5}}}, "probe", "final", 0.5),
            ({"probe": {"baselines": {"untrained": {"features": 0.5}}}}, "probe", "untrained", 0.5),
            ({"final": {"nmi": 0.5}}, "nmi", "pixels", None),
            ({"final": {"nmi": 0.5}}, "test-nmi", "final", None),
            ({"final": {"nmi": None}}, "nmi", "final", None),
            ({}, "probe", "final", None),
        ],
    )
    def test_are_read_wherever_metrics_json_has_them(self, metrics, measure, features, expected):
        assert scores.score(with_metrics(**metrics), measure, features) == expected

    def test_statistics_by_hand(self):
        values = [0.9, 0.6, 0.8, 0.7]
        expected = {"median": 0.75, "worst": 0.6, "best": 0.9, "mean": 0.75, "std": 0.1290994}  # sqrt(0.05 / 3)
        assert {name: scores.statistic(values, name) for name in expected} == pytest.approx(expected)
        assert scores.statistic([], "median") is None
        assert scores.statistic([0.5], "std") is None

    def test_a_paired_difference_is_over_the_seeds_that_both_have(self):
        base = {1: with_accuracy(0.9), 2: with_accuracy(0.5), 3: with_accuracy(0.7), 4: with_metrics()}
        own = {1: with_accuracy(0.95), 2: with_accuracy(0.56), 3: with_accuracy(0.77), 4: with_accuracy(1.0),
               5: with_accuracy(0.1)}  # fmt: skip
        found = scores.paired(own, base, "accuracy")
        assert found is not None
        assert found.mean == pytest.approx(0.06)  # of 0.05, 0.06, 0.07: the spread over seeds drops out
        assert found.error == pytest.approx(statistics.stdev([0.05, 0.06, 0.07]) / 3**0.5)
        assert found.seeds == 3
        one = scores.paired({1: with_accuracy(0.5)}, {1: with_accuracy(0.4)}, "accuracy")
        assert one is not None
        assert (round(one.mean, 9), one.error, one.seeds) == (0.1, None, 1)
        assert scores.paired({1: with_metrics()}, base, "accuracy") is None
