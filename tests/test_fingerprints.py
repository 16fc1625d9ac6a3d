"""The installed code as a dependency: stages/code.yaml, and the guard that compares it."""

import shutil
from pathlib import Path

import pytest
from conftest import CHECKOUT
from ruamel.yaml import YAML

from deepcluster import fingerprints as module
from deepcluster.errors import ScheduleError
from deepcluster.fingerprints import changed_stages, check_code, code_text, fingerprints, is_code, refresh
from deepcluster.projects.pipeline import pipeline_text

STAGES = ["prepare", "initialise", "extract", "pca", "cluster", "train", "evaluate", "report"]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code in a folder of its own, to be changed; its fingerprints are computed whenever they are asked for."""
    for name in ("deepcluster", "stages"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "CODE", tmp_path)
    monkeypatch.setattr(module, "fingerprints", fingerprints.__wrapped__)
    return tmp_path


def changed_by(copy: Path, name: str) -> list[str]:
    """The stages whose fingerprint is another once a line is added to a file."""
    before = module.fingerprints()
    with (copy / name).open("a") as file:
        file.write("# another line\n")
    after = module.fingerprints()
    return [stage for stage in before if before[stage] != after[stage]]


def test_every_stage_has_one_and_all_differ():
    found = fingerprints()
    assert list(found) == STAGES
    assert len(set(found.values())) == len(STAGES)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in found.values())


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("stages/pca.py", ["pca"]),
        ("deepcluster/augment.py", ["train", "evaluate"]),
        ("deepcluster/models/convnet.py", ["initialise", "extract", "train", "evaluate"]),
        ("deepcluster/datasets/folder.py", ["prepare"]),
        ("deepcluster/runner.py", []),  # decides no result
    ],
)
def test_a_change_of_code_reaches_the_stages_that_dvc_yaml_lists_it_for(copy, name, stages):
    assert changed_by(copy, name) == stages


def test_a_new_module_of_a_package_counts_and_compiled_files_do_not(copy):
    before = module.fingerprints()
    (copy / "deepcluster/models/__pycache__").mkdir()
    (copy / "deepcluster/models/__pycache__/x.cpython-311.pyc").write_bytes(b"x")
    assert module.fingerprints() == before
    (copy / "deepcluster/models/empty.py").touch()
    assert module.fingerprints()["train"] != before["train"]


def test_the_place_of_the_installation_does_not_count(copy):
    assert module.fingerprints() == fingerprints()


@pytest.mark.parametrize(
    ("dependency", "expected"),
    [
        ("stages/pca.py", True),
        ("deepcluster/models", True),
        ("stages/schedule.yaml", False),
        ("data/history", False),
        ({"params.yaml": None}, False),
    ],
)
def test_what_is_code(dependency, expected):
    assert is_code(dependency) is expected


class TestFile:
    def test_is_brought_up_to_the_installed_code(self, tmp_path):
        path = tmp_path / "code.yaml"
        path.write_text(code_text().replace(fingerprints()["pca"], "0" * 16))
        assert refresh(path) == ["pca"]
        assert path.read_text() == code_text()
        assert refresh(path) == []
        assert YAML(typ="safe").load(path) == fingerprints()

    def test_is_not_made_where_there_is_none(self, tmp_path):
        assert refresh(tmp_path / "code.yaml") == []
        assert not (tmp_path / "code.yaml").exists()
        check_code(tmp_path / "code.yaml")

    @pytest.mark.parametrize("content", [b"", b"- a\n", b"pca: [\n", b"\xff"])
    def test_nonsense_is_replaced(self, tmp_path, content):
        path = tmp_path / "code.yaml"
        path.write_bytes(content)
        assert changed_stages(path) == STAGES

    def test_of_other_code_stops_whichever_stage_comes_first(self, outcome, workspace, monkeypatch):
        text = code_text()
        for stage in ("pca", "train"):
            text = text.replace(fingerprints()[stage], "0" * 16)
        Path("stages/code.yaml").write_text(text)
        assert outcome("cluster", "--epoch", "1")[0] == 0  # by hand any stage may run
        monkeypatch.setenv("DVC_STAGE", "cluster@1")
        message = (
            "error: stages/code.yaml: deepcluster was changed since (stages pca, train); run `deepcluster plan`, "
            "then go on\n"
        )
        assert outcome("cluster", "--epoch", "1") == (2, "", message)
        assert outcome("plan")[0] == 0
        assert outcome("cluster", "--epoch", "1")[0] == 0

    def test_check_names_the_stages(self, tmp_path):
        path = tmp_path / "code.yaml"
        path.write_text(code_text().replace(fingerprints()["report"], "0" * 16))
        with pytest.raises(ScheduleError, match=r"code\.yaml: deepcluster was changed since \(stages report\)"):
            check_code(path)


class TestPipeline:
    """dvc.yaml of a project without code, against the shipped one taken apart as YAML."""

    def test_differs_by_the_code_only(self):
        ours, shipped = (YAML(typ="safe").load(text) for text in (pipeline_text(), (CHECKOUT / "dvc.yaml").read_text()))
        for name, definition in shipped["stages"].items():
            stage = definition.get("do", definition)
            stage["deps"] = [dependency for dependency in stage["deps"] if not is_code(dependency)]
            stage["params"] = [{"stages/code.yaml": [name]}, *stage["params"]]
            if not stage["deps"]:
                del stage["deps"]
        assert ours == shipped

    def test_keeps_the_comments_about_the_rest(self):
        assert "# persist: DVC does not delete these" in pipeline_text()
        assert pipeline_text().count("\n\n  ") == len(STAGES) - 1
