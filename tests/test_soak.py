"""The line that benchmarks/soak.py fits: slope and standard error by hand."""

from benchmarks.soak import ROW, fitted


def test_a_line_is_found_without_error():
    assert fitted([1, 2, 3, 4], [5, 7, 9, 11]) == {"slope": 2.0, "standard_error": 0.0, "from": 1}


def test_slope_and_standard_error_by_hand():
    # about the means: x -1, 0, 1; y 0, 1, -1; slope -1/2; residuals -1/2, 1, -1/2; sqrt(1.5 / 1 / 2)
    assert fitted([10, 11, 12], [1, 2, 0]) == {"slope": -0.5, "standard_error": 0.866, "from": 10}


def test_a_row_of_the_table_names_its_epoch():
    found = ROW.match("   7/100   1.4722     0.312         0.331        12       19          3.9   26.3 s  1:35:55")
    assert found is not None
    assert found[1] == "7"
    assert ROW.match("  epoch     loss  accuracy  NMI previous") is None
    assert ROW.match("train@5: 64 images, 44/s, 1.5 s") is None
