"""The graph that DVC sees: what every stage may read, above all who can reach the true labels."""

import ast
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from conftest import CHECKOUT
from ruamel.yaml import YAML

TRUTH = PurePosixPath("data/dataset/targets.zarr")
MAY_READ_TRUTH = {"evaluate", "report"}  # report: only what evaluate hands it


@dataclass(frozen=True)
class Node:
    deps: frozenset[PurePosixPath]
    outs: frozenset[PurePosixPath]


def graph(root: Path) -> dict[str, Node]:
    """Every stage with its paths, templates resolved, as DVC itself loads dvc.yaml."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        stages = repo.index.stages
        return {
            stage.name: Node(
                frozenset(PurePosixPath(dep.def_path) for dep in stage.deps if dep.def_path != "params.yaml"),
                frozenset(PurePosixPath(out.def_path) for out in stage.outs),
            )
            for stage in stages
        }


def overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether reading one path can read something of the other: equal, or one inside the other."""
    return one == other or one in other.parents or other in one.parents


def readers_of(path: PurePosixPath, nodes: dict[str, Node]) -> set[str]:
    """Stages that depend on `path`, or on what such stages write, however far down."""
    reached, found = {path}, set[str]()
    while True:
        new = {name for name, node in nodes.items() if any(overlap(a, b) for a in node.deps for b in reached)} - found
        if not new:
            return found
        found |= new
        reached |= {out for name in new for out in nodes[name].outs}


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """dvc.yaml with params.yaml and a schedule of three epochs in a folder of their own, without git."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "a pipeline"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (root / "stages").mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(CHECKOUT / name, root / name)
    YAML().dump({"last": 3, "schedule": {"1": 0, "2": 1, "3": 2}}, root / "stages/schedule.yaml")
    return root


def doctor(root: Path, stage: str, **changes: Any) -> None:
    """Add to lists of a stage in dvc.yaml, for all its epochs."""
    yaml = YAML()
    content = yaml.load(root / "dvc.yaml")
    definition = content["stages"][stage]
    definition = definition.get("do", definition)
    for key, value in changes.items():
        definition[key].append(value)
    yaml.dump(content, root / "dvc.yaml")


def test_only_evaluate_and_what_follows_it_can_reach_the_true_labels(pipeline):
    nodes = graph(pipeline)
    assert {"prepare", "initialise", "extract@1", "train@1", *MAY_READ_TRUTH} <= nodes.keys()
    assert [name for name, node in nodes.items() if TRUTH in node.outs] == ["prepare"]
    assert readers_of(TRUTH, nodes) == MAY_READ_TRUTH


@pytest.mark.parametrize("name", ["test.zarr", "test_targets.zarr"])
def test_only_evaluate_and_what_follows_it_can_reach_the_test_images(pipeline, name):
    nodes, path = graph(pipeline), PurePosixPath("data/dataset") / name
    assert [stage for stage, node in nodes.items() if path in node.outs] == ["prepare"]
    assert readers_of(path, nodes) == MAY_READ_TRUTH


def test_only_evaluate_reads_the_true_labels_directly(pipeline):
    direct = [name for name, node in graph(pipeline).items() if any(overlap(dep, TRUTH) for dep in node.deps)]
    assert direct == ["evaluate"]


@pytest.mark.parametrize(
    ("stage", "dependency"),
    [
        ("train", "data/dataset/targets.zarr"),
        ("extract", "data/dataset"),  # the folder around them
        ("initialise", "data/dataset/targets.zarr/targets"),  # something inside them
        ("pca", "data/evaluation/metrics.json"),  # what was made of them
    ],
)
def test_a_leak_would_be_noticed(pipeline, stage, dependency):
    doctor(pipeline, stage, deps=dependency)
    leaking = {name.partition("@")[0] for name in readers_of(TRUTH, graph(pipeline))}
    assert stage in leaking
    assert leaking > MAY_READ_TRUTH


def test_every_epoch_reads_the_one_before_and_itself_only(pipeline):
    nodes = graph(pipeline)
    epochs = {int(name.partition("@")[2]) for name in nodes if name.startswith("train@")}
    assert epochs == set(range(1, len(epochs) + 1))
    for epoch in epochs:
        made = {out for name, node in nodes.items() if name.endswith(f"@{epoch}") for out in node.outs}
        before = {
            PurePosixPath(f"data/epochs/{epoch - 1}/checkpoint"),
            PurePosixPath(f"data/history/{epoch - 1}/clusters.zarr"),
        }
        for name in (f"{stage}@{epoch}" for stage in ("extract", "pca", "cluster", "train")):
            read = {dep for dep in nodes[name].deps if dep.parts[0] == "data"}
            assert read <= made | before | {PurePosixPath("data/dataset/images.zarr")}, name


def test_evaluate_reads_the_last_scheduled_backbone(pipeline):
    nodes = graph(pipeline)
    last = max(int(name.partition("@")[2]) for name in nodes if "@" in name)
    assert PurePosixPath(f"data/epochs/{last}/checkpoint") in nodes["evaluate"].deps
    assert PurePosixPath("data/history") in nodes["evaluate"].deps


def test_every_stage_depends_on_its_own_module_and_on_code_that_exists(pipeline):
    for name, node in graph(pipeline).items():
        code = {dep for dep in node.deps if dep.parts[0] != "data"}
        assert PurePosixPath(f"stages/{name.partition('@')[0]}.py") in code
        assert [str(path) for path in code if not os.path.exists(CHECKOUT / path)] == []


def test_every_artifact_has_one_writer_and_every_dependency_below_data_a_writer(pipeline):
    nodes = graph(pipeline)
    outs = [out for node in nodes.values() for out in node.outs]
    assert len(outs) == len(set(outs))
    unwritten = {
        dep
        for node in nodes.values()
        for dep in node.deps
        if dep.parts[0] == "data" and not any(overlap(dep, out) for out in outs)
    }
    assert unwritten == set()


EXECUTION = {  # decides how a stage runs or what it says, not its result; or stands in every artifact with a version
    "artifacts", "distributed", "errors", "faults", "images", "launching", "layout", "memory", "plan", "progress",
    "resuming", "settings", "threads", "timings", "together", "training_state", "transfer",
}  # fmt: skip


def module_file(name: str) -> Path | None:
    path = CHECKOUT / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(file: Path) -> set[Path]:
    """The project's files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        found |= {
            path for name in names if name.startswith(("deepcluster.", "stages.")) and (path := module_file(name))
        }
    return found


def decides_nothing(file: Path) -> bool:
    parts = file.relative_to(CHECKOUT).with_suffix("").parts
    package_face = parts[-1] == "__init__" and len(file.read_text().splitlines()) < 50
    return parts == ("stages", "common") or parts[1] in EXECUTION or package_face


@pytest.mark.parametrize("stage", ["prepare", "initialise", "extract", "pca", "cluster", "train", "evaluate"])
def test_a_stage_depends_on_all_code_that_decides_its_result(pipeline, stage):
    """params alone is left out: of its keys DVC compares the values; what it resolves from the data is listed."""
    (name, *_) = [name for name in graph(pipeline) if name.partition("@")[0] == stage]
    listed = [CHECKOUT / path for path in graph(pipeline)[name].deps if path.parts[0] != "data"]
    reached, waiting = set[Path](), [CHECKOUT / f"stages/{stage}.py"]
    while waiting:
        file = waiting.pop()
        if file not in reached and not decides_nothing(file):
            reached.add(file)
            waiting += imported(file)
    schema = {"sections.py", "file.py", "contradictions.py", "edit.py", "fit.py"}
    unlisted = {
        str(file.relative_to(CHECKOUT))
        for file in reached
        if not any(file == path or path in file.parents for path in listed)
        and not (file.parent.name == "params" and file.name in schema)
    }
    assert unlisted - ({"deepcluster/params/data_defaults.py"} if stage != "train" else set()) == set()
