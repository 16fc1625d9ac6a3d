"""Artifacts: any array of any type, shape, memory layout and chunking is read back as it was written, to the bit."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import REFUSED, edited, outcomes
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepcluster import artifacts
from deepcluster.artifacts import store as store_module

DTYPES = ("?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">i4", ">f4", ">f8")
PROVENANCE = artifacts.Provenance(samples=3, ids="0" * 64, epoch=1, seed=7, params={"k": 2})


@st.composite
def arrays(draw: st.DrawFn, *, min_dims: int = 1) -> np.ndarray:
    """Any bits, NaN of every kind among them, in any memory layout."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=4, min_side=0, max_side=7))
    count = int(np.prod(shape))
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    bits = np.frombuffer(raw, dtype) if dtype.kind != "b" else np.frombuffer(raw, np.uint8) % 2 == 1
    array = bits.reshape(shape)
    match draw(st.sampled_from(["plain", "transposed", "reversed", "strided", "fortran"])):
        case "transposed":
            return array.T
        case "reversed":
            return array[::-1] if array.ndim else array
        case "strided":
            return np.repeat(array, 2, axis=0)[::2] if array.ndim else array
        case "fortran":
            return np.asfortranarray(array)
    return array


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    little = one.dtype.newbyteorder("<")
    return (
        one.shape == other.shape
        and one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
        and one.astype(little, copy=False).tobytes() == other.astype(little, copy=False).tobytes()
    )


def test_any_array_in_any_chunks(tmp_path, monkeypatch):
    chunking = st.tuples(
        st.integers(1, 200), st.integers(1, 800), st.integers(1, 5), st.integers(0, 8), st.integers(0, 8)
    )

    def act(given: tuple[np.ndarray, tuple[int, ...]]) -> str:
        array, (chunk_bytes, shard_bytes, step, start, stop) = given
        monkeypatch.setattr(store_module, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(store_module, "SHARD_BYTES", shard_bytes)
        names = [f"axis_{axis}" for axis in range(array.ndim)]
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path = Path(folder) / "x.zarr"
            with artifacts.write_store(path, "any", PROVENANCE) as writer:
                writer.array("whole", array, names)
                if len(array):
                    blocks = (array[first : first + step] for first in range(0, len(array), step))
                    writer.rows("rows", blocks, total=len(array), dimensions=names)
            store = artifacts.open_store(path, "any", made_by="x", ids="0" * 64, epoch=1)
            for name in ("whole", "rows") if len(array) else ("whole",):
                assert same_bits(store.read(name), array)
                assert same_bits(store.read(name, slice(start, stop)), array[start:stop])
                read = list(store.blocks(name, step))
                assert same_bits(np.concatenate(read) if read else array[:0], array)
        return f"{array.dtype.kind}{' empty' if not array.size else ''}"

    counts = outcomes("artifacts: arrays", st.tuples(arrays(), chunking), act, quick=25)
    assert counts["f"] >= counts.total() // 20


def test_any_strings(tmp_path):
    # what a file may be called: text without NUL, and bytes that are not UTF-8 as surrogates
    names = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9), max_size=6)
    surrogate = st.lists(
        st.binary(max_size=6).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
    )

    def act(values: list[str]) -> str:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path = Path(folder) / "x.zarr"
            with artifacts.write_store(path, "any", PROVENANCE) as writer:
                writer.strings("names", values, ("sample",))
            assert artifacts.open_store(path, "any", made_by="x").strings("names") == values
        return "read"

    outcomes("artifacts: strings", names | surrogate, act, quick=15)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


def test_any_checkpoint(tmp_path):
    kinds = st.dictionaries(NAMES, arrays(min_dims=0), max_size=3)

    def act(given: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> str:
        weights, optimizer, heads = given
        files = artifacts.CheckpointFiles(weights, optimizer, {"backbone": {"arch": "convnet"}}, heads)
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            artifacts.write_checkpoint(Path(folder) / "c", files, PROVENANCE)
            found = artifacts.read_checkpoint(Path(folder) / "c", made_by="x", ids="0" * 64, epoch=1)
        for ours, theirs in ((weights, found.weights), (optimizer, found.optimizer), (heads, found.heads)):
            assert ours.keys() == theirs.keys()
            assert all(same_bits(ours[name], theirs[name]) for name in ours)
        return "read"

    outcomes("artifacts: checkpoints", st.tuples(kinds, kinds, kinds), act, quick=30)


def test_any_edit_of_a_checkpoint_description(tmp_path):
    files = artifacts.CheckpointFiles({"w": np.ones(3, np.float32)}, {}, {"backbone": {"arch": "convnet"}})
    artifacts.write_checkpoint(tmp_path / "c", files, PROVENANCE)
    described = (tmp_path / "c/checkpoint.json").read_bytes()
    values = st.sampled_from([None, 1, [], {}, "x", [1], {"model.safetensors": None}, {"deepcluster": 1}])

    @st.composite
    def exchanged(draw: st.DrawFn) -> bytes:
        content = json.loads(described)
        for _ in range(draw(st.integers(1, 2))):
            content[draw(st.sampled_from([*content]))] = draw(values)
        return json.dumps(content).encode()

    def act(content: bytes) -> str:
        (tmp_path / "c/checkpoint.json").write_bytes(content)
        found = artifacts.read_checkpoint(tmp_path / "c", made_by="x", ids="0" * 64, epoch=1)
        assert same_bits(found.weights["w"], np.ones(3, np.float32))
        return "read"

    contents = edited(st.just(described)) | exchanged() | st.sampled_from([b"[" * 100_000, b"1", b"[]", b"null"])
    counts = outcomes("artifacts: checkpoint.json", contents, act, quick=50)
    assert counts[REFUSED] >= counts.total() // 5


def test_any_edit_of_a_store(tmp_path):
    """Of the attributes, the metadata or a shard: refused, or what is read is what was written."""
    import shutil

    values = {"plain": np.arange(60, dtype=np.float32).reshape(20, 3), "packed": np.arange(40).reshape(20, 2)}
    with artifacts.write_store(tmp_path / "good.zarr", "any", PROVENANCE) as writer:
        for name, array in values.items():
            writer.array(name, array, ("sample", "value"))
    paths = sorted(
        path.relative_to(tmp_path / "good.zarr") for path in (tmp_path / "good.zarr").rglob("*") if path.is_file()
    )
    inputs = st.one_of(
        *(st.tuples(st.just(path), edited(st.just((tmp_path / "good.zarr" / path).read_bytes()))) for path in paths)
    )
    number = itertools.count()

    def act(given: tuple[Path, bytes]) -> str:
        relative, content = given
        path = tmp_path / f"{next(number)}.zarr"
        shutil.copytree(tmp_path / "good.zarr", path)
        try:
            changed = content != (path / relative).read_bytes()
            (path / relative).write_bytes(content)
            store = artifacts.open_store(path, "any", made_by="x", ids="0" * 64, epoch=1)
            for name, array in values.items():
                assert same_bits(store.read(name), array)
            return "read, altered" if changed else "read"
        finally:
            shutil.rmtree(path)

    counts = outcomes("artifacts: edited stores", inputs, act, quick=50)
    assert counts[REFUSED] >= counts.total() // 3
