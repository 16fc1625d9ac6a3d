"""-S KEY=VALUE: one value of params.yaml changes, no other line does, and no mistake changes anything."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from conftest import CHECKOUT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from deepcluster import layout
from deepcluster.errors import ParamsError
from deepcluster.params import Params, load_params
from deepcluster.params.edit import edited, leaves
from deepcluster.plan import scheduled_epochs
from deepcluster.settings import set_params

RATE_ENDS = (
    "note: the learning rate's cosine ends after 20 epochs (train.schedule.epochs), the run after 5; "
    "`deepcluster set train.schedule.epochs=5` makes them equal, and trains every epoch anew"
)
SHIPPED = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
# what other keys need, so that each key can take every value that it can have
LENIENT, _ = edited(
    SHIPPED,
    [
        "cluster.match_labels=true",
        "train.schedule.epochs=1000",
        "train.schedule.name=constant",
        "refine.after=null",
    ],
)
OF_V2, _ = edited(
    SHIPPED, ["train.method=deepcluster_v2", "pca.enabled=false", "cluster.spherical=true", "refine.after=null"]
)


def lenient(key: str) -> str:
    if key == "refine.after":
        return SHIPPED
    return OF_V2 if key in ("train.method", "cluster.clusterings") else LENIENT


def lines(error: pytest.ExceptionInfo[ParamsError]) -> list[str]:
    return str(error.value).splitlines()


def value_of(text: str, key: str) -> Any:
    found = YAML(typ="safe").load(text)
    for part in key.split("."):
        found = found[part]
    return found


def values(key: str) -> st.SearchStrategy[Any]:
    """Valid values of a key, as YAML has them, read off the schema."""
    section: Any = Params
    *parents, name = key.split(".")
    for parent in parents:
        section = section.model_fields[parent].annotation
    field = section.model_fields[name]
    return of_type(name, field.annotation, field.metadata)


def of_type(name: str, annotation: Any, constraints: Any) -> st.SearchStrategy[Any]:
    if name in ("crop_scale", "small_scale", "crop_ratio", "zoom"):
        return st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(sorted)
    if name == "freeze":
        return st.lists(names(min_size=1, max_size=8), unique=True, max_size=3)
    if name == "knn":
        return st.lists(st.integers(1, 500), unique=True, max_size=3)
    if get_origin(annotation) in (UnionType, Union):
        return st.one_of(*(of_type(name, each, constraints) for each in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return of_type(name, annotation.__origin__, annotation.__metadata__)
    low, high = _bounds(constraints, step=1 if annotation is int else 1e-3)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(low, high)
    if annotation is float:
        return st.floats(low, high)
    return {str: names(max_size=12), type(None): st.none()}[annotation]


def names(**sizes: int) -> st.SearchStrategy[str]:
    """Text that can be a name."""
    return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), **sizes)


def _bounds(constraints: Any, *, step: float) -> tuple[Any, Any]:
    """Inclusive bounds of a number; 100 above the lower one where the schema has no upper one."""
    low, high = 0, None
    for constraint in (each for group in constraints for each in getattr(group, "metadata", [group])):
        low = getattr(constraint, "ge", low)
        low = constraint.gt + step if hasattr(constraint, "gt") else low
        high = getattr(constraint, "le", high)
        high = constraint.lt - step if hasattr(constraint, "lt") else high
    return low, low + 100 if high is None else high


def as_typed(value: Any) -> str:
    """The value as another program writes it in YAML."""
    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = True, 10**6, False
    yaml.dump([value], text)
    return text.getvalue().strip()[1:-1]


def changes_one_line(key: str, value: Any) -> None:
    base = lenient(key)
    before = value_of(base, key)
    text, (change,) = edited(base, [f"{key}={as_typed(value)}"])
    assert value_of(text, key) == value
    assert (change.key, change.before, change.after) == (key, before, value)
    old, new = base.splitlines(keepends=True), text.splitlines(keepends=True)
    assert len(old) == len(new)
    (differing,) = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
    assert [line.split(":")[0] for line in differing] == [differing[0].split(":")[0]] * 2
    comments = [line[line.index("  #") :].strip() for line in differing if "  #" in line]
    assert len(set(comments)) <= 1
    restored, _ = edited(text, [f"{key}={as_typed(before)}"])
    assert YAML(typ="safe").load(restored) == YAML(typ="safe").load(base)


def test_the_leaves_are_those_of_the_shipped_file():
    def keys(tree: Any, prefix: str = "") -> list[str]:
        nested = [keys(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"] for k, v in tree.items()]
        return [key for group in nested for key in group]

    assert sorted(leaves()) == sorted(keys(YAML(typ="safe").load(SHIPPED)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_key_set_to_any_valid_value_changes_its_line_and_no_other(data):
    key = data.draw(st.sampled_from(list(leaves())), label="key")
    value = data.draw(values(key), label="value")
    assume(json.dumps(value) != json.dumps(value_of(lenient(key), key)))
    changes_one_line(key, value)


@pytest.mark.parametrize("key", list(leaves()))
def test_each_key_can_be_set(key):
    from hypothesis import find

    now = json.dumps(value_of(lenient(key), key))
    changes_one_line(key, find(values(key), lambda value: json.dumps(value) != now))


@pytest.mark.parametrize(
    ("override", "line", "after"),
    [
        ("cluster.k=50", "  k: 30                 # three", "  k: 50                 # three"),
        ("cluster.k=10000", "  k: 30                 # three", "  k: 10000              # three"),
        ("train.optimizer.lr=1e-5", "    lr: 0.05\n    momentum: 0.9\n", "    lr: 1e-5\n    momentum: 0.9\n"),
        ("train.clip_norm = 2.5", "clip_norm: null       # l", "clip_norm: 2.5        # l"),
        ("train.freeze=[body.a, body.b]", "freeze: []            # b", "freeze: [body.a, body.b]  # b"),
        ("data.image_size=32", "image_size: null      # s", "image_size: 32        # s"),
        ("model.sobel=true", "sobel: false          # f", "sobel: true           # f"),
        ("data.root=/a b#c", "root: data/raw        # w", 'root: "/a b#c"        # w'),
        ("model.weights='1e-5'", "weights: null         # a", 'weights: "1e-5"       # a'),
        ("model.weights=été", "weights: null         # a", "weights: été          # a"),
    ],
)
def test_value_as_typed_where_that_is_clear_and_the_comment_in_its_column(override, line, after):
    assert SHIPPED.count(line) == 1
    assert edited(SHIPPED, [override])[0] == SHIPPED.replace(line, after)


def test_nothing_typed_is_null():
    text, _ = edited(SHIPPED, ["cluster.points_per_centroid=9"])
    assert edited(text, ["cluster.points_per_centroid="])[0] == SHIPPED


def test_the_last_of_several_values_counts():
    assert edited(SHIPPED, ["cluster.k=1", "cluster.k=7"])[0] == edited(SHIPPED, ["cluster.k=7"])[0]


@pytest.mark.parametrize(
    ("text", "override", "after"),
    [
        ("cluster: {k: 5, init: random}  # c\n", "cluster.k=6", "cluster: {k: 6, init: random}  # c\n"),
        ("cluster: {k: 5}\n", "cluster.restarts=3", "cluster: {k: 5, restarts: 3}\n"),
        ("cluster: {}\nseed: 1\n", "cluster.pic.sigma=3", "cluster: {pic: {sigma: 3}}\nseed: 1\n"),
        ("train: {freeze: [a, b]}\n", "data.root=[x", None),
        ("data: {root: x}\n", "data.root='a, b}'", 'data: {root: "a, b}"}\n'),
        ("seed: 7", "epochs=3", "seed: 7\nepochs: 3\n"),
        ("seed: 7\n", "cluster.collapse.max_empty=0.1", "seed: 7\n\ncluster:\n  collapse:\n    max_empty: 0.1\n"),
        ("# top\ncluster:\n  k: 5\n", "data.name=mnist", "# top\ndata:\n  name: mnist\n\ncluster:\n  k: 5\n"),
        (
            "cluster:\n  k: 5  # a\n        # b\n\n# c\n",
            "cluster.restarts=2",
            "cluster:\n  k: 5  # a\n        # b\n  restarts: 2\n\n# c\n",
        ),
        (
            "cluster:\n  k: 5  # a\n  # on what follows\n  warm_start: true\n",
            "cluster.restarts=2",
            "cluster:\n  k: 5  # a\n  restarts: 2\n  # on what follows\n  warm_start: true\n",
        ),
        ("cluster:\n  restarts: 3\n", "cluster.k=5", "cluster:\n  k: 5\n  restarts: 3\n"),
        (
            "train:\n  optimizer:\n    lr: 1.0\nseed: 2\n",
            "train.head.lr=2",
            "train:\n  optimizer:\n    lr: 1.0\n  head:\n    lr: 2\nseed: 2\n",
        ),
        ("seed: 1\r\nepochs: 2  # x\r\n", "epochs=30", "seed: 1\r\nepochs: 30  # x\r\n"),
        ("seed: 1\r\n", "epochs=30", "seed: 1\r\nepochs: 30\r\n"),
        ("\ufeffseed: 1\n", "seed=22", "\ufeffseed: 22\n"),
        ("\ufeffepochs: 1\n", "seed=22", "\ufeffseed: 22\nepochs: 1\n"),
        ("model:\n  weights:   # none\nseed: 1\n", "model.weights=a", "model:\n  weights: a  # none\nseed: 1\n"),
        (
            "train:\n  freeze:      # parts\n    - a\n    - b  # b\n\nseed: 1\n",
            "train.freeze=[c]",
            "train:\n  freeze: [c]  # parts\n\nseed: 1\n",
        ),
        ("train:\n  freeze:\n  - a\nseed: 1\n", "train.freeze=[]", "train:\n  freeze: []\nseed: 1\n"),
        ("train:\n  freeze: [a,\n    b]  # b\nseed: 1\n", "train.freeze=[]", "train:\n  freeze: []  # b\nseed: 1\n"),
        ("'seed': 1\n", "seed=2", "'seed': 2\n"),
        ("data:\n  root: |-\n    hello\n  split: train\n", "data.root=x", "data:\n  root: x\n  split: train\n"),
    ],
)
def test_other_layouts(text, override, after):
    if after is None:
        with pytest.raises(ParamsError, match=r"^params\.yaml: data\.root: not a value in YAML; got '\[x'$"):
            edited(text, [override])
    else:
        assert edited(text, [override])[0] == after


def test_an_alias_is_left_to_the_editor():
    text = "extract: {batch_size: &size 64}\ntrain: {batch_size: *size}\n"
    with pytest.raises(ParamsError) as error:
        edited(text, ["train.batch_size=32"])
    what = "cannot be changed without touching another key; edit it by hand"
    assert lines(error) == [f"params.yaml: train.batch_size: {what}"]


def test_a_merged_key_is_overridden_beside_the_merge():
    text = "train:\n  optimizer: &o\n    lr: 0.5\n  head:\n    <<: *o\n"
    changed, _ = edited(text, ["train.head.lr=0.25"])
    assert changed == text.replace("<<", "lr: 0.25\n    <<")


def test_what_changes_is_said():
    _, changes = edited("cluster: {k: 5, init: random}\nseed: 3\n", ["cluster.k=6", "cluster.k=6", "seed=3"])
    assert list(map(str, changes)) == ["cluster.k: 5 -> 6", "cluster.k: 6 already", "seed: 3 already"]
    _, changes = edited("seed: 3\n", ["cluster.k=6", "epochs=10", "train.optimizer.lr=0.05", "pca.whiten=false"])
    assert list(map(str, changes)) == [
        "cluster.k: 10 (the default) -> 6",
        "epochs: 10 already (the default)",
        "train.optimizer.lr: 0.05 already (the default)",
        "pca.whiten: true (the default) -> false",
    ]


def test_a_default_set_to_itself_changes_nothing():
    text = "seed: 3\n"
    assert edited(text, ["epochs=10", "train.contrastive.weight=1", "train.freeze=[]"])[0] == text


def test_an_override_can_mend_a_file():
    assert edited("cluster: {k: 1}\n", ["cluster.k=2"])[0] == "cluster: {k: 2}\n"
    assert edited("pca: {whiten: 1}\n", ["pca.whiten=true"])[0] == "pca: {whiten: true}\n"


def test_every_mistake_is_said_at_once_and_in_the_words_of_the_file():
    overrides = [
        "cluster.k=1",
        "cluster.kk=3",
        "clutser.k=3",
        "model.arch=alexnett",
        "cluster.k",
        "=3",
        "data={}",
        "cluster=4",
        "cluster.k.x=1",
        "lr=3",
        "seed=2001-99-99",
        "train.freeze=[a",
        "pca.whiten=1",
    ]
    with pytest.raises(ParamsError) as error:
        edited(SHIPPED + "\ntrian: {}\n", overrides)
    archs = (
        "'convnet', 'feedforward', 'alexnet', 'vgg16', 'resnet18', 'resnet34', 'resnet50', 'resnet101' or 'resnet152'"
    )
    assert lines(error) == [
        "params.yaml: cluster.kk: unknown key; did you mean 'k'?",
        "params.yaml: clutser: unknown key; did you mean 'cluster'?",
        "'cluster.k': expected KEY=VALUE, such as cluster.k=50",
        "'=3': expected KEY=VALUE, such as cluster.k=50",
        "params.yaml: data: is a section; set its keys one by one, such as data.name",
        "params.yaml: cluster: is a section; set its keys one by one, such as cluster.method",
        "params.yaml: cluster.k.x: unknown key; cluster.k holds a value, not a section",
        "params.yaml: lr: unknown key; did you mean 'train.optimizer.lr' or 'train.head.lr'?",
        "params.yaml: seed: not a value in YAML; got '2001-99-99'",
        "params.yaml: train.freeze: not a value in YAML; got '[a'",
        f"params.yaml: model.arch: must be one of {archs}; did you mean 'alexnet'?; got 'alexnett'",
        "params.yaml: pca.whiten: must be true or false; got 1",
        "params.yaml: cluster.k: must be >= 2; got 1",
        "params.yaml: trian: unknown key; did you mean 'train'?",
    ]


def test_contradictions_are_mistakes_too():
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: train\.head\.reset: false needs cluster\.match_labels: true"
    ):
        edited(SHIPPED, ["train.head.reset=false"])
    edited(SHIPPED, ["train.head.reset=false", "cluster.match_labels=true", "refine.after=null"])


def test_a_section_that_is_none_is_named():
    with pytest.raises(ParamsError) as error:
        edited("cluster:\nseed: 1\n", ["cluster.k=3"])
    assert lines(error) == ["params.yaml: cluster: must be a section with keys of its own; got None"]


class TestCommands:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder with the shipped params.yaml and no schedule, as current folder."""
        monkeypatch.chdir(tmp_path)
        for name in ("DVC_STAGE", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        Path("params.yaml").write_text(SHIPPED)
        Path("stages").mkdir()

    def test_set(self, outcome):
        found = outcome("set", "cluster.k=50", "seed=1")
        assert found == (0, "params.yaml: cluster.k: 30 -> 50\nparams.yaml: seed: 1 already\n", "")
        assert Path("params.yaml").read_text() == SHIPPED.replace("  k: 30 ", "  k: 50 ")

    def test_set_needs_something_to_set(self, outcome):
        assert outcome("set")[0] == 2

    def test_setting_what_is_set_does_not_write(self, outcome):
        before = Path("params.yaml").stat()
        assert outcome("set", "seed=1")[0] == 0
        after = Path("params.yaml").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    @pytest.mark.parametrize(
        "command",
        [("set",), ("plan", "-S"), ("run", "-S"), ("prepare", "--set"), ("train", "--epoch", "1", "-S")],
        ids=lambda command: command[0],
    )
    def test_a_mistake_stops_every_command_and_leaves_the_file(self, outcome, command):
        status, out, err = outcome(*command, "cluster.k=1")
        assert (status, out, err) == (2, "", "error: params.yaml: cluster.k: must be >= 2; got 1\n")
        assert Path("params.yaml").read_text() == SHIPPED
        assert sorted(path.name for path in Path().rglob("*")) == ["params.yaml", "stages"]

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            (("plan", "--epochs", "0"), "--epochs: must be >= 1; got 0"),
            (("train", "-e", "0"), "--epoch: must be >= 1 (epoch 0 is the untrained backbone of `initialise`); got 0"),
        ],
        ids=["plan", "train"],
    )
    def test_a_mistake_beside_it_leaves_the_file_too(self, outcome, command, message):
        assert outcome(*command, "-S", "cluster.k=50") == (2, "", f"error: {message}\n")
        assert Path("params.yaml").read_text() == SHIPPED

    def test_a_link_stays_a_link_and_permissions_stay(self, outcome):
        Path("params.yaml").rename("mine.yaml")
        Path("mine.yaml").chmod(0o640)
        Path("params.yaml").symlink_to("mine.yaml")
        assert outcome("set", "cluster.k=50")[0] == 0
        assert Path("params.yaml").is_symlink()
        assert Path("mine.yaml").read_text() == SHIPPED.replace("  k: 30 ", "  k: 50 ")
        assert Path("mine.yaml").stat().st_mode & 0o777 == 0o640

    def test_plan_unrolls_the_epochs_that_it_sets(self, outcome):
        status, out, _ = outcome("plan", "-S", "epochs=5", "--set", "cluster.k=9")
        assert status == 0
        assert out.splitlines() == [
            "params.yaml: epochs: 20 -> 5",
            "params.yaml: cluster.k: 30 -> 9",
            "stages/schedule.yaml: 5 epochs",
            RATE_ENDS,
        ]
        assert scheduled_epochs() == [1, 2, 3, 4, 5]
        assert load_params().cluster.k == 9

    def test_set_says_when_the_schedule_no_longer_fits(self, outcome):
        outcome("plan")
        hint = "stages/schedule.yaml unrolls another number of epochs: run `deepcluster plan` before `dvc repro`"
        assert outcome("set", "epochs=5")[1].splitlines() == ["params.yaml: epochs: 20 -> 5", hint, RATE_ENDS]
        assert outcome("set", "epochs=20")[1].splitlines() == ["params.yaml: epochs: 5 -> 20"]

    def test_set_says_when_the_learning_rate_ends_in_another_epoch(self, outcome):
        assert outcome("plan", "--epochs", "5")[1].splitlines() == ["stages/schedule.yaml: 5 epochs", RATE_ENDS]
        assert outcome("set", "train.schedule.floor=0.1")[1].splitlines()[1:] == [RATE_ENDS]
        assert outcome("set", "cluster.k=9")[1].splitlines()[1:] == []
        assert outcome(*RATE_ENDS.split("`")[1].split()[1:])[1:] == (
            "params.yaml: train.schedule.epochs: 20 -> 5\n",
            "",
        )
        assert outcome("plan")[1].splitlines() == ["stages/schedule.yaml: 5 epochs"]

    @pytest.mark.slow
    def test_a_stage_works_with_what_it_is_told_under_either_name(self, outcome):
        status, out, err = outcome("prepare", "-S", "data.image_size=16")
        assert status == 0, err
        assert out.splitlines() == [
            "params.yaml: data.image_size: null -> 16",
            "1,797 images of 16x16, 1 channels; 0 files skipped",
        ]
        command = [sys.executable, "-m", "stages.prepare", "-S", "data.image_size=9"]
        found = subprocess.run(command, env={"PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True, check=True)
        assert "images of 9x9" in found.stdout
        assert load_params().data.image_size == 9

    def test_the_schedule_is_not_written_by_a_mistake(self):
        with pytest.raises(ParamsError):
            set_params(["epochs=0"])
        assert not layout.SCHEDULE.exists()


def test_run_works_with_what_it_is_told(project, here):
    """DVC sees the change: with another k only the stages from clustering on run again."""
    found = here(project, "run", "-S", "cluster.k=3", "-S", "epochs=1", "cluster@1")
    assert "params.yaml: cluster.k: 4 -> 3" in found
    stages = [line.split("] ")[1] for line in found.splitlines() if line.startswith("[")]
    assert stages == ["cluster@1"]
    assert scheduled_epochs(project.root / layout.SCHEDULE) == [1]
