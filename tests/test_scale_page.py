"""docs/scale-cost.md: what the model, the simulation and the record say."""

import pytest

from benchmarks import cost_measure, scale_page


def test_the_page_is_what_the_model_says():
    """After a change of the model, its cases or the prose, or a measurement: `python -m benchmarks.scale_page`."""
    text = scale_page.page(scale_page.PROSE.read_text(encoding="utf-8"), cost_measure.load_record())
    assert scale_page.PAGE.read_text(encoding="utf-8") == text


def test_a_placeholder_that_nothing_fills_is_refused():
    with pytest.raises(ValueError, match=r"\{\{nothing\}\}: no such placeholder; expected one of assumptions,"):
        scale_page.page("{{nothing}}", cost_measure.load_record())


def test_a_stale_page_is_said_and_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale_page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(scale_page, "PROSE", tmp_path / "prose.md")
    scale_page.PROSE.write_text("# Costs\n\n{{networks}}\n")
    assert scale_page.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "docs/scale-cost.md: not what the model says; run `python -m benchmarks.scale_page`\n"
    )
    assert not scale_page.PAGE.exists()
    assert scale_page.main([]) == 0
    assert scale_page.PAGE.read_text().splitlines()[3:] == [
        "| network at 224 pixels | FLOPs an image | weights | D |",
        "| --- | --- | --- | --- |",
        "| AlexNet | 2.19 GFLOP | 58.3 million | 4,096 |",
        "| ResNet-50 | 8.17 GFLOP | 23.5 million | 2,048 |",
    ]
    capsys.readouterr()
    assert scale_page.main(["--check"]) == 0


def test_errors_on_the_page_are_those_of_the_record():
    record = cost_measure.load_record()
    assert len(record["sizes"]) == 4
    largest = cost_measure.errors(record)
    assert f"extract {largest['extract']:+.0f} %" in scale_page.PAGE.read_text(encoding="utf-8")
