"""The lines that stages print when they have ended."""

import sys

import pytest

from deepcluster import progress


@pytest.mark.parametrize(
    ("done", "seconds", "line"),
    [
        (24, 0.5, "train@1: 24 images, 48/s, 0.5 s\n"),
        (2, 2.0, "train@1: 2 images, 1/s, 2.0 s\n"),
        (2, 20.0, "train@1: 2 images, 20.0 s\n"),  # 0/s
        (301, 0.0, "train@1: 301 images, 0.0 s\n"),
        (301, 0.00003, "train@1: 301 images, 0.0 s\n"),  # 10,033,333/s
        (0, 3.0, "train@1, 3.0 s\n"),
    ],
)
def test_a_rate_stands_where_it_says_something(monkeypatch, capsys, done, seconds, line):
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with progress.reporting("train@1", "images", start=5) as report:
        report(5 + done, 1000)
    assert capsys.readouterr().err == line
