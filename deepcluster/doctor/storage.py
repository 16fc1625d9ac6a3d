"""Checks of disks: room, permission to write, and how DVC can link its cache to the workspace."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from deepcluster.doctor.checks import Check

Link = Literal["reflink", "hardlink", "symlink", "copy"]
LITTLE, TOO_LITTLE = 5e9, 5e8  # bytes free


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def room(name: str, path: Path) -> Check:
    """Free space where `path` lies or will lie."""
    free = shutil.disk_usage(existing(path)).free
    found = f"{path}: {free / 1e9:.1f} GB free"
    if free >= LITTLE:
        return Check(name, "ok", found)
    remedy = "free some; `deepcluster estimate` says what a run takes"
    return Check(name, "warn" if free >= TOO_LITTLE else "fail", found, remedy)


def writable(name: str, path: Path) -> Check:
    """Whether a file can be made there: tried, since permissions do not tell about read-only disks."""
    folder = existing(path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check(name, "ok", f"{folder}")
    except OSError as error:
        return Check(name, "fail", f"{folder}: {error.strerror}", "make it writable, or work on a copy of the project")


def usable_links(cache: Path, workspace: Path, wanted: Sequence[Link]) -> list[Link]:
    """Of the kinds of links that DVC is to try, those that work between two folders, both there and writable."""
    found: list[Link] = []
    with tempfile.TemporaryDirectory(dir=cache, prefix=".links-") as source_folder:
        source = Path(source_folder) / "source"
        source.write_bytes(b"x")
        with tempfile.TemporaryDirectory(dir=workspace, prefix=".links-") as target_folder:
            for kind in wanted:
                if _links(source, Path(target_folder) / kind, kind):
                    found.append(kind)
    return found


def _links(source: Path, target: Path, kind: Link) -> bool:
    from dvc_objects.fs.system import reflink

    try:
        match kind:
            case "reflink":
                reflink(str(source), str(target))
            case "hardlink":
                os.link(source, target)
            case "symlink":
                os.symlink(source, target)
            case "copy":
                shutil.copyfile(source, target)
    except (OSError, NotImplementedError):
        return False
    return True


def cache_link(name: str, cache: Path, workspace: Path, wanted: Sequence[Link]) -> Iterator[Check]:
    """How artifacts get from the workspace into the cache: copies take the disk twice."""
    links = usable_links(existing(cache), existing(workspace), wanted)
    first = links[0] if links else "copy"
    found = f"{cache}: {first}" + (f" (of {', '.join(wanted)})" if len(wanted) > 1 else "")
    if first != "copy":
        yield Check(name, "ok", found)
    elif list(wanted) == ["copy"]:
        remedy = "`dvc config cache.type reflink,hardlink,copy`, then `dvc checkout --relink`"
        yield Check(name, "warn", f"{found}, so every artifact lies on the disk twice", remedy)
    else:
        remedy = "put cache and project on one disk (`dvc cache dir FOLDER`)"
        yield Check(name, "warn", f"{found}: no link works, so every artifact lies on the disk twice", remedy)
