"""PCA and clustering of more features than a process may address."""

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, edit_params

from deepcluster import artifacts, layout, memory

LIMIT = 2_600_000_000  # faiss's libraries alone take 1.8 GB of addresses
FEATURES = 512
SHARD_ROWS = 65_536
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from deepcluster.threads import settle
settle()
from stages.pca import pca
from stages.cluster import cluster
{"pca": pca, "cluster": cluster}[sys.argv[2]](epoch=1)
"""


def write_features(path: Path, shards: int) -> int:
    """A store of so many shards, which share one file on the disk; its rows."""
    rows_ND = np.random.default_rng(0).standard_normal((SHARD_ROWS, FEATURES), dtype=np.float32)
    rows_ND *= np.geomspace(3, 0.1, FEATURES, dtype=np.float32)
    count = shards * SHARD_ROWS
    with artifacts.write_store(path, "features", artifacts.Provenance(count, "many", epoch=1)) as store:
        array = store.begin("features", (count, FEATURES), np.float32, ("sample", "feature"))
        array.write(0, [rows_ND])
        first = array._file(0)
        for shard in range(1, shards):
            array._file(shard).parent.mkdir(parents=True)
            os.link(first, array._file(shard))
    return count


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """Runs a stage of epoch 1 in a process that may address LIMIT bytes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((CHECKOUT / "params.yaml").read_bytes())

    def run(stage: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, "-c", LIMITED, str(LIMIT), stage]
        return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.slow  # gigabytes are written and read
@pytest.mark.parametrize("times", [1.1, 3])
def test_features_of_more_than_the_address_space(limited, times):
    edit_params(Path("params.yaml"), {"pca.components": 8, "cluster.k": 8, "cluster.iterations": 3})
    count = write_features(layout.features(1), shards=math.ceil(times * LIMIT / (SHARD_ROWS * FEATURES * 4)))
    assert count * FEATURES * 4 >= times * LIMIT
    for stage in ("pca", "cluster"):
        found = limited(stage)
        assert found.returncode == 0, found.stderr[-2000:]
    found = artifacts.open_store(layout.clusters(1), "clusters", made_by="")
    assert found.read("sizes").sum() == count
    assert len(layout.TIMINGS.read_text().splitlines()) == 3
    edit_params(Path("params.yaml"), {"pca.backend": "sklearn"})
    refused = limited("pca")
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert "pca.backend sklearn: " in last
    assert "pca.backend streaming needs" in last


def test_a_limit_of_addresses_counts_as_memory(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10**15, 10**15))
    assert 10**14 < memory._address_space() < 10**15
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10**6, 10**6))
    assert memory._address_space() == memory.available_memory() == 0
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert memory._address_space() == float("inf")
