"""What is settled at the start of a process, and never against the user."""

import os
import platform
import subprocess
import sys

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


FAULTS = """
import resource, sys
import numpy as np
from deepcluster import threads
if sys.argv[1] == "settled":
    print(threads.keep_freed_memory())
for step in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(25 << 20, np.uint8) for _ in range(3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_used_again_without_page_faults():
    def output(*words, **variables):
        found = subprocess.run(
            [sys.executable, "-c", FAULTS, *words], env=clean | variables, capture_output=True, text=True, check=True
        )
        return found.stdout.split()

    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    agreed, faults = output("settled")
    assert agreed == "True"
    assert int(faults) < 100 < 1000 < int(output("as it is")[0])
    assert output("settled", MALLOC_ARENA_MAX="2")[0] == "False"  # what the user has set stays alone
