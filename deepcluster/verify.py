"""`deepcluster verify`: stages run again in a scratch folder, and what they make compared with what is recorded.

A stage gets links to the artifacts that dvc.lock says it read, a copy of params.yaml, and a process of its own. It
writes into the scratch folder, which is removed afterwards; workspace, cache and dvc.lock stay as they are.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import deepcluster
from deepcluster import artifacts
from deepcluster.artifacts import Difference
from deepcluster.errors import UserError, in_ranges, nearest
from deepcluster.origins import LOCK, TEMPORARY, Origin, dvc_md5
from deepcluster.params import PARAMS_FILE, Params, load_params
from deepcluster.params.file import parse, read_text

ONCE_BEFORE, EVERY_EPOCH, ONCE_AFTER = (
    ("prepare", "initialise"),
    ("extract", "pca", "cluster", "train"),
    ("evaluate", "report"),
)
STAGES = (*ONCE_BEFORE, *EVERY_EPOCH, *ONCE_AFTER)
INTERRUPTED = 130


@dataclass(frozen=True)
class Verdict:
    """Of one stage. stale: not compared, for `reason`, as it was made from something else than what lies there now.

    differences: by the path of each artifact that differs. Without the artifact itself dvc.lock's hash is compared.
    """

    stage: str
    outcome: Literal["same", "different", "stale"]
    seconds: float = 0.0
    reason: str = ""
    files: int = 0
    size: int = 0
    differences: Mapping[str, Sequence[Difference]] = field(default_factory=dict)


def chosen_stages(source: Origin, names: Sequence[str], epoch: int | None) -> list[str]:
    """The recorded stages that `names` (`cluster`, `cluster@7`; none: all) and `epoch` mean, in the pipeline's order.

    UserError for a name that is no stage, for an epoch or a stage that is not recorded, and for contradictions.
    """
    recorded = sorted({locked.stage for locked in source.lock.values() if _known(locked.stage)}, key=_order)
    if not recorded:
        raise UserError(f"{source.named(LOCK)}: records no stage; `deepcluster run` does")
    wanted: list[tuple[str | None, int | None]] = [_parsed(name, epoch) for name in names] or [(None, epoch)]
    found = [stage for stage in recorded if any(_matches(stage, *each) for each in wanted)]
    for name, number in wanted:
        if not any(_matches(stage, name, number) for stage in recorded):
            epochs = sorted({at for stage in recorded if (at := _split(stage)[1]) is not None})
            said = name if number is None else f"{name or 'epoch'}{'@' if name else ' '}{number}"
            raise UserError(f"{said}: not in {source.named(LOCK)}, which records epochs {in_ranges(epochs) or 'none'}")
    return found


def verify(source: Origin, stages: Sequence[str]) -> Iterator[Verdict]:
    """Run each stage again and compare; UserError where one fails. Each verdict comes as soon as it is known."""
    text_of_params = source.place_of_file(PARAMS_FILE)
    params, settings = load_params(text_of_params), parse(read_text(text_of_params), PARAMS_FILE)
    for stage in stages:
        outs = {Path(path): locked.md5 for path, locked in source.lock.items() if locked.stage == stage}
        parents = next(locked for locked in source.lock.values() if locked.stage == stage)
        if reason := _stale(source, parents.parents, parents.settings, settings):
            yield Verdict(stage, "stale", reason=reason)
            continue
        started = time.perf_counter()
        with _scratch(source, stage, [Path(path) for path in parents.parents], params, text_of_params) as folder:
            _run(stage, folder)
            found = {path.as_posix(): _compared(source, path, folder / path, md5) for path, md5 in outs.items()}
            sizes = [artifacts.disk_usage(folder / path) for path in outs]
        differing = {path: differences for path, differences in found.items() if differences}
        yield Verdict(
            stage,
            "different" if differing else "same",
            seconds=time.perf_counter() - started,
            files=sum(files for files, _ in sizes),
            size=sum(size for _, size in sizes),
            differences=differing,
        )


def _known(stage: str) -> bool:
    name, epoch = _split(stage)
    return name in STAGES and (epoch is not None) == (name in EVERY_EPOCH)


def _split(stage: str) -> tuple[str, int | None]:
    name, _, epoch = stage.partition("@")
    return name, int(epoch) if epoch.isdecimal() else None


def _order(stage: str) -> tuple[int, int, int]:
    name, epoch = _split(stage)
    phase = 0 if name in ONCE_BEFORE else 1 if name in EVERY_EPOCH else 2
    return phase, epoch or 0, STAGES.index(name)


def _parsed(typed: str, epoch: int | None) -> tuple[str | None, int | None]:
    """Stage and epoch, None for all of them, of `cluster` or `cluster@7`."""
    name, number = _split(typed)
    if name not in STAGES or ("@" in typed and (number is None or name not in EVERY_EPOCH)):
        known = ", ".join(STAGES)
        raise UserError(f"verify: must be one of {known}, or such as cluster@7{nearest(name, STAGES)}; got {typed!r}")
    if epoch is not None and (number not in (None, epoch) or name not in EVERY_EPOCH):
        raise UserError(f"--epoch: {epoch} contradicts {typed}" if number else f"--epoch: {name} has no epochs")
    return name, number if number is not None else epoch


def _matches(stage: str, name: str | None, epoch: int | None) -> bool:
    own, number = _split(stage)
    return name in (None, own) and epoch in (None, number)


def _stale(
    source: Origin, parents: Mapping[str, str | None], recorded: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """Why running the stage again would answer another question, or an empty string."""
    for key, before in recorded.items():
        now: Any = settings
        for part in key.split("."):
            now = now.get(part) if isinstance(now, Mapping) else None
        if now != before:
            return f"{PARAMS_FILE} has another {key} now than when it was made"
    for path, md5 in parents.items():
        here = source.place(Path(path), made_by="")
        if md5 is not None and dvc_md5(here) != md5:
            return f"{path} is not what it was made from"
    return ""


@contextmanager
def _scratch(source: Origin, stage: str, deps: Sequence[Path], params: Params, text_of_params: Path) -> Iterator[Path]:
    """A folder like the project's, with links to what the stage reads, on the same disk as the cache."""
    outside = [("prepare", params.data.root), ("initialise", params.model.weights or "")]
    (named,) = [Path(os.path.normpath(path)) for name, path in outside if name == stage] or [Path()]
    TEMPORARY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=TEMPORARY) as top:
        # as deep as the path of the images leads up, so that it leads to a link in here
        folder = Path(top).resolve().joinpath(*["up"] * named.parts.count(".."), "project")
        folder.mkdir(parents=True)
        folder.joinpath(PARAMS_FILE).write_bytes(text_of_params.read_bytes())
        for path in deps:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(source.place(path, made_by="").resolve())
        if named.parts and not named.is_absolute() and not str(named).startswith("~") and named.exists():
            place = Path(os.path.normpath(folder / named))
            if place.exists():
                raise UserError(
                    f"verify: {stage} reads {named}, which holds the artifacts themselves; name a subfolder"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(named.resolve())
        yield folder


def _run(stage: str, folder: Path) -> None:
    """The stage's command, by this Python and with this code; what it prints is not shown, its errors and bars are."""
    name, epoch = _split(stage)
    command = [sys.executable, "-m", f"stages.{name}", *([] if epoch is None else ["--epoch", str(epoch)])]
    code = str(Path(str(deepcluster.__file__)).parents[1])
    paths = os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"} | {"PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise UserError(f"verify: {stage} fails when it is run again ({how}); why stands above")


def _compared(source: Origin, path: Path, made: Path, md5: str | None) -> Sequence[Difference]:
    """What differs from the recorded artifact; from its hash in dvc.lock, if it lies nowhere."""
    if source.revision is None and not path.exists():
        same = md5 is not None and made.exists() and dvc_md5(made) == md5
        return [] if same else [Difference("", f"not the hash in {LOCK}; the artifact itself is not there to compare")]
    recorded = source.place(path, made_by="")
    found = artifacts.differences(recorded, made)
    if not found and source.revision is None and md5 is not None and dvc_md5(recorded) != md5:
        return [Difference("", f"as it lies there, but not the hash in {LOCK}")]
    return found
