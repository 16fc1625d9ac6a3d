"""OpenMP's waiting is settled before anything that reads it loads, and never against the user."""

import os

import pytest

from deepcluster.threads import wait_briefly


@pytest.fixture
def environment(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_spin_briefly(environment):
    wait_briefly()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "1000")


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays_alone(environment, name):
    environment.setenv(name, "7")
    wait_briefly()
    (other,) = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} - {name}
    assert os.environ[name] == "7"
    assert other not in os.environ
