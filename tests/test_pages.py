"""docs/results.md and docs/ablations.md: what the records say, and tables against numbers worked out by hand."""
# ruff: noqa: RUF001 - the dash that stands where there is no number

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT
from test_records import RECORD

from benchmarks import pages, records, tables
from benchmarks.experiments import ExperimentsError
from benchmarks.pages import NOTE, PAGES

EXPERIMENTS = """\
base: {group: results, asks: The base., seeds: 3, set: [epochs=4]}
other: {group: results, asks: Another., seeds: [5], base: base, set: [cluster.k=7]}
fewer: {group: ablations, asks: Fewer clusters., seeds: 3, base: base, set: [cluster.k=4]}
"""
RESULTS = "{{overview cifar10: base}}\n{{seeds other}}\n"
ABLATIONS = "{{ablations base}}\n"


def test_the_pages_are_what_the_records_say():
    """After a recording, or a change of prose or of a recipe: `python -m benchmarks.pages`."""
    for page, text in pages.pages().items():
        assert (CHECKOUT / "docs" / page).read_text(encoding="utf-8") == text, page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prose").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    write(tmp_path)
    return tmp_path


def write(folder: Path, results: str = RESULTS, ablations: str = ABLATIONS) -> None:
    for page, text in zip(PAGES, (results, ablations), strict=True):
        (folder / "prose" / page).write_text(text)


def made(folder: Path) -> dict[str, str]:
    return pages.pages(folder / "prose", folder / "runs", folder / "experiments.yaml")


def lines(folder: Path, page: str = "results.md") -> list[str]:
    note, _, text = made(folder)[page].partition("\n")
    assert note == NOTE.format(page=page).rstrip("\n")
    return text.splitlines()


def put(folder: Path, name: str, seed: int, accuracy: float | None, **changes: object) -> None:
    """A record with this accuracy, and NMI 0.1 below; with its experiment's settings."""
    from benchmarks.experiments import load_experiments

    params = records.canonical(load_experiments(folder / "experiments.yaml")[name].params(seed))
    scores = {} if accuracy is None else {"final": {"accuracy": accuracy, "nmi": accuracy - 0.1}}
    made = {"experiment": name, "seed": seed, "params": params, "metrics": scores} | changes
    records.write_record(replace(RECORD, **made), folder / "runs")  # type: ignore[arg-type]


class TestOverview:
    def test_median_worst_baselines_and_what_others_report(self, folder):
        write(folder, "{{overview cifar10: base}}\n{{seeds other}}")
        for seed, accuracy in ((1, 0.9), (2, 0.7), (3, 0.8)):
            final = {"accuracy": accuracy, "nmi": 0.5, "ari": 0.4}
            metrics = {"final": final, "baselines": {"pixels": {"accuracy": accuracy / 2, "nmi": 0.25}}}
            metrics |= {"test": {"final": {"accuracy": 0.6, "nmi": 0.3}}, "knn": {"final": {"k20": 0.95}}}
            put(folder, "base", seed, None, metrics=metrics, wall_seconds=40.0 + 10 * seed, alone=seed != 3)
        found = lines(folder)
        assert found[:5] == [
            "|  | NMI | ARI | accuracy | test NMI | test accuracy | k-NN | linear probe | runs | epochs | wall time |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            "| **base**, median | 0.500 | 0.400 | 0.800 | 0.300 | 0.600 | 0.950 | – | 3 | 4 | 55 s |",
            "| **base**, worst | 0.500 | 0.400 | 0.700 | 0.300 | 0.600 | 0.950 | – |  |  |  |",
            "| k-means on pixels (base) | 0.250 | – | 0.400 | – | – | – | – | 3 |  |  |",
        ]
        assert "| SCAN (Van Gansbeke et al. 2020) | 0.797 | – | 0.883 | – | – | – | – |  |  |  |" in found

    def test_not_recorded_partly_recorded_and_failed(self, folder):
        assert "| **base** | – | – | – | – | – | – | – | not recorded yet | – | – |" in lines(folder)
        put(folder, "base", 1, None, status="failed", error="collapse", failed_at="cluster@2", alone=False)
        assert "| **base** | – | – | – | – | – | – | – | 1 of 3 so far, 1 failed | 4 | – |" in lines(folder)
        put(folder, "base", 2, 0.8, wall_seconds=1200.0)
        assert (
            "| **base**, median | 0.700 | – | 0.800 | – | – | – | – | 2 of 3 so far, 1 failed | 4 | 20 min |"
            in lines(folder)
        )


class TestArchitectures:
    def test_a_row_a_backbone_beside_what_others_report_for_it(self, folder):
        made_with = EXPERIMENTS.replace("set: [cluster.k=7]", "set: [model.arch=resnet18]")
        (folder / "experiments.yaml").write_text(made_with)
        write(folder, "{{architectures mnist: base other}}")
        for seed, nmi in ((1, 0.5), (2, 0.7), (3, 0.6)):
            metrics = {
                "final": {"nmi": nmi, "accuracy": nmi + 0.1},
                "baselines": {"untrained": {"nmi": 0.2, "accuracy": 0.1}},
            }
            put(folder, "base", seed, None, metrics=metrics, cpu_seconds=60.0 * seed)
        put(folder, "other", 5, None, status="failed", error="collapse", failed_at="cluster@2")
        rows = lines(folder)[2:]
        assert rows == [
            "| `convnet` | 0.600 | 0.500 | 0.700 | 0.200 | – | 0 | 3 | 4 | 2.0 min |",
            "| `resnet18` | – | – | – | – | 0.60 to 0.65 | 1 | 1, 1 failed | 4 | – |",
        ]


class TestSeeds:
    def test_each_seed_statistics_and_circumstances(self, folder):
        write(folder, "{{seeds base}}\n{{seeds other}}")
        put(folder, "base", 1, 0.9, dirty=True)
        put(folder, "base", 2, 0.7, commit="def")
        put(folder, "base", 3, None, status="failed", error="collapse | of all", failed_at="cluster@2")
        text = "\n".join(lines(folder))
        assert "| 1 | 0.8000 | – | 0.9000 | – | – | – | – | – | – / – | – / – | 41 s |" in text
        assert "| 3 | – | – | – | – | – | – | – | – | – / – | – / – | 41 s |" in text
        assert "| **median** | 0.7000 | – | 0.8000 |" in text
        assert "| **std** | 0.1414 | – | 0.1414 |" in text  # sqrt(2) * 0.1
        assert "| **worst** | 0.6000 | – | 0.7000 |" in text
        listed = [line for line in text.splitlines() if line.startswith("- ")]
        assert listed == [
            "- `base`: The base. Settings: `params.yaml` with `epochs=4`.",
            "- Commit: abc with changes (seed 1); def (seed 2); abc (seed 3)",
            "- Params hash: 000000000000",
            "- Machine: 2 cores, Some CPU, 8 GB of memory, no GPU; Linux, Python 3.99",
            "- Versions: torch 9.9",
            "- Recorded: 2030-01-02",
            "- Seed 3 failed at cluster@2: collapse | of all",
        ]
        assert text.endswith("`other`: not recorded yet.")

    def test_settings_that_have_changed_since_are_said(self, folder):
        put(folder, "other", 5, 0.9)
        changed = EXPERIMENTS.replace("set: [cluster.k=7]", "set: [cluster.k=8]")
        (folder / "experiments.yaml").write_text(changed)
        assert "- **Recorded with other settings than the recipe has now: cluster.k.**" in lines(folder)


def test_epochs_are_powers_of_two_and_the_last(folder):
    write(folder, RESULTS + "{{epochs other 5}}")
    rows = [f"{epoch},0.{epoch:02},0.5,,1.5,0.25" for epoch in range(1, 8)]
    header = "epoch,nmi,accuracy,nmi_previous,loss,pseudo_label_accuracy"
    put(folder, "other", 5, 0.9, epochs=[header, *rows])
    assert lines(folder)[-6:] == [
        "| epoch | NMI | accuracy | NMI with the epoch before | loss | pseudo-label accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 1 | 0.0100 | 0.5000 | – | 1.5000 | 0.2500 |",
        "| 2 | 0.0200 | 0.5000 | – | 1.5000 | 0.2500 |",
        "| 4 | 0.0400 | 0.5000 | – | 1.5000 | 0.2500 |",
        "| 7 | 0.0700 | 0.5000 | – | 1.5000 | 0.2500 |",
    ]


def test_ablations_by_hand(folder):
    for seed, accuracy in ((1, 0.9), (2, 0.7), (3, 0.8)):
        put(folder, "base", seed, accuracy)
    put(folder, "fewer", 1, 0.95)
    put(folder, "fewer", 2, 0.73)
    put(folder, "fewer", 3, None, status="failed", error="collapse", failed_at="cluster@1")
    found = lines(folder, "ablations.md")
    assert found[2:] == [
        "| **base**: `params.yaml` with `epochs=4` | 0.800 ± 0.100 | 0.700 ± 0.100 | 0.700 | 0 | – | – | 3 |",
        # differences 0.05 and 0.03: mean 0.04, deviation sqrt(2) * 0.01, error 0.01
        "| `cluster.k=4`: Fewer clusters. | 0.840 ± 0.156 | 0.740 ± 0.156 | 0.730 | 1 | +0.040 ± 0.010 (2 seeds) |"
        " +0.040 ± 0.010 (2 seeds) | 3, 1 failed |",
    ]


def test_numbers_within_a_sentence(folder):
    words = ["base accuracy median", "base nmi worst", "base accuracy 2", "base accuracy 3", "base pixels-nmi median"]
    write(folder, RESULTS + "; ".join(f"{{{{{each}}}}}" for each in words) + ".")
    for seed, accuracy in ((1, 0.9), (2, 0.7)):
        metrics = {"final": {"accuracy": accuracy, "nmi": 0.5}, "baselines": {"pixels": {"nmi": 0.25}}}
        put(folder, "base", seed, None, metrics=metrics)
    assert lines(folder)[-1] == "0.800; 0.500; 0.700; –; 0.250."


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("{{seeds bas}}", "results.md: {{seeds bas}}: bas: no such experiment; did you mean 'base'?"),
        ("{{overview mist: base}}", "results.md: {{overview mist: base}}: mist: not a data set of published.yaml"),
        (
            "{{base accuracy low}}",
            "results.md: {{base accuracy low}}: low: expected a seed, or one of median, worst, best, mean, std",
        ),
        (
            "{{base speed median}}",
            "results.md: {{base speed median}}: speed: no such number; expected one of nmi, ari, accuracy, test-nmi, "
            "test-accuracy, knn, probe, pseudo-nmi",
        ),
        ("{{nothing}}", "results.md: {{nothing}}: no such placeholder, or no such experiment"),
        ("{{}}", "results.md: {{}}: no such placeholder, or no such experiment"),
    ],
)  # fmt: skip
def test_mistakes_in_the_prose(folder, results, message):
    write(folder, RESULTS + results)
    with pytest.raises(ExperimentsError) as error:
        made(folder)
    assert str(error.value) == message


def test_nothing_is_left_out(folder):
    where = "stands on no page; results are shown by overview, architectures or seeds in results.md, ablations by base"
    write(folder, "{{seeds base}} and {{other accuracy median}}", "nothing")
    with pytest.raises(ExperimentsError) as error:
        made(folder)
    assert str(error.value).splitlines() == [f"other: {where}", f"fewer: {where}"]


def test_a_record_of_no_experiment_is_not_passed_over(folder):
    put(folder, "base", 1, 0.9)
    stray = records.write_record(replace(RECORD, experiment="gone", seed=1), folder / "runs")
    with pytest.raises(ExperimentsError) as error:
        made(folder)
    assert str(error.value) == f"{stray}: of no experiment in experiments.yaml, or of none of its seeds"


def test_check_and_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    for page in PAGES:
        shutil.copyfile(CHECKOUT / "docs" / page, tmp_path / page)
    assert pages.main(["--check"]) == 0
    with (tmp_path / "ablations.md").open("a") as file:
        file.write("by hand")
    assert pages.main(["--check"]) == 1
    expected = "docs/ablations.md: not what the records say; run `python -m benchmarks.pages`\n"
    assert capsys.readouterr() == ("", expected)
    assert pages.main([]) == 0
    assert capsys.readouterr().out == "written: docs/ablations.md\n"
    assert pages.main([]) == 0
    assert capsys.readouterr().out == "the pages are up to date\n"


def test_published_numbers_have_sources():
    for data, entries in tables.load_published().items():
        assert all(entry.source and (entry.accuracy or entry.nmi or entry.probe) for entry in entries), data


class TestSignals:
    def test_by_hand(self, folder):
        """Three settings under one augmentation; a fourth, with another, stands alone and is left out."""
        (folder / "experiments.yaml").write_text(
            EXPERIMENTS
            + "fourth: {group: results, asks: A third., seeds: 2, set: [cluster.k=9]}\n"
            + "turned: {group: results, asks: Turned., seeds: 5, set: [augment.rotation=90.0]}\n"
        )
        write(folder, RESULTS + "{{seeds fourth}}\n{{seeds turned}}\n{{signals}}\n")

        def put_with(name, seed, accuracy, agreement, drift):
            trust = {"view_agreement": agreement, "drift": drift}
            metrics = {"final": {"accuracy": accuracy, "nmi": 0.5}, "trust": trust}
            put(folder, name, seed, None, metrics=metrics)

        for seed, accuracy, agreement, drift in ((1, 0.7, 0.8, 0.1), (2, 0.8, 0.9, 0.2), (3, 0.9, 0.7, 0.3)):
            put_with("base", seed, accuracy, agreement, drift)
        put_with("fewer", 1, 0.6, 0.6, None)
        put_with("fourth", 1, 0.5, 0.5, 0.05)
        put_with("fourth", 2, 0.5, 0.6, 0.4)
        for seed in range(1, 6):
            put_with("turned", seed, seed / 10, seed / 10, seed / 10)
        found = lines(folder)
        # medians: (agreement, accuracy) (0.8, 0.8), (0.6, 0.6), (0.55, 0.5), in one order;
        # all: ranks 5 6 4 2.5 1 2.5 of agreement and 4 5 6 3 1.5 1.5 of accuracy, covariance 13.25, variances 17
        header, _, agreement, drift = found[-4:]
        assert header == (
            "| compared | measure | settings | runs | between settings | between all runs | pairs of seeds |"
        )
        # pairs of base by agreement: 0.7 < 0.8 right, 0.8 > 0.7 wrong twice; of fourth: of one accuracy
        assert agreement == "| `base` and 2 more | view_agreement | 3 | 6 | 1.00 | 0.78 | 1 of 3 |"
        # less drift is better, so base's pairs are all wrong; two settings have no rank correlation
        assert drift.startswith("|  | drift | 2 | 5 | – | ")
        assert drift.endswith(" | 0 of 3 |")

    def test_too_few_runs_have_no_row(self, folder):
        write(folder, RESULTS + "{{signals}}\n")
        assert lines(folder)[-1] == "| --- | --- | --- | --- | --- | --- | --- |"
