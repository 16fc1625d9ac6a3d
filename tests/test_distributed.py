"""What several processes exchange, and how they end when one of them does not go on."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import environment, forked, in_processes

from deepcluster import distributed
from deepcluster.distributed import ALONE, Process, blocks, joined
from deepcluster.errors import DistributedError, LostProcessError, NumericsError, UserError


@given(units=st.integers(0, 40), count=st.integers(1, 12), step=st.integers(1, 7), short=st.integers(0, 6))
def test_rows_of_all_processes_are_all_rows_in_whole_units(units, count, step, short):
    total = max(0, units * step - min(short, step - 1))
    found = [Process(rank, count).rows(total, step) for rank in range(count)]
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(total))
    assert all(rows.start % step == 0 or rows.start == total for rows in found)
    assert [len(block) for block in blocks(units, count)] == sorted(map(len, blocks(units, count)), reverse=True)


def test_alone_nothing_is_exchanged():
    values = np.arange(3.0)
    assert ALONE.total(values) is values
    assert ALONE.gathered({"a": 1}) == [{"a": 1}]
    assert ALONE.from_first("b") == "b"
    assert ALONE.collected(values) is values
    ALONE.wait(lambda: pytest.fail("nobody is waited for"))
    assert (ALONE.first, ALONE.label("pca@1"), ALONE.largest(2.0)) == (True, "pca@1", 2.0)


def test_sums_words_and_rows_reach_every_process(tmp_path):
    def work(process):
        rank, polls = process.rank, []
        if rank == 0:
            time.sleep(0.1)
        process.wait(lambda: polls.append(1))
        rows = np.full((rank, 2), rank, np.int32)  # none at the first
        return (
            process.total(np.array([1.5, rank])),
            process.total(np.array(1 << 40)),
            process.gathered("é" * rank),
            process.from_first([rank, None]),
            process.largest(-float(rank)),
            process.collected(rows),
            process.label("pca@1"),
            bool(polls) or rank == 0,
        )

    found = in_processes(3, work, tmp_path)
    for rank, (total, large, words, first, largest, rows, label, polled) in enumerate(found):
        np.testing.assert_array_equal(total, [4.5, 3.0])
        assert (large, words, first, largest) == (3 << 40, ["", "é", "éé"], [0, None], 0.0)
        assert label == f"pca@1 (process {rank} of 3)"
        assert (rows is None) == (rank > 0)
        assert polled
    np.testing.assert_array_equal(found[0][5], [[1, 1], [2, 2], [2, 2]])


def ended(work, tmp_path: Path, count: int = 2, **variables: str) -> list[tuple[int, str]]:
    """(exit code, class and message of the error that left the block) of each process."""

    def run(rank: int) -> str:
        try:
            with joined() as process:
                work(process)
        except UserError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    return [(each.code, each.found) for each in forked(run, [e | variables for e in environment(count)], tmp_path)]


def test_all_end_with_one_line_when_they_were_given_different_things(tmp_path):
    def work(process):
        process.agree("train@3", {"params.yaml": "a", "images": "b" if process.rank == 2 else "a"})

    found = ended(work, tmp_path, 3)
    line = "DistributedError: train@3: process 2 of 3 was given other images than process 0; give all the same, "
    assert sorted(code for code, _ in found) == [0, 3, 3]
    assert [said for _, said in found if said] == [line + "then start them again"]


def test_an_error_in_one_is_said_by_that_one(tmp_path):
    def work(process):
        if process.rank == 1:
            raise NumericsError("loss is nan")
        process.wait()

    (first, said_first), (second, said_second) = ended(work, tmp_path)
    assert (first, said_first, second) == (distributed.FOLLOWS, None, 0)
    assert said_second.startswith("NumericsError: process 1 of 2 on ")
    assert said_second.endswith(": loss is nan")


def test_when_one_dies_another_says_so(tmp_path):
    def work(process):
        if process.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        process.total(np.zeros(1))

    (first, said), (second, _) = ended(work, tmp_path)
    assert (first, second) == (0, -signal.SIGKILL)
    assert said == (
        "LostProcessError: another process of this stage has ended or cannot be reached; nothing was published; "
        "start the stage again"
    )
    assert LostProcessError.exit_code == 1


def test_nobody_waits_longer_than_the_time_out(tmp_path):
    def work(process):
        if process.rank == 1:
            time.sleep(2)
        process.wait()

    found = ended(work, tmp_path, DEEPCLUSTER_TIMEOUT="0.5")
    assert "another process of this stage does not answer within 0.5 s (DEEPCLUSTER_TIMEOUT); " in found[0][1]


def test_other_runtime_errors_are_no_lost_process():
    with pytest.raises(RuntimeError, match=r"^a bug$"), distributed._together():
        raise RuntimeError("a bug")
    with pytest.raises(LostProcessError, match="has ended"), distributed._together():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    with pytest.raises(DistributedError, match=r"^x$"), distributed._together():
        raise DistributedError("x")


class TestEnvironment:
    def test_alone_unless_a_launcher_started_it(self, monkeypatch):
        for name in ("RANK", "WORLD_SIZE"):  # as a cluster's operator numbers machines
            monkeypatch.setenv(name, "4")
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        assert (distributed.world_size(), distributed.rank(), distributed.processes_here()) == (1, 0, 1)
        with joined() as process:
            assert process is ALONE

    def test_what_a_launcher_says(self, monkeypatch):
        for name, value in (environment(3)[2] | {"LOCAL_WORLD_SIZE": "2"}).items():
            monkeypatch.setenv(name, value)
        assert (distributed.world_size(), distributed.rank(), distributed.processes_here()) == (3, 2, 2)
        monkeypatch.setenv("RANK", "two")
        with pytest.raises(UserError, match=r"^RANK: must be a number; got 'two'$"):
            distributed.rank()

    @pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
    def test_a_time_out_that_is_none(self, monkeypatch, text):
        monkeypatch.setenv("DEEPCLUSTER_TIMEOUT", text)
        with pytest.raises(
            UserError, match=rf"^DEEPCLUSTER_TIMEOUT: must be a number of seconds over 0; got '{text}'$"
        ):
            distributed.timeout()

    def test_each_process_takes_the_gpu_of_its_number(self, monkeypatch):
        for name, value in environment(3)[2].items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(distributed, "uses_gpus", lambda: True)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-a, 7")
        distributed.take_own_gpu()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
        with pytest.raises(UserError, match=r"^1 GPUs for process 2 of this machine, counted from 0; "):
            distributed.take_own_gpu()
