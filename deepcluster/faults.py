"""What the machine refuses (space, memory, rights, open files), told apart from damage and from mistakes of ours.

An artifact that cannot be read for want of memory is whole: nobody should be told to delete it. So readers ask
`of_the_machine` before they call anything damaged, and the command line asks `explained` for the line to show.
"""

import errno
import os
import re
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcluster.errors import ResourceError, StorageError, UserError
from deepcluster.memory import available_memory

AGAIN = "then run the same command again"
FULL, READ_ONLY, DENIED = (
    {errno.ENOSPC, errno.EDQUOT},
    {errno.EROFS},
    {errno.EACCES, errno.EPERM},
)
OPEN_FILES, TOO_LONG, FAILING = {errno.EMFILE, errno.ENFILE}, {errno.EFBIG}, {errno.EIO, errno.ESTALE}
STORAGE = FULL | READ_ONLY | DENIED | OPEN_FILES | TOO_LONG | FAILING
SQLITE = {"disk is full": errno.ENOSPC, "readonly database": errno.EROFS, "unable to open database": errno.EACCES}
OPEN_FILES_TEXT = os.strerror(errno.EMFILE)  # the dynamic loader has no errno, only a text
NO_THREAD = "can't start new thread"

# How numpy, torch (CPU, CUDA), faiss and the dynamic loader say that an allocation failed.
NO_MEMORY = re.compile(
    r"Unable to allocate|can(no|')t allocate memory|out of memory|bad_alloc|alloc fail|failed to map segment",
    re.IGNORECASE,
)
OF_SHAPE = re.compile(r"Unable to allocate (\S+ \S+) for an array with shape (\(.*\)) and data type (\S+)")
OF_BYTES = re.compile(r"tried to allocate (\d+) bytes")
OF_GPU = re.compile(r"Tried to allocate (\S+ \S+?)\. GPU")


def of_the_machine(error: BaseException) -> bool:
    """Whether the machine refused something: what was read or written is then not to blame."""
    return any(_storage(cause) is not None or _memory(cause) for cause in _chain(error))


def explained(error: BaseException, *, what: str | None = None, remedy: str | None = None) -> UserError | None:
    """The error for the person at the keyboard, if the machine refused something; None for any other error.

    what: the work that it happened in; remedy: what makes it need less memory.
    """
    for cause in _chain(error):
        if (number := _storage(cause)) is not None:
            return StorageError(_storage_message(cause, number, what))
        if _memory(cause):
            return ResourceError(_memory_message(cause, what, remedy))
    return None


def unwritable(place: Path) -> StorageError | None:
    """The error to show if `place` is there and cannot be written to, or None: for tools that do not say so."""
    if not place.exists() or os.access(place, os.W_OK):
        return None
    number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
    return StorageError(_storage_message(OSError(number, os.strerror(number), str(place)), number, None))


def out_of_room(error: BaseException, place: Path) -> UserError | None:
    """The error to show if something failed for want of space, memory or open files: it is not what it seems to be.

    Known by its text too, since libraries that try again keep of an error nothing else. place: where it was to write.
    """
    if found := next((cause for cause in _chain(error) if _memory(cause)), None):
        return explained(found)
    for number in sorted(FULL | OPEN_FILES | TOO_LONG | FAILING):
        if any(os.strerror(number) in str(cause) for cause in _chain(error)):
            return explained(OSError(number, os.strerror(number), str(place)))
    return None


@contextmanager
def explaining(what: str | None = None, remedy: str | None = None) -> Iterator[None]:
    """Errors that `explained` knows leave the block as it words them, all others as they are."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = explained(error, what=what, remedy=remedy)
        if found is None:
            raise
        raise found from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, the last first."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _storage(error: BaseException) -> int | None:
    """The errno of storage, or of open files, that refused something; None for another error."""
    if isinstance(error, OSError):
        return error.errno if error.errno in STORAGE else None
    if isinstance(error, sqlite3.Error):
        return next((number for text, number in SQLITE.items() if text in str(error)), None)
    if isinstance(error, ImportError | RuntimeError) and OPEN_FILES_TEXT in str(error):
        return errno.EMFILE
    return None


def _memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ImportError) and (
        NO_THREAD in str(error) or NO_MEMORY.search(str(error)) is not None
    )


def _storage_message(error: BaseException, number: int, what: str | None) -> str:
    path = getattr(error, "filename", None)
    path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else None
    if path is None and isinstance(error, sqlite3.Error):
        path = "DVC's database in .dvc/tmp"
    return f"{path or what or 'a file'}: {_reason(number, path)}, {AGAIN}"


def _reason(number: int, path: str | None) -> str:
    if number in FULL:
        return f"no space left on the disk{_free(path)}; free some (`dvc gc -w` drops what no artifact here needs)"
    if number in READ_ONLY:
        return "lies on a read-only disk; make it writable"
    if number in DENIED:
        return "permission denied; give yourself the right to read and write there"
    if number in OPEN_FILES:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"too many open files (at most {limit} here); raise the limit, e.g. `ulimit -n 1024`"
    if number in TOO_LONG:
        return "larger than a file may be here; raise `ulimit -f`, or use another disk"
    return f"the disk fails ({os.strerror(number)}); see the system's log, mend it or use another one"


def _free(path: str | None) -> str:
    """` (1.5 MB free)` of the disk that the path lies on or would lie on; nothing if that cannot be told."""
    for place in [] if path is None else [Path(path), *Path(path).absolute().parents]:
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return f" ({found.f_bavail * found.f_frsize / 1e6:,.1f} MB free)"
    return ""


def _memory_message(error: BaseException, what: str | None, remedy: str | None) -> str:
    text, start, limit = str(error), f"{what}: " if what else "", _allowed()
    remedy = remedy or ("raise that limit" if limit else "close other programs, or take a machine with more")
    if NO_THREAD in text:
        return f"{start}no further thread can be started; raise `ulimit -u` or lower OMP_NUM_THREADS, {AGAIN}"
    if "CUDA" in text:
        size = f" for {found[1]}" if (found := OF_GPU.search(text)) else ""
        return f"{start}not enough memory on the GPU{size}; {remedy}, {AGAIN}"
    there = f"{available_memory() / 1e9:.2f} GB are available{limit}"
    return f"{start}not enough memory{_size(text)}; {there}; {remedy}, {AGAIN}"


def _allowed() -> str:
    """Said of a limit of the shell, which may be far below what the machine has."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f" of the {limit / 1e9:.2f} GB that `ulimit -v` allows"


def _size(text: str) -> str:
    """What was too large, as far as the error says."""
    if found := OF_SHAPE.search(text):
        return f" for an array of {found[1]}, shape {found[2]}, {found[3]}"
    if found := OF_BYTES.search(text):
        return f" for a tensor of {int(found[1]) / 1e9:.2f} GB"
    return ""
