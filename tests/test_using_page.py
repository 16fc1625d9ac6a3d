"""docs/using.md: every line of code in it, run in order in a finished project with a folder of photos."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, write_images

from deepcluster import DeepCluster

PAGE = (CHECKOUT / "docs/using.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_every_line_runs(workspace, outcome, monkeypatch):
    write_images(Path("photos"), count=8, seed=3)
    write_images(Path("extra"), count=1)
    Path("extra/above/000.png").rename("extra/one.png")
    for name, value in {"epochs": 1, "epoch_size": 0.2, "restarts": 1, "device": "cpu"}.items():
        monkeypatch.setitem(DeepCluster.__init__.__kwdefaults__, name, value)  # the page shows the defaults
    names: dict[str, object] = {}
    kinds = []
    for kind, code in BLOCKS:
        kinds.append(kind)
        if kind == "console":
            for line in code.splitlines():
                prompt, program, *arguments = shlex.split(line)
                assert (prompt, program) == ("$", "deepcluster")
                status, _, err = outcome(*arguments)
                assert status == 0, f"{line}\n{err}"
        else:
            exec(code, names)
    assert kinds == ["console"] * 3 + ["python"] * 2
    assert len(Path("labels.csv").read_text().splitlines()) == 10
    model, found = names["model"], names["found"]
    assert isinstance(model, DeepCluster)
    np.testing.assert_array_equal(model.predict(names["images"])[:5], model.labels_[:5])
    assert len(found.placed()) == 8  # type: ignore[attr-defined]
    assert {path.name for path in Path("sorted").iterdir()} <= {"00", "01", "labels.csv"}


@pytest.mark.parametrize("name", re.findall(r"`(tests/\w+\.py|data/\S+?)`", PAGE))
def test_what_it_names_exists(finished, name):
    path = name.replace("/E/", "/1/")
    assert (CHECKOUT / path).exists() or (finished.root / path).exists()
