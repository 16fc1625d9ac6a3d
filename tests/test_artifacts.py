"""Artifacts: what is written is read back, what is damaged is refused, what fails publishes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepcluster import artifacts, layout
from deepcluster.artifacts import store as store_module
from deepcluster.errors import ArtifactError

IDS = artifacts.ids_hash(["a", "b", "c"])


def provenance(epoch=1, ids=IDS):
    return artifacts.Provenance(samples=3, ids=ids, epoch=epoch, seed=7, params={"k": 2, "lr": 1e-5})


def write(path, rows_ND, **kwargs):
    with artifacts.write_store(path, "features", provenance(**kwargs)) as store:
        store.array("features", rows_ND, ("sample", "feature"))


def read(path, **kwargs):
    return artifacts.open_store(path, "features", made_by="extract@1", **kwargs).read("features")


def digest(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@settings(max_examples=30, deadline=None)
@given(
    values=hnp.arrays(
        st.sampled_from([np.float32, np.int32, np.int64, np.uint8]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9),
        elements={"min_value": 0, "max_value": 100},
    )
)
def test_round_trip_of_any_shape(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("round") / "x.zarr"
    with artifacts.write_store(path, "any", provenance()) as store:
        store.array("values", values, [f"axis_{axis}" for axis in range(values.ndim)])
    found = artifacts.open_store(path, "any", made_by="x").read("values")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_rows_from_blocks_equal_a_whole_array_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 256)
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1024)
    rows_ND = np.random.default_rng(0).normal(size=(103, 16)).astype(np.float32)
    with artifacts.write_store(tmp_path / "blocks.zarr", "features", provenance()) as store:
        blocks = (rows_ND[start : start + 7] for start in range(0, 103, 7))
        store.rows("features", blocks, total=103, dimensions=("sample", "feature"))
    write(tmp_path / "whole.zarr", rows_ND)
    assert len(list((tmp_path / "whole.zarr/features/c").iterdir())) == 7  # 16 rows a shard
    assert digest(tmp_path / "blocks.zarr") == digest(tmp_path / "whole.zarr")
    np.testing.assert_array_equal(read(tmp_path / "blocks.zarr"), rows_ND)
    store = artifacts.open_store(tmp_path / "blocks.zarr", "features", made_by="x")
    np.testing.assert_array_equal(np.concatenate(list(store.blocks("features", 10))), rows_ND)


def test_strings_round_trip(tmp_path):
    names = ["a", "ü/ö b.png", "", "x" * 300, "bad\udcff.png"]
    with artifacts.write_store(tmp_path / "x.zarr", "images", provenance()) as store:
        store.strings("sample_ids", names, ("sample",))
    assert artifacts.open_store(tmp_path / "x.zarr", "images", made_by="x").strings("sample_ids") == names


def test_attributes_and_bytes_without_our_code(tmp_path):
    import warnings

    import xarray
    import zarr

    rows_ND = np.arange(6, dtype=np.float32).reshape(3, 2)
    write(tmp_path / "x.zarr", rows_ND)
    group = zarr.open(tmp_path / "x.zarr", mode="r")
    np.testing.assert_array_equal(group["features"][:], rows_ND)
    attributes = dict(group.attrs)
    assert attributes["params"] == {"k": 2, "lr": 1e-5}
    assert {name: attributes[name] for name in ("schema", "version", "epoch", "samples", "ids", "seed")} == {
        "schema": "features", "version": 1, "epoch": 1, "samples": 3, "ids": IDS, "seed": 7,
    }  # fmt: skip
    codecs = json.loads((tmp_path / "x.zarr/features/zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["sharding_indexed"]
    assert codecs[0]["configuration"]["codecs"][-1]["name"] == "crc32c"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = xarray.open_zarr(tmp_path / "x.zarr")
    assert opened["features"].dims == ("sample", "feature")


def test_same_content_same_bytes(tmp_path):
    rows_ND = np.ones((3, 2), np.float32)
    write(tmp_path / "a.zarr", rows_ND)
    write(tmp_path / "b.zarr", rows_ND)
    assert digest(tmp_path / "a.zarr") == digest(tmp_path / "b.zarr")


def test_ids_hash_depends_on_order_and_boundaries():
    hashes = {artifacts.ids_hash(ids) for ids in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [])}
    assert len(hashes) == 5


@pytest.fixture
def stored(tmp_path):
    write(tmp_path / "x.zarr", np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32))
    return tmp_path / "x.zarr"


def test_refusals_name_the_path_and_the_remedy(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"^y\.zarr: not found; run `deepcluster run`$"):  # as nothing has run yet
        read(Path("y.zarr"))
    layout.IMAGES.mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"^y\.zarr: not found; run `dvc repro extract@1`$"):
        read(Path("y.zarr"))
    with pytest.raises(ArtifactError, match="belongs to another data set or sample order"):
        read(stored, ids=artifacts.ids_hash(["a", "c", "b"]))
    with pytest.raises(ArtifactError, match="epoch: expected 2, got 1"):
        read(stored, epoch=2)
    with pytest.raises(ArtifactError, match="schema: expected 'pca', got 'features'; run `dvc repro pca@1`"):
        artifacts.open_store(stored, "pca", made_by="pca@1")


def shard(path):
    return path / "features/c/0/0"


def test_every_flipped_bit_of_a_shard_is_detected(stored):
    content = bytearray(shard(stored).read_bytes())
    before = read(stored)
    rng = np.random.default_rng(1)
    for position in rng.choice(len(content), size=60, replace=False):
        flipped = content.copy()
        flipped[position] ^= 1 << int(rng.integers(8))
        shard(stored).write_bytes(flipped)
        with pytest.raises(ArtifactError, match="damaged"):
            read(stored)
    shard(stored).write_bytes(content)
    np.testing.assert_array_equal(read(stored), before)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_shard_cut_short_is_detected(stored, kept):
    content = shard(stored).read_bytes()
    shard(stored).write_bytes(content[:kept])
    with pytest.raises(ArtifactError, match="damaged"):
        read(stored)


def test_a_missing_shard_is_damage_and_not_zeros(stored):
    shard(stored).unlink()
    with pytest.raises(ArtifactError, match=r"features/c/0/0: damaged \(missing, cut short or altered\)"):
        read(stored)


def test_broken_metadata_is_damage(stored):
    for name, old, new in [("zarr.json", '"seed": 7', '"seed": 8'), ("features/zarr.json", "50", "49")]:
        content = (stored / name).read_text()
        assert old in content
        for broken in ("{", content.replace(old, new)):
            (stored / name).write_text(broken)
            with pytest.raises(ArtifactError, match="damaged"):
                read(stored)
        (stored / name).write_text(content)
    read(stored)


def test_a_failing_write_keeps_the_old_artifact_and_leaves_nothing_else(stored):
    before = digest(stored)
    with (
        pytest.raises(RuntimeError, match="disk on fire"),
        artifacts.write_store(stored, "features", provenance()) as store,
    ):
        store.array("features", np.zeros((3, 2), np.float32), ("sample", "feature"))
        raise RuntimeError("disk on fire")
    assert digest(stored) == before
    assert [path.name for path in stored.parent.iterdir()] == ["x.zarr"]


def test_a_new_artifact_replaces_the_old_one(stored):
    write(stored, np.zeros((3, 2), np.float32))
    assert read(stored).shape == (3, 2)
    assert [path.name for path in stored.parent.iterdir()] == ["x.zarr"]


def test_leavings_of_a_killed_writer_go_and_those_of_a_living_one_stay(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".x.txt.{dead.stdout.strip()}.partial").write_text("half")
    living = tmp_path / f".x.txt.{os.getppid()}.partial"
    living.write_text("half")
    artifacts.write_text(tmp_path / "x.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "x.txt"])


def test_hardlinked_content_is_never_overwritten_in_place(tmp_path):
    """DVC's cache holds hard links to published files."""
    artifacts.write_text(tmp_path / "x.txt", "old")
    os.link(tmp_path / "x.txt", tmp_path / "cached")
    artifacts.write_text(tmp_path / "x.txt", "new")
    assert (tmp_path / "cached").read_text() == "old"


@pytest.fixture
def checkpoint(tmp_path):
    files = artifacts.CheckpointFiles(
        weights={"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(3, np.int64)},
        optimizer={"0.momentum_buffer": np.ones(3, np.float32)},
        description={"optimizer": "SGD"},
    )
    artifacts.write_checkpoint(tmp_path / "checkpoint", files, provenance())
    return tmp_path / "checkpoint"


def test_checkpoint_round_trip(checkpoint):
    found = artifacts.read_checkpoint(checkpoint, made_by="train@1", ids=IDS, epoch=1)
    np.testing.assert_array_equal(found.weights["w"], [[0, 1, 2], [3, 4, 5]])
    assert found.weights["steps"].shape == ()
    np.testing.assert_array_equal(found.optimizer["0.momentum_buffer"], np.ones(3))
    assert found.description["optimizer"] == "SGD"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_is_refused(checkpoint, name):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:-3])
    with pytest.raises(ArtifactError, match="damaged"):
        artifacts.read_checkpoint(checkpoint, made_by="train@1")


def test_a_pickle_in_place_of_weights_is_refused_and_not_run(checkpoint, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtifactError, match="damaged"):
        artifacts.read_weight_file(path)
    assert not (tmp_path / "exploded").exists()


def test_a_bank_is_read_by_itself_with_a_checksum_of_its_own(tmp_path):
    path, bank_NP = tmp_path / "checkpoint", np.arange(6, dtype=np.float32).reshape(3, 2)
    weights = {"w": np.ones(2, np.float32)}
    artifacts.write_checkpoint(path, artifacts.CheckpointFiles(weights, {}, {}, bank=bank_NP), provenance())
    np.testing.assert_array_equal(artifacts.read_bank(path), bank_NP)
    content = bytearray((path / "bank.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "bank.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged \(checksum differs\)"):
        artifacts.read_bank(path)
    assert artifacts.read_checkpoint(path, made_by="train@1").bank is None  # not read, so not met
    (path / "bank.safetensors").unlink()
    with pytest.raises(ArtifactError, match="damaged"):
        artifacts.read_bank(path)


def test_most_checkpoints_have_no_bank(checkpoint):
    assert artifacts.read_bank(checkpoint) is None
    assert not (checkpoint / "bank.safetensors").exists()
