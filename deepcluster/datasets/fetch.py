"""Getting a data set's files to where its reader looks: by torchvision's download, by an archive, or a clear error.

Archives keep the name and the place that torchvision gives them. What is downloaded, and what archives hold, is written
beside its place and renamed into it, checked and whole, so what an interrupted run leaves is never taken for the data
(a killed one leaves `.download-*.partial` or `.unpacked-*.partial`, to be deleted by hand). Nothing is written outside
of ROOT.
"""

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from deepcluster.errors import DataError, MissingDataError, nearest
from deepcluster.faults import out_of_room

FETCH_AGAIN = "delete it and fetch it again"
LARGEST_RATIO = 20  # of what an archive unpacks to, to its own size; the data sets' archives stay below 3
SMALL = 64 << 20  # bytes that any archive may unpack to
MOST_MEMBERS = 1_000_000


@dataclass(frozen=True)
class Archive:
    """A file to download, its MD5, and what is needed of its content, files or whole folders, in the order to place."""

    url: str
    md5: str
    gives: tuple[str, ...]
    folders: bool = False

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def check_split(name: str, split: str, known: Iterable[str]) -> None:
    """DataError unless the data set has this split."""
    *others, last = known
    if split not in (*others, last):
        expected = f"{', '.join(others)} or {last}"
        raise DataError(f"{name} has no split {split!r}: expected {expected}{nearest(split, (*others, last))}")


def ensure(
    name: str, root: Path, *, present: Callable[[], bool], download: Callable[[], object], remedy: Callable[[], str]
) -> None:
    """Call `download` if files are missing; MissingDataError with `remedy` ("put ... into ...") if they still are.

    StorageError or ResourceError where there is no room for them.
    """
    if present():
        return
    cause: Exception | None = None
    try:
        download()
    except DataError:
        raise
    except Exception as problem:  # torchvision lets through URLError, OSError, RuntimeError, http.client's and more
        if refused := out_of_room(problem, root):  # missing files may be done without, those that find no room may not
            raise refused from problem
        cause = problem
    if not present():
        raise MissingDataError(
            f"{name} is not in {root} and could not be downloaded ({reason(cause)}): {remedy()}, "
            "or allow network access"
        ) from cause


def ensure_unpacked(name: str, root: Path, base: Path, archives: Sequence[Archive]) -> None:
    """Everything that the archives give, below the folder `base` in `root`; downloaded and unpacked where missing."""

    def lacks_some(archive: Archive) -> bool:
        there = [lies_there(base / part, folder=archive.folders) for part in archive.gives]  # all asked, for its error
        return not all(there)

    def missing() -> list[Archive]:
        return [archive for archive in archives if lacks_some(archive)]

    def download() -> None:
        for archive in missing():
            _place(archive, root, base)

    def remedy() -> str:
        lacking = missing()
        names = " and ".join(f"{archive.name} (MD5 {archive.md5})" for archive in lacking)
        parts = ", ".join(part for archive in lacking for part in archive.gives)
        return f"put {names}, or unpacked {parts}, into {base}"

    ensure(name, root, present=lambda: not missing(), download=download, remedy=remedy)


def download_file(url: str, target: Path, md5: str) -> None:
    """Let torchvision download `target` and check its MD5; nothing appears under its name before both are done."""
    from torchvision.datasets.utils import download_url

    lies_there(target)  # before the download, as it could not be renamed onto a folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", suffix=".partial", dir=target.parent) as beside:
        arrived = Path(beside) / target.name
        download_url(url, beside, target.name, md5)
        with arrived.open("rb") as file:
            os.fsync(file.fileno())
        arrived.replace(target)


def keep_inside(root: Path, target: Path) -> None:
    """OSError if a link would lead what is written to `target` out of `root`."""
    if not target.resolve().is_relative_to(root.resolve()):
        raise OSError(f"{target}: a link on the way leads out of {root}")


def lies_there(path: Path, *, folder: bool = False) -> bool:
    """Whether the file, or the folder, is there; DataError if something else is in its place."""
    if path.is_dir() if folder else path.is_file():
        return True
    if path.exists():
        raise DataError(f"{path}: is not a {'folder' if folder else 'file'}; move it away")
    return False


def reason(problem: Exception | None) -> str:
    """An exception's text on one line."""
    text = " ".join(str(problem or "nothing arrived").split()) or type(problem).__name__
    return textwrap.shorten(text, 200, placeholder=" ...")


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip or .tar.gz into the new folder `target`: plain files and folders, all of them inside of it.

    DataError for a damaged archive, for names or links that lead elsewhere, and for one that holds more than its size
    makes credible: LARGEST_RATIO times as many bytes, or over MOST_MEMBERS files and folders.
    """
    target.mkdir(parents=True)
    opened, content = _zip_members if archive.suffix == ".zip" else _tar_members, _Allowance(archive)
    try:
        for number, (member, source) in enumerate(opened(archive)):
            if number == MOST_MEMBERS:
                raise _implausible(archive, f"holds over {MOST_MEMBERS:,} files")
            path = target.joinpath(*_safe_parts(archive, member))
            (path if source is None else path.parent).mkdir(parents=True, exist_ok=True)
            if source is not None:
                with source, path.open("wb") as file:
                    shutil.copyfileobj(content.counted(source), file, 1 << 20)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as problem:
        raise DataError(f"{archive}: damaged ({reason(problem)}); {FETCH_AGAIN}") from problem


class _Allowance:
    """The bytes that an archive may still give; DataError at the first one beyond."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._left = self._limit = max(SMALL, LARGEST_RATIO * archive.stat().st_size)

    def counted(self, source: IO[bytes] | gzip.GzipFile) -> IO[bytes]:
        """A reader of `source` that takes what is read from the allowance."""
        return cast("IO[bytes]", _Counted(source, self))

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _implausible(self._archive, f"unpacks to over {self._limit:,} bytes")


class _Counted:
    def __init__(self, source: IO[bytes] | gzip.GzipFile, allowance: _Allowance) -> None:
        self._source = source
        self._allowance = allowance

    def read(self, size: int) -> bytes:
        content = self._source.read(size)
        self._allowance.take(len(content))
        return content


def _place(archive: Archive, root: Path, base: Path) -> None:
    """Put what `archive` gives and is missing into its place below base; the archive stays, as with torchvision."""
    for target in (base / archive.name, *(base / part for part in archive.gives)):
        keep_inside(root, target)
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(base / archive.name, archive.md5):
        download_file(archive.url, base / archive.name, archive.md5)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", suffix=".partial", dir=base) as beside:
        content = Path(beside) / "content"
        unpack(base / archive.name, content)
        os.sync()  # one for all: fsync of a hundred thousand small files takes minutes
        for part in archive.gives:
            if not (content / part).exists():
                raise DataError(f"{base / archive.name}: does not hold {part}")
            if not (base / part).exists():
                (base / part).parent.mkdir(parents=True, exist_ok=True)
                (content / part).rename(base / part)


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each file, None for folders."""
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, info.filename, "is neither a file nor a folder")
            yield info.filename, None if info.is_dir() else opened.open(info)


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    # A stream: gzip cannot seek without unpacking anew. Counted by itself too, as headers can be of any length, and
    # the content by whoever reads it, as a sparse file is longer than what lies in the stream.
    with gzip.open(archive) as stream, tarfile.open(fileobj=_Allowance(archive).counted(stream), mode="r|") as opened:
        for info in opened:
            if not (info.isfile() or info.isdir()):
                raise _refused(archive, info.name, "is neither a file nor a folder")
            yield info.name, opened.extractfile(info)


def _safe_parts(archive: Path, member: str) -> tuple[str, ...]:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or ":" in member or "\0" in member:
        raise _refused(archive, member, "leads out of the folder")
    return path.parts


def _implausible(archive: Path, found: str) -> DataError:
    return DataError(f"{archive}: refused, as it {found}, far more than a file of its size should; {FETCH_AGAIN}")


def _refused(archive: Path, member: str, why: str) -> DataError:
    return DataError(f"{archive}: refused, as {member!r} in it {why}; {FETCH_AGAIN}")
