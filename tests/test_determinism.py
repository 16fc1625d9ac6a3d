"""`deterministic: true`: torch is told, and as before afterwards; an operation without such an algorithm is named."""

import os
from pathlib import Path

import pytest
import torch
from conftest import edit_params

from deepcluster.determinism import FIXED, WORKSPACE, deterministic_torch
from deepcluster.errors import UserError
from stages.common import faiss_gpu, stage

NO_KERNEL = (
    "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation."
)
NO_WORKSPACE = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS "
    "and you have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment variable "
    "before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
)


def flags() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn, cudnn.deterministic, cudnn.benchmark


@pytest.fixture(autouse=True)
def workspace_config(monkeypatch):
    """Whatever the environment said before, it says again afterwards."""
    monkeypatch.setenv(WORKSPACE, "to be restored")
    monkeypatch.delenv(WORKSPACE)


def test_torch_is_told_inside_and_left_as_it_was():
    before = flags()
    with deterministic_torch(True):
        assert flags() == (True, False, True, False)
        assert os.environ[WORKSPACE] == FIXED
    assert flags() == before


def test_nothing_is_done_unless_it_is_demanded():
    before = flags()
    with deterministic_torch(False):
        assert flags() == before
        assert WORKSPACE not in os.environ


def test_a_workspace_that_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic_torch(True):
        assert os.environ[WORKSPACE] == ":16:8"


REMEDY = "set deterministic: false in params.yaml, or DEEPCLUSTER_DEVICE=cpu"


def test_an_operation_without_a_deterministic_algorithm_is_named():
    before = flags()
    with pytest.raises(UserError) as caught, deterministic_torch(True):
        raise RuntimeError(NO_KERNEL)
    assert str(caught.value) == (
        "deterministic: torch has no deterministic algorithm for adaptive_max_pool2d_backward_cuda on this device; "
        + REMEDY
    )
    assert flags() == before


def test_a_workspace_that_cublas_does_not_take_is_named(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":8:8")
    with pytest.raises(UserError) as caught, deterministic_torch(True):
        raise RuntimeError(NO_WORKSPACE)
    assert str(caught.value) == (
        f"deterministic: cuBLAS needs {WORKSPACE}={FIXED} (or :16:8) in the environment, now ':8:8'; {REMEDY}"
    )


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("x"), UserError("y")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, deterministic_torch(True):
        raise error
    assert caught.value is error


def test_torch_itself_refuses_what_has_no_such_algorithm():
    """The words that are looked for are torch's own: it has an operation on the CPU that serves to hear them."""
    values = torch.zeros(3)
    with (
        pytest.raises(UserError, match="no deterministic algorithm for put_ on this device"),
        deterministic_torch(True),
    ):
        values.put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


def set_deterministic() -> None:
    edit_params(Path("params.yaml"), {"deterministic": True})


@pytest.mark.parametrize("name", ["extract", "train", "evaluate"])
def test_the_stages_that_use_torch_demand_it(workspace, name):
    with stage(name):
        assert flags()[0] is False
    set_deterministic()
    with stage(name):
        assert flags() == (True, False, True, False)


@pytest.mark.parametrize("name", ["prepare", "pca", "cluster", "report"])
def test_the_others_do_not_load_torch_for_it(workspace, name):
    set_deterministic()
    with stage(name):
        assert flags()[0] is False


def test_a_kernel_without_one_ends_the_stage_with_one_line_and_publishes_nothing(workspace, outcome, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(NO_KERNEL)

    set_deterministic()
    before = workspace.digests()
    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", refuse)
    status, out, err = outcome("train", "--epoch", "1")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: deterministic: torch has no deterministic algorithm for adaptive_max_pool2d_backward_cuda on this "
        f"device; {REMEDY}"
    )
    assert workspace.digests() == before


def test_every_stage_runs_with_it_on_the_cpu_and_gives_the_same_bytes(workspace, outcome):
    set_deterministic()
    for arguments in (("extract", "-e", "1"), ("train", "-e", "1"), ("evaluate",)):
        before = workspace.digests()
        status, _, err = outcome(*arguments)
        assert status == 0, err
        assert workspace.digests() == before, arguments


def test_kmeans_stays_on_the_cpu(monkeypatch):
    monkeypatch.delenv("DEEPCLUSTER_DEVICE", raising=False)
    assert faiss_gpu() is None
    assert faiss_gpu(deterministic=True) is False
