"""Epochs unrolled: stages/schedule.yaml maps every epoch to the one before, and must agree with params.yaml."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster import artifacts, layout
from deepcluster.errors import ParamsError, ScheduleError
from deepcluster.fingerprints import refresh
from deepcluster.params import Params, load_params
from deepcluster.settings import set_params

HEADER = """\
# Written by `deepcluster plan`: epoch: previous epoch. dvc.yaml repeats its stages over this mapping.
# The keys are quoted because DVC makes no stages of unquoted numbers, without saying so.
last: {last}
schedule:
"""


def schedule_text(epochs: int) -> str:
    """What stages/schedule.yaml holds for so many epochs."""
    return HEADER.format(last=epochs) + "".join(f'  "{epoch}": {epoch - 1}\n' for epoch in range(1, epochs + 1))


def scheduled_epochs(path: Path = layout.SCHEDULE) -> list[int]:
    """The epochs of the schedule, ascending; an empty list if there is none yet."""
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        return sorted(int(key) for key in content["schedule"])
    except FileNotFoundError:
        return []
    except (YAMLError, KeyError, TypeError, ValueError):
        raise ScheduleError(f"{path}: not a schedule; run `deepcluster plan`") from None


def check_schedule(epochs: int, path: Path = layout.SCHEDULE) -> None:
    """ScheduleError unless the schedule unrolls exactly `epochs` epochs."""
    found = scheduled_epochs(path)
    if found != list(range(1, epochs + 1)):
        raise ScheduleError(
            f"params.yaml asks for {epochs} epochs, {path} unrolls {len(found)}; run `deepcluster plan`, then go on"
        )


def rate_ends_elsewhere(params: Params) -> str | None:
    """A sentence where a cosine of the learning rate ends in another epoch than the run does, or None."""
    schedule = params.train.schedule
    if schedule.name != "cosine" or schedule.epochs in (None, params.epochs):
        return None
    return (
        f"note: the learning rate's cosine ends after {schedule.epochs} epochs (train.schedule.epochs), the run after "
        f"{params.epochs}; `deepcluster set train.schedule.epochs={params.epochs}` makes them equal, and trains every "
        "epoch anew"
    )


def refuse_epochs(epochs: int | None) -> None:
    """ParamsError for a number of epochs that params.yaml cannot have."""
    if epochs is not None and epochs < 1:
        raise ParamsError(f"--epochs: must be >= 1; got {epochs}")


def plan(epochs: int | None = None, path: Path = layout.SCHEDULE) -> tuple[int, int]:
    """Write the schedule for `epochs` (also into params.yaml), or for params.yaml's own; (epochs before, epochs now).

    Also brings stages/code.yaml up to the installed code, in a project that has none of its own.
    The history of epochs that are no longer scheduled leaves the workspace, since evaluate reads that folder;
    it stays in DVC's cache and comes back when the epochs do. What interrupted stages of theirs had done is removed.
    """
    if epochs is not None:
        refuse_epochs(epochs)
        set_params([f"epochs={epochs}"])
    epochs = load_params().epochs
    try:
        before = scheduled_epochs(path)
    except ScheduleError:  # to be replaced; this command is the remedy that its message names
        before = []
    text = schedule_text(epochs)
    if not path.is_file() or path.read_bytes() != text.encode():
        artifacts.write_text(path, text)
    refresh()
    numbered = [(folder.name, folder) for folder in layout.HISTORY.glob("*")]
    numbered += [(folder.name.rpartition("-")[2], folder) for folder in layout.PROGRESS.glob("*-*")]
    for number, folder in numbered:
        if number.isdigit() and int(number) > epochs:
            artifacts.remove(folder)
    return len(before), epochs
