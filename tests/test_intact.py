"""What a kill leaves on the disk: unfinished stores cut back to what can be trusted, kept arrays read or refused."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from test_shards import content, normal, small

from deepcluster import artifacts
from deepcluster.artifacts import keep_intact, publish, read_progress, write_progress
from deepcluster.errors import ArtifactError

PROVENANCE = artifacts.Provenance(samples=3, ids="ids", epoch=1)
ROWS, VALUES = 39, normal((39, 16))  # chunks of 4 rows, the last one of 3; shards of 4 chunks, the last one of 2
KEY = {"params": "abc"}


class Killed(Exception):
    pass


def write(folder, target, *, left=None, until=None, block=5):
    """The features, or what is left of them; `until`: the row at which the process is killed."""

    def blocks(rows):
        for start in range(rows.start, rows.stop, block):
            if until is not None and start >= until:
                raise Killed
            yield VALUES[start : min(start + block, rows.stop)]

    with artifacts.continue_store(folder, target, "features", PROVENANCE) as store:
        array = store.begin("features", VALUES.shape, VALUES.dtype, ("sample", "feature"))
        for rows in [slice(0, ROWS)] if left is None else left:
            artifacts.write_rows(array, blocks(rows), rows)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(publish, "_fsync", lambda path: None)  # hundreds of stores, and a disk may be busy
    with small():
        yield


@pytest.fixture
def whole(tmp_path):
    """The files of an undisturbed store."""
    with artifacts.write_store(tmp_path / "whole", "features", PROVENANCE) as store:
        store.array("features", VALUES, ("sample", "feature"))
    return content(tmp_path / "whole")


@pytest.fixture
def unfinished(tmp_path):
    """All rows written, but not published."""
    write(tmp_path / "work", tmp_path / "published")
    (tmp_path / "published").rename(tmp_path / "work")
    return tmp_path / "work"


def finish(folder, whole):
    """Go on as a stage does; the rows that were not kept."""
    left = keep_intact(folder, "features")
    write(folder, folder.parent / "published", left=left)
    assert content(folder.parent / "published") == whole
    assert not folder.exists()
    shutil.rmtree(folder.parent / "published")
    return [(0, ROWS)] if left is None else [(rows.start, rows.stop) for rows in left]


@pytest.mark.parametrize("until", range(5, 40, 5))
def test_a_killed_store_is_continued_to_the_same_bytes(tmp_path, whole, until):
    with pytest.raises(Killed):
        write(tmp_path / "work", tmp_path / "published", until=until)
    assert not (tmp_path / "published").exists()
    first, stop = finish(tmp_path / "work", whole)[0]
    assert first % 4 == 0
    assert stop == min(first // 16 * 16 + 16, 39) or first == 0
    assert until - 20 <= first < max(until, 1)  # 12 rows are written at once, some wait, 4 are given up


def test_a_whole_store_that_was_not_published_needs_its_last_chunk_only(unfinished, whole):
    told = []
    keep_intact(unfinished, "features", lambda *numbers: told.append(numbers))
    assert told == [(16, 39), (32, 39), (39, 39)]
    assert finish(unfinished, whole) == [(32, 39)]  # another chunk is given up each time


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_files_cut_anywhere_are_continued_to_the_same_bytes(unfinished, whole, shard, tmp_path):
    """As a kill, or a power cut with later files already on the disk, may leave them."""
    path = unfinished / f"features/c/{shard}/0"
    for size in range(0, path.stat().st_size, 65):
        shutil.copytree(unfinished, tmp_path / "cut")
        os.truncate(tmp_path / "cut" / path.relative_to(unfinished), size)
        chunks = min(size // 260, 4 if shard < 2 else 2)  # 4 rows of 64 bytes, and the checksum
        first = 16 * shard + 4 * max(0, chunks - 1)
        assert finish(tmp_path / "cut", whole) == [(first, min(16 * shard + 16, 39))], size  # no other shard's


def test_a_flipped_bit_anywhere_is_found_or_harmless(unfinished, whole, tmp_path):
    rng = np.random.default_rng(0)
    files = sorted(path for path in unfinished.rglob("*") if path.is_file())
    for number in range(40):
        shutil.copytree(unfinished, tmp_path / "flipped")
        path = tmp_path / "flipped" / files[number % len(files)].relative_to(unfinished)
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        finish(tmp_path / "flipped", whole)


@pytest.mark.parametrize("damage", ["longer", "zeros", "missing", "strange", "no metadata", "other metadata"])
def test_other_damage_is_found(unfinished, whole, damage):
    shard, metadata = unfinished / "features/c/0/0", unfinished / "features/zarr.json"
    match damage:
        case "longer":
            shard.write_bytes(shard.read_bytes() + b"x")
        case "zeros":
            shard.write_bytes(bytes(shard.stat().st_size))
        case "missing":
            shard.unlink()
        case "strange":
            (unfinished / "features/c/9").mkdir()
            (unfinished / "features/c/9/0").write_bytes(b"x")
            (unfinished / "more").write_bytes(b"x")
        case "no metadata":
            metadata.unlink()
        case "other metadata":
            found = json.loads(metadata.read_text())
            found["chunk_grid"]["configuration"]["chunk_shape"] = [0, 16]
            found["codecs"][0]["configuration"]["chunk_shape"] = [0, 16]
            metadata.write_text(json.dumps(found))
    expected = {"longer": (12, 16), "strange": (36, 39), "zeros": (0, 16), "missing": (0, 16)}
    assert finish(unfinished, whole) == [expected.get(damage, (0, 39))]


def test_holes_that_several_processes_left_are_filled(unfinished, whole):
    os.truncate(unfinished / "features/c/0/0", 3 * 260)
    (unfinished / "features/c/2/0").unlink()
    assert finish(unfinished, whole) == [(8, 16), (32, 39)]


def test_nothing_is_kept_of_an_array_that_zarr_writes(tmp_path):
    labels = np.arange(40, dtype=np.int32)
    with artifacts.continue_store(tmp_path / "work", tmp_path / "out", "x", PROVENANCE) as store:
        store.array("features", labels, ("sample",))
    (tmp_path / "out").rename(tmp_path / "work")
    assert keep_intact(tmp_path / "work", "features") is None
    assert not (tmp_path / "work").exists()


ARRAYS = {
    "weights": normal((3, 4)).T,
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 7)),
    "random": np.arange(5, dtype=np.uint8),
}


def test_kept_arrays_come_back_with_what_they_belong_to(tmp_path):
    write_progress(tmp_path / "state", ARRAYS, KEY)
    arrays, key = read_progress(tmp_path / "state")
    assert key == KEY
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    write_progress(tmp_path / "state", {}, KEY)
    assert read_progress(tmp_path / "state") == ({}, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_kept_arrays_with_any_flipped_bit_or_cut_short_are_refused(tmp_path):
    path = tmp_path / "state"
    write_progress(path, ARRAYS, KEY)
    written = path.read_bytes()
    for position in range(0, len(written), 2):
        path.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        try:
            arrays, key = read_progress(path)
        except ArtifactError as error:
            assert str(error).startswith(f"{path}: damaged (")
        else:  # a blank of the header that became something as harmless
            assert key == KEY
            assert {name: array.tobytes() for name, array in arrays.items()} == {
                name: array.tobytes() for name, array in ARRAYS.items()
            }
        path.write_bytes(written[:position])
        with pytest.raises(ArtifactError, match="damaged"):
            read_progress(path)
    path.unlink()
    with pytest.raises(ArtifactError, match="damaged"):
        read_progress(path)


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    write_progress(tmp_path / "state", ARRAYS, KEY)
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_progress(tmp_path / "state", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert read_progress(tmp_path / "state")[1] == KEY
