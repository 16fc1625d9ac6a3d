"""What is recorded of a stage's time and memory."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from deepcluster import timings


def test_a_row_a_stage_and_none_for_one_that_failed(tmp_path):
    path = tmp_path / "new folder/timings.csv"
    with timings.recorded("prepare", None, path):
        pass
    with pytest.raises(RuntimeError), timings.recorded("pca", 3, path):
        raise RuntimeError
    with timings.recorded("pca", 3, path):
        pass
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["epoch"]) for row in rows] == [("prepare", ""), ("pca", "3")]
    assert all(0 <= float(row["seconds"]) < 5 and float(row["peak_memory_mb"]) > 1 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of the process that starts another counts")
def test_a_process_has_its_own_peak_and_not_that_of_the_one_that_started_it():
    large = np.ones(400_000_000, dtype=np.uint8)
    assert timings.peak_memory_mb() > large.nbytes / 1e6
    command = [sys.executable, "-c", "from deepcluster.timings import peak_memory_mb; print(peak_memory_mb())"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert float(started.communicate()[0]) < 200
