"""How many processes a stage starts, and what is said when one of them fails."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from deepcluster import distributed, launching
from deepcluster.errors import LostProcessError, UserError

NAMES = ("DEEPCLUSTER_PROCESSES", "PET_NPROC_PER_NODE", "PET_NNODES", "DEEPCLUSTER_DEVICE", "CUDA_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    for name in (*NAMES, "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "gpus", "count"),
    [
        ({}, 0, 1),
        ({}, 8, 8),
        ({"DEEPCLUSTER_DEVICE": "cuda"}, 8, 8),
        ({"DEEPCLUSTER_DEVICE": "cuda:3"}, 8, 1),
        ({"DEEPCLUSTER_DEVICE": "cpu"}, 8, 1),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, 8, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, 1),
        ({"PET_NPROC_PER_NODE": "gpu"}, 4, 4),
        ({"PET_NPROC_PER_NODE": "3"}, 8, 3),
        ({"DEEPCLUSTER_PROCESSES": "2", "PET_NPROC_PER_NODE": "3"}, 8, 2),
        ({"DEEPCLUSTER_PROCESSES": "2", "DEEPCLUSTER_DEVICE": "cpu"}, 0, 2),
        ({"DEEPCLUSTER_PROCESSES": "4", "PET_NNODES": "1:1"}, 0, 4),
    ],
)
def test_how_many(monkeypatch, variables, gpus, count):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: bool(gpus) if "nvidia" in str(path) else exists(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launching.wanted() == count


def test_a_process_that_a_launcher_started_starts_none(monkeypatch):
    for name in ("DEEPCLUSTER_PROCESSES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    assert launching.wanted() == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DEEPCLUSTER_PROCESSES": "0"}, "DEEPCLUSTER_PROCESSES: must be a number from 1 on, or gpu; got '0'"),
        ({"PET_NPROC_PER_NODE": "cpu"}, "PET_NPROC_PER_NODE: must be a number from 1 on, or gpu; got 'cpu'"),
        (
            {"DEEPCLUSTER_PROCESSES": "2", "DEEPCLUSTER_DEVICE": "cuda:1"},
            "DEEPCLUSTER_DEVICE=cuda:1: is one device, for DEEPCLUSTER_PROCESSES=2; leave the number out of it",
        ),
        (
            {"DEEPCLUSTER_PROCESSES": "2", "PET_NNODES": "2"},
            "PET_NNODES: several machines need torchrun on each: `torchrun -m stages.train --epoch 3`",
        ),
    ],
)
def test_wrong_numbers(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        launching.wanted()
    assert str(error.value) == message


def failure(exitcode: int, **told: object) -> SimpleNamespace:
    name = signal.Signals(-exitcode).name if exitcode < 0 else "<N/A>"
    return SimpleNamespace(exitcode=exitcode, error_file_data=told, signal_name=lambda: name)


LATE = {"message": "another process of this stage does not answer within 5 s", "exit_code": 1}
ENDED = {"message": "another process of this stage has ended", "exit_code": 1}


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ({0: failure(3), 1: failure(2, message="data: gone", exit_code=2)}, UserError, "data: gone"),
        (
            {0: failure(-15), 1: failure(-9)},
            LostProcessError,
            "train@3: process 1 of 2 was killed by signal 9 (SIGKILL); the others were ended and nothing was published",
        ),
        (
            {0: failure(1, **ENDED), 1: failure(-9)},
            LostProcessError,
            "train@3: process 1 of 2 was killed by signal 9 (SIGKILL); the others were ended and nothing was published",
        ),
        ({0: failure(1, **LATE), 1: failure(-9)}, LostProcessError, LATE["message"]),
        ({0: failure(1, **ENDED), 1: failure(3)}, LostProcessError, ENDED["message"]),
        (
            {0: failure(3), 1: failure(1)},
            LostProcessError,
            "train@3: process 1 of 2 ended with exit code 1; what it says stands above; the others were ended and "
            "nothing was published",
        ),
    ],
)
def test_what_is_said_is_what_the_others_follow_from(failures, kind, message):
    found = launching._cause("train@3", 2, failures)
    assert (type(found), str(found)) == (kind, message)


def test_a_launched_process_leaves_its_line_to_the_one_that_started_it(monkeypatch, tmp_path, capsys):
    import json

    from stages.common import run_app

    def fail() -> None:
        raise LostProcessError("gone")

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    for launcher, err in (("another", "error: gone\n"), (f"deepcluster-{os.getppid()}", "")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launcher)
        with pytest.raises(SystemExit) as stop:
            run_app(fail)  # type: ignore[arg-type]
        assert stop.value.code == 1
        assert capsys.readouterr().err == err
        found = json.loads(file.read_text())
        assert (found["message"], found["exit_code"]) == ("gone", 1)


def test_surroundings_are_as_they_were_after_a_launch(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = dict(os.environ)
    with launching._settled(2):
        assert os.environ["OMP_NUM_THREADS"] == "5"
        assert os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"
    assert dict(os.environ) == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    with launching._settled(10**6):
        assert os.environ["OMP_NUM_THREADS"] == "1"
    handler = signal.getsignal(signal.SIGTERM)
    with launching._own_signals():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert distributed.world_size() == 1
