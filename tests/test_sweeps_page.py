"""docs/sweeps.md: the plot of a grid is drawn as the page says."""

import re

from conftest import CHECKOUT

GRID = """\
Experiment,rev,typ,nmi,seed,cluster.k,pca.components
,main,baseline,0.9,1,10,32
one,a1,branch_commit,0.2,1,20,32
two,a2,branch_commit,0.4,2,20,32
three,a3,branch_commit,0.8,3,20,32
four,a4,branch_commit,0.5,1,50,32
five,a5,branch_base,0.6,1,20,64
six,a6,branch_base,!,1,50,64
"""


def test_the_plot_has_a_line_of_medians_for_each_number_of_components(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    page = (CHECKOUT / "docs/sweeps.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.+?)```", page, flags=re.DOTALL)
    (tmp_path / "grid.csv").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(plt, "plot", lambda x, y, style, label: drawn.append((label, x, y)))
    monkeypatch.setattr(plt, "legend", lambda: None)
    exec(code, {})
    plt.close("all")
    assert drawn == [("32 components", [20, 50], [0.4, 0.5]), ("64 components", [20], [0.6])]
    assert (tmp_path / "grid.svg").stat().st_size > 0
