"""docs/sweeps.md: a grid on DVC's experiment queue with two workers, which share what does not depend on the grid."""

import csv
import json
import re
import time

import pytest

pytestmark = pytest.mark.slow
PATIENCE = 3000  # seconds, for machines that are busy with other things


@pytest.fixture
def queued(project):
    """A finished run, committed, and two experiments in the queue, which its end stops."""
    project.commit("A run")
    project.dvc("exp", "run", "--queue", "-S", "cluster.k=3,5", "cluster@1")
    yield project
    project.dvc("queue", "stop", "--kill", status=None)


def states(project):
    """Task numbers in the queue's table, with their states."""
    rows = project.dvc("queue", "status").stdout.splitlines()
    return dict(
        re.findall(r"^([0-9a-f]{7})\s.*\b(Queued|Running|Success|Failed)\b", "\n".join(rows), flags=re.MULTILINE)
    )


def test_a_grid_on_two_workers_extracts_once(queued):
    assert list(states(queued).values()) == ["Queued"] * 2
    queued.dvc("queue", "start", "--jobs", "2")
    end = time.monotonic() + PATIENCE
    while set(states(queued).values()) & {"Queued", "Running"} and time.monotonic() < end:
        time.sleep(2)
    found = states(queued)
    logs = [queued.dvc("queue", "logs", task).stdout for task in found]
    assert list(found.values()) == ["Success"] * 2, logs
    for log in logs:
        assert re.findall(r"^Running stage '(.+)':", log, flags=re.MULTILINE) == ["cluster@1"]
    (branches,) = [each for each in json.loads(queued.dvc("exp", "show", "--json").stdout) if each["experiments"]]
    params = [each["revs"][0]["data"]["params"]["params.yaml"]["data"] for each in branches["experiments"]]
    assert sorted(each["cluster"]["k"] for each in params) == [3, 5]
    table = queued.dvc("exp", "show", "--csv", "--hide-workspace").stdout
    rows = list(csv.DictReader(table[table.index("Experiment,") :].splitlines()))
    assert sorted((row["typ"] == "baseline", row["cluster.k"]) for row in rows) == [
        (False, "3"),
        (False, "5"),
        (True, "4"),
    ]
