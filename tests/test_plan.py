"""The schedule: what `deepcluster plan` writes, what it leaves alone, and when a stage refuses it."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from deepcluster import layout
from deepcluster.errors import ParamsError, ScheduleError
from deepcluster.params import Params
from deepcluster.plan import check_schedule, plan, rate_ends_elsewhere, scheduled_epochs

PARAMS = """\
# settings
seed: 7                 # every draw
epochs: 3               # after a change: plan

cluster:
  k: 5                  # clusters
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and stages/, as current folder."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    Path("stages").mkdir()
    return tmp_path


def schedule() -> object:
    return YAML(typ="safe").load(layout.SCHEDULE)


def test_every_epoch_maps_to_the_one_before_under_a_quoted_key():
    assert plan() == (0, 3)
    assert schedule() == {"last": 3, "schedule": {"1": 0, "2": 1, "3": 2}}
    assert all(line.startswith('  "') for line in layout.SCHEDULE.read_text().split("schedule:\n")[1].splitlines())


def test_epochs_are_counted_as_numbers_not_as_text():
    plan(12)
    assert scheduled_epochs() == list(range(1, 13))


def test_a_number_given_changes_one_number_of_params_and_nothing_else():
    assert plan(12) == (0, 12)
    assert Path("params.yaml").read_text() == PARAMS.replace("epochs: 3  ", "epochs: 12 ")
    assert plan(2) == (12, 2)
    assert Path("params.yaml").read_text() == PARAMS.replace("epochs: 3 ", "epochs: 2 ")


def test_a_number_given_is_added_where_params_has_none():
    Path("params.yaml").write_text("seed: 7\n")
    plan(4)
    assert YAML(typ="safe").load(Path("params.yaml")) == {"seed": 7, "epochs": 4}


def test_no_number_given_leaves_params_alone():
    plan()
    assert Path("params.yaml").read_text() == PARAMS


def test_planning_what_is_planned_writes_nothing():
    plan()
    before = layout.SCHEDULE.stat()
    assert plan() == (3, 3)
    assert layout.SCHEDULE.stat().st_ino == before.st_ino
    assert layout.SCHEDULE.stat().st_mtime_ns == before.st_mtime_ns


def test_shrinking_removes_the_history_of_dropped_epochs_only():
    for epoch in (0, 1, 2, 3, 10):
        layout.clusters(epoch).mkdir(parents=True)
        layout.checkpoint(epoch).mkdir(parents=True)
    (layout.HISTORY / "notes").mkdir()
    plan(2)
    assert sorted(path.name for path in layout.HISTORY.iterdir()) == ["0", "1", "2", "notes"]
    assert all(layout.checkpoint(epoch).is_dir() for epoch in (0, 1, 2, 3, 10))


@pytest.mark.parametrize("epochs", [0, -1])
def test_fewer_than_one_epoch_is_refused_and_nothing_changes(epochs):
    plan()
    before = layout.SCHEDULE.read_bytes()
    with pytest.raises(ParamsError, match=rf"^--epochs: must be >= 1; got {epochs}$"):
        plan(epochs)
    assert Path("params.yaml").read_text() == PARAMS
    assert layout.SCHEDULE.read_bytes() == before


def test_mistakes_in_params_stop_planning_before_anything_changes():
    text = PARAMS.replace("k: 5", "k: 1")
    Path("params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"^params\.yaml: cluster\.k: must be >= 2; got 1$"):
        plan(12)
    assert Path("params.yaml").read_text() == text
    assert not layout.SCHEDULE.exists()


def test_a_schedule_that_fits_passes():
    plan()
    check_schedule(3)


@pytest.mark.parametrize("epochs", [2, 4])
def test_a_schedule_that_does_not_fit_is_refused_with_the_remedy(epochs):
    plan()
    message = (
        f"params.yaml asks for {epochs} epochs, stages/schedule.yaml unrolls 3; run `deepcluster plan`, then go on"
    )
    with pytest.raises(ScheduleError) as error:
        check_schedule(epochs)
    assert str(error.value) == message


def test_a_schedule_with_a_gap_does_not_fit():
    layout.SCHEDULE.write_text('schedule:\n  "1": 0\n  "3": 2\n')
    with pytest.raises(ScheduleError, match="deepcluster plan"):
        check_schedule(2)


def test_no_schedule_does_not_fit():
    with pytest.raises(ScheduleError, match=r"unrolls 0; run `deepcluster plan`"):
        check_schedule(3)


@pytest.mark.parametrize("text", ["", "[1, 2", "schedule: 3\n", "epochs: 3\n", "schedule:\n  one: 0\n"])
def test_what_is_no_schedule_is_refused_and_planning_mends_it(text):
    layout.SCHEDULE.write_text(text)
    with pytest.raises(ScheduleError, match=r"^stages/schedule\.yaml: not a schedule; run `deepcluster plan`$"):
        check_schedule(3)
    assert plan() == (0, 3)
    check_schedule(3)


@pytest.mark.parametrize(
    ("schedule", "epochs", "note"),
    [
        ({"name": "cosine", "epochs": 20}, 30, True),
        ({"name": "cosine", "epochs": 20}, 5, True),
        ({"name": "cosine", "epochs": 20}, 20, False),
        ({"name": "constant", "epochs": 20}, 30, False),
    ],
)
def test_a_cosine_that_ends_in_another_epoch_is_pointed_out(schedule, epochs, note):
    params = Params.model_validate({"epochs": epochs, "train": {"schedule": schedule}})
    expected = (
        f"note: the learning rate's cosine ends after 20 epochs (train.schedule.epochs), the run after {epochs}; "
        f"`deepcluster set train.schedule.epochs={epochs}` makes them equal, and trains every epoch anew"
    )
    assert rate_ends_elsewhere(params) == (expected if note else None)
