"""extract@1 by several processes: the bytes of one, whatever their number, also after a kill; wrong starts refused."""

import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import digests
from ranks import environment, forked, stage_in_processes
from test_resuming import _settings, ready, run  # noqa: F401 - fixtures
from test_resuming_extract import TestExtract as OneProcess
from test_shards import small

from deepcluster import artifacts, distributed, layout
from deepcluster.distributed import Process
from deepcluster.errors import LostProcessError
from deepcluster.params import load_params
from stages import common
from stages.common import main, open_images
from stages.extract import extract
from stages.report import report
from stages.together import refuse_idle

PUBLISHED = str(layout.features(1))
WHOLE = layout.progress("extract", 1) / "features.zarr/features/c/3/0"


@pytest.fixture(autouse=True)
def _small(run):  # noqa: F811 - the fixture
    """48 images in batches of 5; chunks of 2 rows, 6 shards of 8."""
    artifacts.remove(layout.features(1))
    with small(chunk=2048, shard=8192):
        yield


@pytest.fixture
def expected():
    """The files that one process makes."""
    extract(1)
    found = digests(Path(), PUBLISHED)
    artifacts.remove(layout.features(1))
    return found


@pytest.mark.parametrize("count", [2, 5, 8])  # 8: two have no shard
def test_the_bytes_of_one_process(expected, count, tmp_path):
    ended = stage_in_processes(extract, count, tmp_path / "ranks", variables={"DEEPCLUSTER_ALLOW_IDLE": "1"})
    assert [each.code for each in ended] == [0] * count, ended
    assert digests(Path(), PUBLISHED) == expected
    assert not layout.PROGRESS.exists()
    assert all((each.out, each.err) == ("", "") for each in ended[1:])
    images = 8 * -(-6 // count)  # of the first one's block of shards
    *before, last = ended[0].err.splitlines()
    assert before == (["extract@1: 8 processes for 6 shards: 2 of them wait"] if count == 8 else [])
    assert re.match(rf"extract@1 \(process 0 of {count}\): {images} images, ", last)


def test_more_processes_than_shards_are_refused_under_torchrun(tmp_path):
    ended = stage_in_processes(extract, 7, tmp_path / "ranks")
    assert "".join(each.err for each in ended) == (
        "error: extract@1: 7 processes for 6 shards, so 1 would have nothing to do; start at most 6, or let them wait: "
        "DEEPCLUSTER_ALLOW_IDLE=1\n"
    )
    assert sorted(each.code for each in ended) == [2, *[distributed.FOLLOWS] * 6]
    assert not layout.features(1).exists()
    assert not layout.PROGRESS.exists()


def test_those_that_a_stage_has_started_itself_wait(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"deepcluster-{os.getppid()}")
    refuse_idle(Process(0, 3), "extract@1", 1, "shard")
    refuse_idle(Process(1, 3), "extract@1", 1, "shard")
    refuse_idle(Process(0, 3), "extract@1", 3, "shard")
    refuse_idle(distributed.ALONE, "extract@1", 0, "shard")
    assert capsys.readouterr().err == "extract@1: 3 processes for 1 shard: 2 of them wait\n"


def killed(folder: Path, count: int, rank: int, batch: int, number: int = signal.SIGKILL) -> list[int]:
    """Exit codes of processes of which one is killed in a batch, counted from 1; shard 3 is whole by then."""

    entered = ExitStack()

    def end() -> None:
        until = time.monotonic() + 60
        while WHOLE.stat().st_size < 4 * (2 * 1024 + 4) + 4 * 16 + 4:  # chunks and their checksums, the index and its
            assert time.monotonic() < until  # a thread writes
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    def before(own: int) -> None:
        if own == rank:
            entered.enter_context(OneProcess().batches(batch, end))

    return [each.code for each in stage_in_processes(extract, count, folder, before=before)]


@pytest.mark.parametrize("again", [1, 2, 3])
def test_another_number_of_processes_goes_on_after_a_kill(expected, again, tmp_path, capsys):
    """Of two processes the second dies in its last batch, so that its first shards are whole."""
    assert killed(tmp_path / "ranks", 2, 1, 5) == [LostProcessError.exit_code, -signal.SIGKILL]
    assert not layout.features(1).exists()
    made = WHOLE.stat().st_mtime_ns
    if again == 1:
        with OneProcess().batches() as begun:
            extract(1)
        assert len(begun) <= 4
        said = capsys.readouterr().err
    else:
        ended = stage_in_processes(extract, again, tmp_path / "again")
        assert [each.code for each in ended] == [0] * again, ended
        said = ended[0].err
    assert re.search(r"^extract@1: continues at image \d+ of 48$", said, flags=re.MULTILINE)
    assert digests(Path(), PUBLISHED) == expected
    assert (layout.features(1) / "features/c/3/0").stat().st_mtime_ns == made


def test_what_two_processes_go_on_with_may_be_of_one(expected, tmp_path):
    OneProcess().killed_in(7)
    ended = stage_in_processes(extract, 2, tmp_path / "ranks")
    assert [each.code for each in ended] == [0, 0], ended
    assert "continues at image " in ended[0].err
    assert digests(Path(), PUBLISHED) == expected


def test_features_that_are_not_finite_are_said_by_who_met_them(tmp_path):
    def before(rank):
        def spoil(images):
            return images.float() * (float("nan") if rank else 1.0)

        pytest.MonkeyPatch().setattr("deepcluster.features.to_float", spoil)

    first, second = stage_in_processes(extract, 2, tmp_path / "ranks", before=before)
    assert (first.code, first.err.splitlines()[1:], second.code) == (distributed.FOLLOWS, [], 2)
    assert re.fullmatch(
        r"error: process 1 of 2 on \S+: features of \d+ images in one batch are NaN or infinite \(rows 20, .*\n",
        second.err,
    )
    assert not layout.features(1).exists()


def test_params_that_differ_are_refused_before_any_work(tmp_path):
    ended = stage_in_processes(extract, 2, tmp_path / "ranks", before=other_params)
    assert sorted(each.code for each in ended) == [2, distributed.FOLLOWS]
    said = "".join(each.err for each in ended)
    assert said == (
        "error: extract@1: process 1 of 2 was given other params.yaml than process 0; give all the same, "
        "then start them again\n"
    )
    assert not layout.features(1).exists()


def test_other_images_are_refused_before_any_work(tmp_path):
    def other_images(rank: int) -> None:
        if rank:
            found = open_images()
            other = replace(found, attributes={**found.attributes, "digest": "other"})
            pytest.MonkeyPatch().setattr("stages.extract.open_images", lambda: other)

    ended = stage_in_processes(extract, 2, tmp_path / "ranks", before=other_images)
    said = "extract@1: process 1 of 2 was given other images than process 0; give all the same, then start them again"
    assert "".join(each.err for each in ended) == f"error: {said}\n"
    assert not layout.features(1).exists()
    assert not layout.PROGRESS.exists()


def other_params(rank: int) -> None:
    """The second process sees another params.yaml."""
    if rank:
        found = load_params()
        other = found.model_copy(update={"extract": found.extract.model_copy(update={"batch_size": 6})})
        common.load_params = lambda: other


def test_an_override_is_refused_and_so_is_a_stage_of_one_process(tmp_path):
    def work(rank: int) -> None:
        sys.argv = ["report"] if rank else ["extract", "--epoch", "1", "-S", "extract.batch_size=3"]
        main(report if rank else extract)

    first, second = forked(work, environment(2), tmp_path / "ranks")
    assert (first.code, second.code) == (2, 2)
    assert first.err == "error: -S: each of several processes would edit params.yaml; use `deepcluster set` before\n"
    assert second.err == "error: report: is the work of one process; start it without torchrun\n"
