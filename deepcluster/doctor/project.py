"""Checks of the project in the current folder: settings, data set, git and DVC."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcluster import layout
from deepcluster.catalogue import known, present
from deepcluster.doctor.checks import Check, Checks, one_line
from deepcluster.doctor.storage import Link, cache_link, existing, room, writable
from deepcluster.errors import DataError, ParamsError, RunnerError, ScheduleError, UserError
from deepcluster.fingerprints import CODE_FILE, changed_stages
from deepcluster.params import PARAMS_FILE, load_params
from deepcluster.processes import alive

if TYPE_CHECKING:
    from deepcluster.params.sections import Data

PIPELINE = Path("dvc.yaml")
KEPT = ("dvc.lock", "dvc.yaml", "params.yaml", "stages")


def is_project(folder: Path = Path()) -> bool:
    """Whether a folder is meant to be a project's."""
    return (folder / PIPELINE).exists() or (folder / PARAMS_FILE).exists()


def project_checks() -> list[tuple[str, Checks]]:
    """All of them, by name; all but one where this is no project."""
    if not is_project():
        return [("project", no_project)]
    return [
        ("params.yaml", settings),
        ("data set", data_set),
        ("pipeline", pipeline),
        ("schedule", schedule),
        ("code", code),
        ("git repository", repository),
        ("DVC", dvc_ready),
        ("runs", runs_going_on),
        ("dvc.lock", lock_file),
        ("disk", disk),
        ("cache", cache),
        ("write", write),
    ]


def no_project() -> Iterator[Check]:
    """The machine alone was checked."""
    found = f"none here ({Path.cwd()} has no {PIPELINE}), so only the machine was checked"
    yield Check("project", "ok", found, "`deepcluster new DIR --images FOLDER` makes one")


def settings() -> Iterator[Check]:
    """params.yaml: every mistake in it."""
    try:
        params = load_params()
    except ParamsError as error:
        for line in str(error).splitlines():
            yield Check(
                "params.yaml", "fail", line.removeprefix(f"{PARAMS_FILE}: "), "correct it; the file's comments help"
            )
        return
    yield Check(
        "params.yaml", "ok", f"{params.data.name}, {params.model.arch}, k = {params.cluster.k}, {params.epochs} epochs"
    )


def data_set() -> Iterator[Check]:
    """Whether the images that params.yaml names are there. Nothing is decoded."""
    try:
        data = load_params().data
    except ParamsError:
        return  # said by `settings`
    root = Path(data.root).expanduser()
    if data.name == "folder":
        yield _folder(data, root)
    elif known(data.name, data.split) is None:
        yield Check("data set", "fail", f"{data.name} has no split {data.split!r}", "correct data.split (docs/data.md)")
    elif present(data.name, data.split, root):
        where = "comes with scikit-learn" if data.name == "digits" else f"files in {root}"
        yield Check("data set", "ok", f"{data.name} {data.split}: {where}")
    elif layout.IMAGES.exists():
        yield Check("data set", "ok", f"{data.name} {data.split}: no files in {root}, but prepared ({layout.IMAGES})")
    else:
        remedy = "`deepcluster run` downloads them; without a network see docs/data.md"
        yield Check("data set", "warn", f"{data.name} {data.split}: no files in {root}", remedy)


def _folder(data: "Data", root: Path) -> Check:
    from deepcluster.datasets.folder import list_images, split_folder

    remedy = "name your folder: `deepcluster set data.root=FOLDER`"
    try:
        base = split_folder(root, data.split, follow_links=data.follow_links)
    except DataError as error:
        return Check("data set", "fail", one_line(error), remedy)
    listed, refused = list_images(root, base, follow_links=data.follow_links)
    if not listed:
        return Check("data set", "fail", f"{base}: no images that may be read", remedy)
    empty = sum((root / name).stat().st_size == 0 for name in listed)
    bad = f", {empty} of them empty, {len(refused)} more refused" if empty or refused else ""
    found = f"{base}: {len(listed):,} images{bad}"
    if empty + len(refused) > data.max_unreadable * (len(listed) + len(refused)):
        return Check("data set", "fail", found, "remove them, or raise data.max_unreadable")
    return Check("data set", "ok", found)


def pipeline() -> Iterator[Check]:
    """dvc.yaml is there; in a project without code of its own, its stages are those of the installed package."""
    from ruamel.yaml import YAML

    from deepcluster.projects.pipeline import pipeline_text

    if not PIPELINE.exists():
        yield Check(
            "pipeline", "fail", f"{PIPELINE}: not found", "`deepcluster new DIR --images FOLDER` makes a whole project"
        )
        return
    own = _stages(YAML(typ="safe").load(PIPELINE.read_text(encoding="utf-8")))
    if CODE_FILE.exists() and own != (shipped := _stages(YAML(typ="safe").load(pipeline_text()))):
        names = sorted(name for name in own.keys() | shipped.keys() if own.get(name) != shipped.get(name))
        remedy = "unless you changed it, take the dvc.yaml that `deepcluster new` makes in another folder"
        yield Check("pipeline", "warn", f"{PIPELINE} is not this deepcluster's: stages {', '.join(names)}", remedy)
    else:
        yield Check("pipeline", "ok", f"{PIPELINE}, stages {', '.join(own)}")


def _stages(content: Any) -> dict[str, Any]:
    """Of each stage of dvc.yaml its command, inputs and params, not how outputs are cached."""
    stages = {name: definition.get("do", definition) for name, definition in content["stages"].items()}
    return {name: [stage.get(key) for key in ("cmd", "deps", "params")] for name, stage in stages.items()}


def schedule() -> Iterator[Check]:
    """The epochs unrolled are those of params.yaml."""
    from deepcluster.plan import check_schedule

    try:
        epochs = load_params().epochs
        check_schedule(epochs)
    except ParamsError:
        return
    except ScheduleError as error:
        yield Check(
            "schedule", "warn", one_line(error).partition("; ")[0], "`deepcluster plan`; `deepcluster run` does it too"
        )
        return
    yield Check("schedule", "ok", f"{layout.SCHEDULE}: {epochs} epochs")


def code() -> Iterator[Check]:
    """In a project without code: whether results were made with the code that is installed now."""
    if not CODE_FILE.exists():
        yield Check("code", "ok", "the project's own")
    elif changed := changed_stages():
        found = f"another deepcluster was installed since; stages {', '.join(changed)} will run again"
        yield Check("code", "warn", found, "`deepcluster run`, or `deepcluster plan` before `dvc repro`")
    else:
        yield Check("code", "ok", f"{CODE_FILE} stands for what is installed")


def repository() -> Iterator[Check]:
    """git knows the project, and what DVC wrote is committed."""
    from deepcluster.projects.git import git

    try:
        git(Path(), "status", "--porcelain", "--", "params.yaml")
    except UserError as error:
        yield Check("git repository", "warn", one_line(error), "`git init`, then `git add .` and `git commit`")
        return
    changed = [line[3:] for line in git(Path(), "status", "--porcelain", "--", *KEPT).splitlines()]
    if changed:
        remedy = "`git add` and `git commit` them to keep these results findable"
        yield Check("git repository", "warn", f"not committed: {', '.join(changed)}", remedy)
    else:
        yield Check("git repository", "ok", "settings and dvc.lock are committed")


def dvc_ready() -> Iterator[Check]:
    """DVC is initialised, and is the version that `deepcluster run` was tested with."""
    from deepcluster.runner import check_dvc

    if not Path(".dvc").is_dir():
        yield Check("DVC", "fail", "not initialised here", "`dvc init`")
        return
    try:
        check_dvc()
    except RunnerError as error:
        found, _, remedy = one_line(error).partition("; ")
        yield Check("DVC", "warn", found, remedy)
        return
    yield Check("DVC", "ok", "initialised")


def runs_going_on() -> Iterator[Check]:
    """Whether another process holds DVC's locks, and whether DVC can read its list of them."""
    rwlock = Path(".dvc/tmp/rwlock")
    holders = sorted({*_lock_holder(Path(".dvc/tmp/lock")), *_stage_runners(rwlock)})
    if not holders and _is_torn(rwlock):
        yield Check("runs", "warn", f"a killed DVC left {rwlock} half written", "`deepcluster run` mends it")
    elif holders:
        remedy = "wait for it; a second run would stop at once"
        yield Check("runs", "warn", f"DVC is at work in process {', '.join(map(str, holders))}", remedy)
    else:
        yield Check("runs", "ok", "none going on")


def _lock_holder(path: Path) -> list[str]:
    """The process that holds the lock file: it wrote its number there. Tried, as the file stays when it is free."""
    try:
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return [file.read().strip() or "?"]
    except FileNotFoundError:
        pass
    return []


def _stage_runners(path: Path) -> list[str]:
    """Living processes that DVC has down as readers or writers of artifacts."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    writers, readers = content.get("write", {}).values(), content.get("read", {}).values()
    entries = [*writers, *(entry for several in readers for entry in several)]
    return [str(entry["pid"]) for entry in entries if alive(int(entry["pid"]))]


def _is_torn(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def lock_file() -> Iterator[Check]:
    """dvc.lock is whole: DVC refuses all work with one that it was killed while writing."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from deepcluster.lockfile import check_lock, salvaged, split

    path, name = Path("dvc.lock"), "dvc.lock"
    if not path.exists():
        yield Check(name, "ok", "none yet: nothing has run")
        return
    try:
        check_lock(path)
    except RunnerError as error:
        found, _, remedy = one_line(error).partition("; ")
        yield Check(name, "fail", found, remedy)
        return
    text = path.read_text(encoding="utf-8")
    if (entries := split(text)) is not None:
        yield Check(name, "ok", f"{len(entries)} stages recorded")
    elif (entries := salvaged(text)) is not None:
        found = f"left half written by a killed DVC after {len(entries)} whole entries"
        yield Check(name, "warn", found, "`deepcluster run` mends it")
    else:
        try:
            YAML(typ="safe").load(text)
            yield Check(name, "ok", "edited by hand")
        except YAMLError:
            yield Check(name, "fail", "no YAML (a merge conflict?)", f"`git checkout {path}`, or delete it")


def disk() -> Iterator[Check]:
    """Room for artifacts and cache."""
    yield room("disk", layout.DATA)
    folder, _ = dvc_cache()
    if existing(folder).stat().st_dev != existing(layout.DATA).stat().st_dev:
        yield room("disk", folder)


def cache() -> Iterator[Check]:
    """Where DVC's cache is and how it is linked."""
    folder, wanted = dvc_cache()
    if not Path(".dvc").is_dir():
        return
    can_write = writable("cache", folder)
    yield from [can_write] if can_write.state == "fail" else cache_link("cache", folder, layout.DATA, wanted)


def write() -> Iterator[Check]:
    """Whether files can be made in the project and in its folder of artifacts, which may be another disk."""
    for folder in dict.fromkeys(map(existing, (Path(), layout.DATA))):
        yield writable("write", folder)


def dvc_cache() -> tuple[Path, list[Link]]:
    """DVC's cache folder and the kinds of links that its settings name, without opening the project."""
    from dvc.config import Config

    settings = Config(".dvc")["cache"] if Path(".dvc").is_dir() else {}
    kinds = settings.get("type") or ["reflink", "copy"]  # DVC's own default
    return Path(settings.get("dir") or ".dvc/cache"), list(kinds)
