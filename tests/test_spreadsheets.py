"""CSV cells of file names: every reader gets the row back, and no spreadsheet runs one."""

import csv
import io

import numpy as np
import pytest

from deepcluster.clustering.kmeans import Clustering
from deepcluster.evaluation.final import clusters_csv
from deepcluster.spreadsheets import csv_line, harmless

NAMES = ["a b.png", "é.png", 'a "b".png', "a,b;c.png", "a\rb.png", "a\nb.png", "a\r\nb.png", "a\tb.png", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_read_back_as_it_was(name):
    assert list(csv.reader(io.StringIO(csv_line([name, 3, 0.5]), newline=""))) == [[name, "3", "0.5"]]


def test_what_some_reader_splits_at_is_quoted():
    assert csv_line(["a\rb", "c;d", "e\tf", 'g"h', "plain x"]) == '"a\rb","c;d","e\tf","g""h",plain x\n'


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(1).png", "\t=1.png", "\r=1.png"])
def test_what_looks_like_a_formula_is_the_same_file_written_as_a_path(name):
    assert harmless(name) == f"./{name}"


@pytest.mark.parametrize("name", ["a=1.png", "photos/=1.png", "./-1.png", "é.png"])
def test_other_names_stay(name):
    assert harmless(name) == name


def test_bytes_that_are_no_text_are_question_marks():
    assert harmless("=\udcff.png") == "./=?.png"


def test_the_table_of_clusters():
    found = Clustering(
        labels_N=np.array([1, 0], np.int32),
        distances_N=np.array([0.25, 2.0], np.float32),
        centroids_Kd=np.zeros((2, 1), np.float32),
        objective=np.zeros(1),
        sizes_K=np.array([1, 1]),
        trained_on=2,
    )
    assert clusters_csv(["=1+1.png", "a\rb.png"], found) == (
        'sample,cluster,squared_distance\n./=1+1.png,1,0.25\n"a\rb.png",0,2\n'
    )
