"""The arithmetic of the benchmarks, by hand: a wrong ratio there would be a wrong claim in the docs."""

import pytest

from benchmarks import page, pipeline, results
from benchmarks.data import Source
from benchmarks.growth import stage_growth


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    found = results.comparison("a", [10, 40, 30], [20, 10, 30], against="b", unit="images", target=0.9)
    assert (found.rate, found.reference_rate, found.ratio) == (30, 20, 1.0)  # of 0.5, 4 and 1
    assert (found.lowest, found.highest, found.rounds, found.verdict) == (0.5, 4.0, 3, "met")
    missed = results.comparison("a", [8.0], [10.0], against="b", unit="images", target=0.9)
    assert missed.verdict == "MISSED"


def test_works_are_interleaved_and_warmed_up():
    calls = []

    def work(name):
        def run():
            calls.append(name)
            return 1.0

        return run

    measured = results.rates([work("a"), work("b")], 2, before=lambda: calls.append("-"))
    assert calls == ["a", "b", "-", "a", "-", "b", "-", "a", "-", "b"]
    assert [len(rates) for rates in measured] == [2, 2]


@pytest.mark.parametrize(
    "announced", ["extract@{}", "[0:0{}] extract@{}", "Running stage 'extract@{}':"], ids=["bare", "run", "repro"]
)
def test_epochs_are_timed_from_one_announcement_to_the_next(announced):
    lines = [
        (0.5, "prepare"),
        (2.0, announced.format(1, 1)),
        (2.5, "extract@1: 7 images"),
        (5.0, announced.format(2, 2)),
    ]
    assert pipeline.epoch_seconds([*lines, (9.0, "done")]) == [2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="no epoch was announced"):
        pipeline.epoch_seconds(lines[:1])


def test_stages_are_counted_in_both_ways_of_running():
    lines = ["[0:00] prepare", "[10:07] train@3", "prepare: decode: 7 images", "Running stage 'pca@1':", "3 stages ran"]
    assert pipeline.stages_run([(0.0, line) for line in lines]) == 3


def test_growth_of_a_quadratic_stage():
    found = stage_growth("s", {10: 1.0, 20: 4.0, 40: 16.0}, {10: 1.0, 20: 2.0, 40: 4.0})
    assert found.exponent == pytest.approx(2)
    assert found.last_exponent == pytest.approx(2)
    assert found.kilobytes_per_image == pytest.approx(2.0 * 1000 / 20)


def test_a_report_that_is_too_large_or_opens_too_slowly_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DEEPCLUSTER_BROWSER", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = page.measure(Source(), quick=True, long=False, images=40, output=tmp_path)
    assert [(each.images, each.clusters, each.opening_seconds) for each in found] == [(40, 20, None)] * 2
    assert found[1].megabytes == (tmp_path / "report.html").stat().st_size / 1e6
    assert "opened within 3 s: met" in capsys.readouterr().out
    assert page._verdict([page.Page(1, "", 1, 1, 15.1, 0, None, None)]) == "MISSED"
    assert page._verdict([page.Page(1, "", 1, 1, 1.0, 0, 3.1, 0.1)]) == "MISSED"
