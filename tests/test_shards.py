"""Shard files without zarr: the bytes that zarr writes, the rows that zarr reads, and every damage found."""

import errno
import json
import os
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcluster import artifacts
from deepcluster.artifacts import shards
from deepcluster.artifacts import store as store_module
from deepcluster.errors import ArtifactError

PROVENANCE = artifacts.Provenance(samples=3, ids="ids", epoch=1)


@contextmanager
def small(*, by_zarr=False, chunk=256, shard=1024):
    """Chunks, shards, writes and reads of a few rows; `by_zarr` takes the way of all other arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_BYTES", chunk)
        patch.setattr(store_module, "SHARD_BYTES", shard)
        patch.setattr(shards, "WRITE_BYTES", 3 * chunk)
        patch.setattr(shards, "READ_BYTES", 3 * chunk)
        patch.setattr(shards, "BUFFERS_PER_CALL", 5)
        if by_zarr:
            patch.setattr(store_module, "plain_rows", lambda folder: None)
        yield


def write(path, values, *, block=None):
    dimensions = [f"axis_{axis}" for axis in range(values.ndim)]
    with artifacts.write_store(path, "features", PROVENANCE) as store:
        if block is None:
            store.array("features", values, dimensions)
        else:
            blocks = (values[start : start + block] for start in range(0, len(values), block))
            store.rows("features", blocks, total=len(values), dimensions=dimensions)


def opened(path):
    return artifacts.open_store(path, "features", made_by="extract@1")


def content(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def normal(shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def check_against_zarr(folder, values, block, rows):
    with small(by_zarr=True):
        write(folder / "zarr", values)
    with small():
        write(folder / "plain", values, block=block)
        assert isinstance(opened(folder / "plain")._rows("features"), shards.PlainRows)
        np.testing.assert_array_equal(opened(folder / "plain").read("features", rows), values[rows])
        np.testing.assert_array_equal(opened(folder / "zarr").read("features"), values)
    assert content(folder / "plain") == content(folder / "zarr")
    np.testing.assert_array_equal(zarr.open(folder / "plain", mode="r")["features"][:], values)


@pytest.mark.parametrize("block", [None, 1, 7, 1000])
@pytest.mark.parametrize(
    "shape",
    [(1, 16), (4, 16), (16, 16), (17, 16), (103, 16), (1,), (63,), (64,), (1000,), (5, 100), (3, 1000), (9, 2, 5)],
)
def test_bytes_equal_those_of_zarr(tmp_path, shape, block):
    check_against_zarr(tmp_path, normal(shape), block, slice(1, 50))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 90),
    rest=st.lists(st.integers(1, 12), max_size=3),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    block=st.none() | st.integers(1, 40),
    part=st.tuples(st.integers(-100, 100) | st.none(), st.integers(-100, 100) | st.none()),
)
def test_bytes_and_slices_equal_those_of_zarr(tmp_path_factory, rows, rest, dtype, block, part):
    check_against_zarr(tmp_path_factory.mktemp("x"), normal((rows, *rest), dtype), block, slice(*part))


def test_chunks_of_the_real_size(tmp_path):
    values = normal((3000, 1024))  # 12 chunks of 1 MiB, the last one not full
    write(tmp_path / "plain", values, block=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "plain_rows", lambda folder: None)
        write(tmp_path / "zarr", values)
    assert content(tmp_path / "plain") == content(tmp_path / "zarr")
    np.testing.assert_array_equal(opened(tmp_path / "plain").read("features"), values)
    np.testing.assert_array_equal(opened(tmp_path / "plain").read("features", slice(100, 2999)), values[100:2999])


@pytest.mark.parametrize(
    "change", [lambda x: x[::2], np.asfortranarray, lambda x: x.astype(">f4"), lambda x: x[:, ::-1], lambda x: x[:0]]
)
def test_any_memory_layout(tmp_path, change):
    values = change(normal((50, 16)))
    values.setflags(write=False)
    with small():
        write(tmp_path / "x", values)
        np.testing.assert_array_equal(opened(tmp_path / "x").read("features"), values)


@pytest.fixture
def stored(tmp_path):
    """35 rows in shards of 16 rows and chunks of 4."""
    with small():
        write(tmp_path / "x.zarr", normal((35, 16)))
        yield tmp_path / "x.zarr"


def shard(stored, number):
    return stored / f"features/c/{number}/0"


@pytest.mark.parametrize("number", [0, 2])
def test_every_flipped_byte_is_found_and_named(stored, number):
    before = shard(stored, number).read_bytes()
    for position in range(len(before)):
        damaged = bytearray(before)
        damaged[position] ^= 1 << position % 8
        shard(stored, number).write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"x\.zarr/features: damaged \(c/{number}/0: "):
            opened(stored).read("features")
    shard(stored, number).write_bytes(before)
    np.testing.assert_array_equal(opened(stored).read("features"), normal((35, 16)))


@pytest.mark.parametrize(
    ("position", "what"),
    [
        (260, "checksum differs"),  # chunk 1, a row before those wanted
        (260 + 64, "checksum differs"),
        (520 - 5, "checksum differs"),  # a row after them
        (520 - 1, "checksum differs"),
        (4 * 260, "shard index differs"),
        (4 * 260 + 40, "shard index differs"),  # the index of another chunk
        (-1, "shard index differs"),
    ],
)
def test_a_flipped_byte_is_found_by_a_slice(stored, position, what):
    damaged = bytearray(shard(stored, 1).read_bytes())
    damaged[position] ^= 1
    shard(stored, 1).write_bytes(damaged)
    with pytest.raises(ArtifactError, match=rf"x\.zarr/features: damaged \(c/1/0: {what}"):
        opened(stored).read("features", slice(16 + 5, 16 + 7))


@pytest.mark.parametrize("rows", [slice(None), slice(18, 20)])
@pytest.mark.parametrize("kept", [0, 1, 300, -1, None])
def test_a_short_or_missing_file_is_found(stored, kept, rows):
    """By its size when the store is asked for it, and by the reading itself."""
    before = shard(stored, 1).read_bytes()
    plain = shards.plain_rows(stored / "features")
    shard(stored, 1).unlink()
    if kept is not None:
        shard(stored, 1).write_bytes(before[:kept])
    with pytest.raises(ArtifactError, match=r"features/c/1/0: damaged \(missing, cut short or altered\)"):
        opened(stored).read("features", rows)
    with pytest.raises((ValueError, FileNotFoundError), match=r"c/1/0"):
        plain.read(*rows.indices(35)[:2])


def test_a_longer_file_is_found(stored):
    plain = shards.plain_rows(stored / "features")
    with shard(stored, 1).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="c/1/0: cut short or too long"):
        plain.read(0, 35)


def test_a_damaged_file_leaves_no_thread_and_no_open_file(stored):
    plain = shards.plain_rows(stored / "features")
    damaged = bytearray(shard(stored, 0).read_bytes())
    damaged[0] ^= 1
    shard(stored, 0).write_bytes(damaged)
    threads, files = threading.active_count(), len(os.listdir("/dev/fd"))
    with pytest.raises(ValueError, match="checksum differs") as kept:
        plain.read(0, 35)
    assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, files)
    del kept


def test_calls_that_transfer_less_than_asked(tmp_path, monkeypatch):
    write_some, read_some = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda file, parts, at: write_some(file, [memoryview(parts[0])[:97]], at))
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: read_some(file, [memoryview(parts[0])[:89]], at))
    check_against_zarr(tmp_path, normal((103, 16)), 7, slice(3, 90))


OTHERS = [
    (["fill_value"], 1.0),
    (["fill_value"], "NaN"),
    (["data_type"], "int32"),
    (["chunk_key_encoding", "configuration", "separator"], "."),
    (["codecs", 0, "configuration", "index_location"], "start"),
    (["codecs", 0, "configuration", "codecs", 0, "configuration", "endian"], "big"),
    (["codecs", 0, "configuration", "codecs"], [{"name": "bytes", "configuration": {"endian": "little"}}]),
    (["codecs", 0, "configuration", "index_codecs"], [{"name": "bytes", "configuration": {"endian": "little"}}]),
    (["codecs", 0, "configuration", "chunk_shape"], [4, 8]),
    (["codecs", 0, "configuration", "write_order"], "random"),
    (["codecs"], [{"name": "bytes"}]),
    (["shape"], [0, 16]),
    (["shape"], [35, 15]),
    (["storage_transformers"], [{"name": "future"}]),
    (["future"], {"must_understand": True}),
]


@pytest.mark.parametrize(("keys", "value"), OTHERS)
def test_any_other_layout_is_left_to_zarr(stored, keys, value):
    path = stored / "features/zarr.json"
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))
    assert shards.plain_rows(stored / "features") is None


def test_an_array_by_other_means_is_read_by_zarr(tmp_path):
    values = normal((35, 16))
    with artifacts.write_store(tmp_path / "x", "features", PROVENANCE) as store:
        store._group.create_array("features", data=values, chunks=(5, 8), compressors=None)
    found = opened(tmp_path / "x")
    assert isinstance(found._rows("features"), shards.ZarrRows)
    np.testing.assert_array_equal(found.read("features", slice(3, 33)), values[3:33])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_an_error_among_the_blocks_publishes_nothing_and_leaves_no_thread(tmp_path, dtype, error):
    def blocks():
        yield from np.zeros((5, 10, 16), dtype)
        raise error

    threads = threading.active_count()
    with small(), pytest.raises(error), artifacts.write_store(tmp_path / "x", "features", PROVENANCE) as store:
        store.rows("features", blocks(), total=100, dimensions=("sample", "feature"))
    assert list(tmp_path.iterdir()) == []
    if dtype == np.float32:  # zarr has a thread of its own for good
        assert threading.active_count() <= threads + 1


def test_a_full_disk_publishes_nothing(tmp_path, monkeypatch):
    write_some, calls = os.pwritev, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_some(*arguments)

    monkeypatch.setattr(os, "pwritev", full)
    with small(), pytest.raises(OSError, match="No space left"):
        write(tmp_path / "x", normal((1000, 16)), block=7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(("total", "got"), [(40, "35"), (30, "more")])
def test_another_number_of_rows_than_promised(tmp_path, total, got, dtype):
    values = np.zeros((35, 16), dtype)
    with (
        small(),
        pytest.raises(ValueError, match=rf"^features: expected {total} rows in all, got {got}$"),
        artifacts.write_store(tmp_path / "x", "features", PROVENANCE) as store,
    ):
        store.rows("features", [values], total=total, dimensions=("sample", "feature"))
    assert list(tmp_path.iterdir()) == []


def test_misuse_is_refused(stored, tmp_path):
    with artifacts.write_store(tmp_path / "y", "features", PROVENANCE) as store:
        with pytest.raises(ValueError, match="none: no rows to write"):
            store.rows("none", [], total=0, dimensions=("sample",))
        with pytest.raises(ValueError, match=r"bent: rows must be of shape \(4,\), got \(1,\)"):
            store.rows("bent", [np.zeros((2, 4), "f4"), np.zeros((2, 1), "f4")], total=4, dimensions=("a", "b"))
    with pytest.raises(ValueError, match="steps of 1"):
        opened(stored).read("features", slice(0, 10, 2))
