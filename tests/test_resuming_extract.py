"""Extract killed on the way: it goes on where it stopped, and ends with the bytes of an undisturbed run."""

import fcntl
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import digests
from test_resuming import (  # noqa: F401 - fixtures
    Killed,
    _settings,
    kill,
    monkeypatched,
    ready,
    run,
    set_params,
)
from test_shards import small

from deepcluster import artifacts, layout, resuming
from stages.extract import extract


class TestExtract:
    """48 images in batches of 5; chunks of 2 rows, shards of 8, 6 rows written at once."""

    @pytest.fixture(autouse=True)
    def _small(self, run):  # noqa: F811 - the fixture
        artifacts.remove(layout.features(1))
        with small(chunk=2048, shard=8192):
            yield

    def killed_in(self, batch):
        with self.batches(batch), pytest.raises(Killed):
            extract(1)
        artifacts.remove(layout.features(1))

    @contextmanager
    def batches(self, number=0, action=kill):
        """The network does something in a batch, counted from 1; the batches begun."""
        from deepcluster import features

        begun, original = [], features.to_float

        def to_float(images):
            begun.append(len(begun) + 1)
            if begun[-1] == number:
                action()
            return original(images)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(features, "to_float", to_float)
            yield begun

    def features(self):
        assert not layout.PROGRESS.exists()
        return digests(Path(), str(layout.features(1)))

    def expected(self):
        extract(1)
        found = self.features()
        artifacts.remove(layout.features(1))
        assert len(found) == 2 + 6
        return found

    @pytest.mark.parametrize("batch", [1, 2, 5, 9, 10])
    def test_killed_in_any_batch_it_ends_with_the_same_bytes(self, batch, capsys):
        expected = self.expected()
        self.killed_in(batch)
        capsys.readouterr()
        with self.batches() as begun:
            extract(1)
        assert self.features() == expected
        continued = re.search(r"extract@1: continues at image (\d+) of 48\n", capsys.readouterr().err)
        assert bool(continued) == (batch >= 5)
        first = int(continued[1]) if continued else 0
        assert 5 * (batch - 2) - 8 <= first + 5
        assert len(begun) == 10 - first // 5

    def test_killed_again_and_again(self):
        expected = self.expected()
        for _ in range(3):
            self.killed_in(4)
        extract(1)
        assert self.features() == expected

    def test_a_damaged_chunk_and_all_after_it_are_made_anew(self, capsys):
        expected = self.expected()
        self.killed_in(10)
        shard = layout.progress("extract", 1) / "features.zarr/features/c/2/0"
        written = bytearray(shard.read_bytes())
        written[4 * 1024 + 20] ^= 1  # the third chunk of the third shard
        shard.write_bytes(written)
        extract(1)
        assert "extract@1: continues at image 18 of 48\n" in capsys.readouterr().err
        assert self.features() == expected

    def test_other_params_start_over(self, capsys):
        self.killed_in(9)
        set_params(extract__batch_size=6)
        capsys.readouterr()
        with self.batches() as begun:
            extract(1)
        assert "extract@1: starts over: what an interrupted run left was of other params\n" in capsys.readouterr().err
        assert len(begun) == 8
        found = self.features()
        artifacts.remove(layout.features(1))
        assert found == self.expected()

    def test_an_error_soon_leaves_nothing(self, monkeypatch):
        monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
        self.killed_in(9)
        assert not layout.PROGRESS.exists()

    def test_ctrl_c_keeps_what_is_written(self, monkeypatch, capsys):
        expected = self.expected()
        monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.batches(6, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            extract(1)
        signal.signal(signal.SIGINT, before)
        extract(1)
        assert "extract@1: continues at image " in capsys.readouterr().err
        assert self.features() == expected

    def test_nothing_is_used_that_another_process_left_after_it_was_looked_for(self, monkeypatch):
        """Else its key would stand beside this one's rows."""
        self.killed_in(9)
        set_params(extract__batch_size=6)
        monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
        with monkeypatched(resuming.Progress, "found", lambda _: None):
            self.killed_in(8)
        assert not layout.PROGRESS.exists()

    def test_beside_another_process_it_writes_elsewhere(self, capsys, monkeypatch):
        monkeypatch.setattr(resuming, "PATIENCE", 0.0)
        expected = self.expected()
        self.killed_in(9)
        folder = layout.progress("extract", 1)
        before = digests(folder, ".")
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            extract(1)
        assert (
            "extract@1: starts over: data/progress/extract-1 is in use by another process\n" in capsys.readouterr().err
        )
        assert digests(folder, ".") == before
        assert digests(Path(), str(layout.features(1))) == expected
