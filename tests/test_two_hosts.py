"""Two hosts, each with an address of its own: network namespaces joined by a virtual link, torchrun on both, gloo."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, command_environment, digests
from ranks import digests_and_labels_of_one_process, small_shards
from test_resuming import _settings, edit_params, ready  # noqa: F401 - fixtures

from deepcluster import artifacts, layout
from stages.train import train

pytestmark = pytest.mark.slow

LINK, PORT = "dc-link", 29511
STATE = layout.progress("train", 1) / "state.safetensors"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two namespaces with the addresses 10.77.0.1 and 10.77.0.2, which see nothing but each other."""
    names = [f"dc-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", LINK)
            for link in (LINK, "lo"):
                ip("-n", name, "link", "set", link, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(names)
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
    yield names
    _remove(names)


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def folder(ready, tmp_path, monkeypatch):  # noqa: F811 - the fixture
    """The store that both hosts share: a run in which all has run that comes before train@1."""
    root = shutil.copytree(ready, tmp_path / "a copy")
    monkeypatch.chdir(root)
    return root


class Job:
    """`torchrun -m stages.X --epoch 1` on both hosts, a process each."""

    def __init__(self, hosts: list[str], folder: Path, stage: str, *, restarts: int = 0, **variables: str) -> None:
        self.hosts = hosts
        environment = command_environment(folder.parent)
        environment |= {
            "PYTHONPATH": str(CHECKOUT),
            "GLOO_SOCKET_IFNAME": LINK,
            "DEEPCLUSTER_DEVICE": "cpu",
            "DEEPCLUSTER_PROGRESS_SECONDS": "0",
            "DEEPCLUSTER_TIMEOUT": "120",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        } | variables
        self.agents = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
                    *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), "--rdzv-id", stage),
                    *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"10.77.0.1:{PORT}"),
                    *("--rdzv-conf", f"is_host={int(number == 1)}", "--local-addr", f"10.77.0.{number}"),
                    *("-m", f"stages.{stage}", "--epoch", "1"),
                ],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, host in enumerate(hosts, start=1)
        ]

    def ended(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) on each host."""
        said = [agent.communicate(timeout=400) for agent in self.agents]
        return [(agent.returncode, *texts) for agent, texts in zip(self.agents, said, strict=True)]

    def kill_worker(self, number: int) -> None:
        """SIGKILL to the process that works on a host, once it has taken a step."""
        until = time.monotonic() + 300
        while not STATE.exists():
            assert all(agent.poll() is None for agent in self.agents), self.ended()
            assert time.monotonic() < until
            time.sleep(0.05)
        found = subprocess.run(["ip", "netns", "pids", self.hosts[number]], capture_output=True, text=True, check=True)
        pids = [int(pid) for pid in found.stdout.split()]
        (worker,) = [pid for pid in pids if b"torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(worker, signal.SIGKILL)


def losses() -> np.ndarray:
    return np.array([float(row.split(",")[2]) for row in layout.train_steps(1).read_text().splitlines()[1:]])


def test_an_epoch_gives_what_one_process_gives(hosts, folder):
    train(1)
    expected = losses()
    artifacts.remove(layout.checkpoint(1))
    features, labels_N = digests_and_labels_of_one_process()
    path = small_shards(folder.parent / "small")
    for stage in ("extract", "pca", "cluster", "train"):
        first, second = Job(hosts, folder, stage, PYTHONPATH=path).ended()
        assert (first[0], second[0]) == (0, 0), (first, second)
    assert digests(folder, str(layout.features(1))) == features
    found_N = artifacts.open_store(layout.clusters(1), "clusters", made_by="cluster@1").read("labels")
    np.testing.assert_array_equal(found_N, labels_N)
    np.testing.assert_allclose(losses(), expected, atol=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_killed_midway_is_started_again_and_the_stage_ends_right(hosts, folder, number):
    edit_params(Path("params.yaml"), {"train.epoch_size": 30.0})
    train(1)
    expected = losses()
    for path in (layout.checkpoint(1), layout.train_steps(1), layout.train_summary(1)):
        artifacts.remove(path)
    job = Job(hosts, folder, "train", restarts=1)
    job.kill_worker(number)
    (code, _, err), (other, _, err2) = job.ended()
    assert (code, other) == (0, 0), (err, err2)
    assert re.search(r"^train@1: continues at step \d+ of 180$", err + err2, flags=re.MULTILINE)
    np.testing.assert_allclose(losses()[:10], expected[:10], atol=1e-4)
    assert len(losses()) == len(expected)
    assert layout.checkpoint(1).exists()
    assert not layout.PROGRESS.exists()


def test_without_restarts_it_fails_clean(hosts, folder):
    edit_params(Path("params.yaml"), {"train.epoch_size": 30.0})
    job = Job(hosts, folder, "train")
    job.kill_worker(1)
    ended = job.ended()
    assert [code for code, *_ in ended] == [1, 1]
    said = [line for _, _, err in ended for line in err.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: another process of this stage has ended or cannot be reached; nothing was published; "
        "start the stage again"
    ]
    assert not layout.checkpoint(1).exists()
    assert not layout.train_steps(1).exists()
