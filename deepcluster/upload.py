"""`deepcluster upload`: what the workspace has, into DEEPCLUSTER_STORE."""

from collections.abc import Sequence
from pathlib import Path

from deepcluster import artifacts, layout
from deepcluster.artifacts.remote import STORE
from deepcluster.errors import UserError
from deepcluster.params import PARAMS_FILE
from deepcluster.progress import reporting

FOLDERS = (layout.DATA / "dataset", layout.EPOCHS, layout.HISTORY)


def upload(chosen: Sequence[Path], *, force: bool) -> None:
    """Send the chosen artifacts, or all that stages read, to DEEPCLUSTER_STORE; a line for each that was sent.

    UserError before anything is sent: outside a project, without a store, for what is no artifact of this project.
    """
    if not PARAMS_FILE.exists():
        raise UserError(f"{PARAMS_FILE}: not found; run this in the project's folder, the one with dvc.yaml")
    if artifacts.elsewhere(layout.DATA) is None:
        raise UserError(f"{STORE}: not set; it says where to, e.g. {STORE}=s3://bucket/project")
    places = _named(chosen) if chosen else everything()
    if not places:
        raise UserError("data: nothing to upload yet; `deepcluster run` makes it")
    planned = [artifacts.plan_upload(place) for place in places]
    total, done, count = sum(each.size for each in planned), 0, 0
    with reporting("upload", "bytes") as report:
        for place, each in zip(places, planned, strict=True):
            remote = artifacts.elsewhere(each.path)
            assert remote is not None
            arrived = 0
            for size in artifacts.send(each, remote, force=force):
                arrived += size
                report(done + arrived, total)
            done += each.size
            count += bool(arrived)
            if arrived:
                print(f"{place}: {arrived / 1e6:,.1f} MB", flush=True)
    rest = len(places) - count
    print(f"{count} sent" + (f", {rest} there already" if rest else ""))


def everything() -> list[Path]:
    """Every artifact in the workspace that a stage reads, the data set first."""
    found: list[Path] = []
    for folder in FOLDERS:
        inside = sorted(folder.glob("*" if folder == FOLDERS[0] else "*/*"), key=_order)
        found += [path for path in inside if not path.name.startswith(".")]
    return found


def _order(path: Path) -> tuple[int, str]:
    """Epochs in their order."""
    epoch = path.parent.name
    return (int(epoch) if epoch.isdecimal() else 0, path.name)


def _named(chosen: Sequence[Path]) -> list[Path]:
    known = everything()
    places = [Path(*path.parts) for path in chosen]
    for place in places:
        if place not in known:
            raise UserError(
                f"{place}: no artifact of this project; name one such as {layout.features(7)}, relative to its folder"
            )
    return places
