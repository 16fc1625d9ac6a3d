"""pca by several processes: what one finds, to rounding, wherever the rows are cut; shards that no two write."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import digests
from ranks import in_processes, stage_in_processes
from test_resuming import _settings, ready, run, set_params  # noqa: F401 - fixtures
from test_shards import small

from deepcluster import artifacts, layout
from deepcluster.artifacts import store as store_module
from deepcluster.reduction import moments as moments_module
from deepcluster.reduction.moments import moments
from deepcluster.reduction.pca import fit
from stages.pca import pca

ROWS = np.random.default_rng(0).normal(size=(53, 8)).astype(np.float32) * np.arange(1, 9) + 100
ROWS = ROWS.astype(np.float32)


def blocks(process, step=5, rows=ROWS):
    """The process's rows, seven at least, in blocks of five."""
    own = process.rows(len(rows), 7)
    return [rows[start : min(start + step, own.stop)] for start in range(own.start, own.stop, step)]


@pytest.mark.parametrize("wide", [8, 9], ids=["float32", "float64"])
def test_moments_of_all_rows(tmp_path, monkeypatch, wide):
    monkeypatch.setattr(moments_module, "WIDE", wide)
    one = moments([ROWS[start : start + 5] for start in range(0, 53, 5)])
    for count in (2, 9):  # of nine one has no rows
        for found in in_processes(count, lambda process: moments(blocks(process), process=process), tmp_path):
            assert found.rows == 53
            np.testing.assert_allclose(found.mean_D, one.mean_D, rtol=1e-12)
            np.testing.assert_allclose(found.covariance_DD, one.covariance_DD, rtol=1e-6, atol=1e-6)


def test_every_process_has_the_components_of_one(tmp_path):
    settings = {"backend": "streaming", "components": 3, "seed": 1}
    one = fit(lambda _: iter([ROWS]), ROWS.shape, **settings)

    def work(process):
        return fit(lambda _: iter(blocks(process)), ROWS.shape, process=process, **settings)

    first, *others = in_processes(3, work, tmp_path)
    for name, values in vars(one).items():
        np.testing.assert_allclose(getattr(first, name), values, rtol=1e-5, atol=1e-6)
        for other in others:
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name))


@pytest.fixture
def reduced(run):  # noqa: F811 - the fixture
    """pca.zarr of one process, taken away; chunks of 4 rows, 6 shards of 8 then."""
    with small(chunk=64, shard=128):
        artifacts.remove(layout.pca(1))
        pca(1)
        found = layout.pca(1).rename("one.zarr")
        yield artifacts.open_store(found, "pca", made_by="pca@1")


@pytest.mark.parametrize("count", [2, 7])
def test_the_stage(reduced, count, tmp_path):
    ended = stage_in_processes(pca, count, tmp_path / "ranks", variables={"DEEPCLUSTER_ALLOW_IDLE": "1"})
    assert [each.code for each in ended] == [0] * count, ended
    assert ended[0].err == ("pca@1: 7 processes for 6 shards: 1 of them wait\n" if count == 7 else "")
    assert re.fullmatch(r"pca@1: 4 components keep [\d.]+% of the variance\n", ended[0].out)
    assert all((each.out, each.err) == ("", "") for each in ended[1:])
    found = artifacts.open_store(layout.pca(1), "pca", made_by="pca@1")
    assert found.attributes["files"].keys() == reduced.attributes["files"].keys()
    assert len([name for name in found.attributes["files"] if name.startswith("reduced/c/")]) == 6
    for name in ("reduced", "components", "mean", "explained_variance", "explained_variance_ratio"):
        np.testing.assert_allclose(found.read(name), reduced.read(name), rtol=1e-4, atol=1e-5)


def test_without_pca_the_bytes_are_those_of_one_process(reduced, tmp_path):
    set_params(pca__enabled=False)
    pca(1)
    expected = digests(Path(), str(layout.pca(1)))
    artifacts.remove(layout.pca(1))
    ended = stage_in_processes(pca, 3, tmp_path / "ranks")
    assert [each.code for each in ended] == [0] * 3, ended
    assert digests(Path(), str(layout.pca(1))) == expected


def test_a_row_that_is_not_finite_has_its_number_among_all(run, tmp_path, monkeypatch):  # noqa: F811 - the fixture
    features = artifacts.open_store(layout.features(1), "features", made_by="extract@1")
    values = features.read("features")
    values[40, 3] = np.nan
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 4096)
    provenance = artifacts.Provenance(features.samples, features.ids, 1, 1, {})
    artifacts.remove(layout.pca(1))
    with artifacts.write_store(layout.features(1), "features", provenance) as store:
        store.array("features", values, ("sample", "feature"))
    first, second = stage_in_processes(pca, 2, tmp_path / "ranks")
    assert (first.err, first.out) == ("", "")
    assert re.fullmatch(r"error: process 1 of 2 on \S+: features: must be finite; got NaN .* in row 40\n", second.err)
    assert not layout.pca(1).exists()


@pytest.mark.parametrize("backend", ["sklearn", "faiss"])
def test_backends_that_need_all_rows_are_for_one_process(run, tmp_path, backend):  # noqa: F811 - the fixture
    set_params(pca__backend=backend)
    ended = stage_in_processes(pca, 2, tmp_path / "ranks")
    said = f"error: pca@1: pca.backend {backend} works in one process; start the stage without torchrun\n"
    assert "".join(each.err for each in ended) == said


def test_alone_that_setting_starts_no_other(run, monkeypatch, capsys):  # noqa: F811 - the fixture
    set_params(pca__backend="sklearn")
    monkeypatch.setenv("DEEPCLUSTER_PROCESSES", "2")
    monkeypatch.setattr("deepcluster.launching.launch", partial(pytest.fail, "started"))
    pca(1)
    assert "pca@1: pca.backend sklearn works in one process\n" in capsys.readouterr().err
