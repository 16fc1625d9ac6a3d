"""epochs.csv: what is not known stays unknown for whoever reads it."""

import csv
import io

import numpy as np

from deepcluster.evaluation.epochs import FIELDS, from_csv, to_csv

FIRST = {
    "epoch": 1, "nmi": None, "ari": None, "accuracy": None, "nmi_previous": None, "loss": 2.5,
    "pseudo_label_accuracy": 0.25, "smallest": 3, "largest": 9, "empty": 0, "effective_k": 7.5, "feature_rank": 20.0,
    "k": 8,
}  # fmt: skip
SECOND = FIRST | {"epoch": 2, "nmi_previous": 0.1 + 0.2}


def test_the_same_rows_come_back():
    assert from_csv(to_csv([FIRST, SECOND])) == [FIRST, SECOND]


def test_no_reader_takes_an_unknown_value_for_zero():
    """Vega counts an empty field as 0 and leaves out what is no number; NumPy reads nan."""
    text = to_csv([FIRST, SECOND])
    rows = list(csv.reader(io.StringIO(text)))
    assert all(field != "" for row in rows for field in row)
    read = np.genfromtxt(io.StringIO(text), delimiter=",", names=True)
    assert read.dtype.names == FIELDS
    assert np.isnan(read["nmi"]).all()
    assert read["nmi_previous"][1] == 0.1 + 0.2
