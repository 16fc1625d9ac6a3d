"""Files behind a URL, by fsspec: DEEPCLUSTER_STORE is the folder that has what the workspace has not.

Every request ends: where nothing arrives for DEEPCLUSTER_STORE_TIMEOUT seconds (60), or less than 16 MB in each span of
so many, it is given up with a RemoteError. Clients of S3 and HTTP are told the same, so that they stop sooner.
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from deepcluster import environment
from deepcluster.errors import RemoteError, UserError

STORE, TIMEOUT = "DEEPCLUSTER_STORE", "DEEPCLUSTER_STORE_TIMEOUT"
RECEIPT = ".sha256"  # ends the name of what says, beside an artifact, which content `uploading` has sent
SECONDS = 60.0
LEAST_BYTES = 16 << 20  # in so many seconds
WORKERS = 2

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Remote:
    """A folder of files at a URL, without a slash at its end."""

    url: str

    def at(self, path: Path) -> "Remote":
        return Remote(f"{self.url}/{path.as_posix()}")

    def read(self, name: str, *, size: int | None = None) -> bytes:
        """The whole file, `size` bytes if that is known; FileNotFoundError if there is none, else RemoteError."""
        with self._said(name):
            content: bytes = self._call("cat_file", name, size=size or 0)
        return content

    def read_or_none(self, name: str) -> bytes | None:
        """As `read`; None if there is no such file."""
        with suppress(FileNotFoundError):
            return self.read(name)
        return None

    def write(self, name: str, content: bytes) -> None:
        """The file with that content, whole or not at all where the store has whole objects, as S3 does."""
        if self.url.startswith("http"):
            raise UserError(f"{STORE}: {self.url}: HTTP is for reading; upload to the bucket behind it, e.g. s3://...")
        with self._said(name):
            self._call("pipe_file", name, content, size=len(content))

    def remove(self, name: str) -> None:
        with self._said(name):
            self._call("rm_file", name)

    def _call(self, method: str, name: str, *arguments: Any, size: int = 0) -> Any:
        """A method of the file system on one file; given up where it has a loop of its own, as S3 and HTTP have."""
        files, root = filesystem(self.url, timeout())
        path = f"{root}/{name}"
        if not files.async_impl:
            if method == "pipe_file":
                files.makedirs(files._parent(path), exist_ok=True)
            return getattr(files, method)(path, *arguments)
        from fsspec.asyn import sync

        limit = timeout() * (1 + size / LEAST_BYTES)
        return sync(files.loop, getattr(files, f"_{method}"), path, *arguments, timeout=limit)

    @contextmanager
    def _said(self, name: str) -> Iterator[None]:
        """Whatever a client raises as one line; FileNotFoundError and want of memory as they are."""
        try:
            yield
        except (FileNotFoundError, MemoryError, UserError):
            raise
        except Exception as error:  # clients raise what they like: OSError, botocore's, aiohttp's, ...
            raise RemoteError(f"{self.url}/{name}: {reason(error)}") from error


def elsewhere(path: Path) -> Remote | None:
    """Where DEEPCLUSTER_STORE has a path of the project; None without it, and for paths outside the project."""
    url = os.environ.get(STORE, "").rstrip("/")
    if not url or path.is_absolute():
        return None
    if "://" not in url:
        raise UserError(f"{STORE}: must be a URL, such as s3://bucket/project or https://host/project; got {url!r}")
    return Remote(url).at(path)


def timeout() -> float:
    """DEEPCLUSTER_STORE_TIMEOUT, seconds > 0; UserError if it is something else."""
    return environment.seconds(TIMEOUT, SECONDS, "a number of seconds above 0")


@functools.lru_cache(maxsize=4)
def filesystem(url: str, seconds: float) -> tuple[Any, str]:
    """fsspec's file system of a URL and the path in it, without caches of what is there; UserError if there is none."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    protocol = url.partition("://")[0]
    if protocol in ("s3", "s3a"):
        patience = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 2}}
        options |= {"config_kwargs": patience}
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            options |= {"client_kwargs": {"timeout": ClientTimeout(sock_connect=seconds, sock_read=seconds)}}
        files, path = url_to_fs(url, **options)
    except ImportError as error:
        extra = "; `pip install 'deepcluster[remote]'` has it for S3 and HTTP" if protocol in EXTRA else ""
        raise UserError(f"{STORE}: {url}: {error}{extra}") from None
    except ValueError as error:
        raise UserError(f"{STORE}: {url}: {error}") from None
    if protocol in ("s3", "s3a"):
        files.retries = 1  # botocore tries again already
    return files, path.rstrip("/")


EXTRA = ("s3", "s3a", "http", "https")


def ahead(function: Callable[[T], R], items: Iterable[T], *, workers: int = WORKERS) -> Iterator[R]:
    """function(item) of every item, in order, the next ones being made by threads while the caller uses one.

    The threads are daemons: who stops, by an error or Ctrl-C, does not wait for a request under way.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) > workers - 1:
            found = pending.popleft().result()
            pending.append(started(function, item))
            yield found
        else:
            pending.append(started(function, item))
    while pending:
        yield pending.popleft().result()


def started(function: Callable[[T], R], item: T) -> "Future[R]":
    """function(item), to be made by a daemon thread."""
    future: Future[R] = Future()

    def work() -> None:
        try:
            future.set_result(function(item))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def reason(error: Exception, *, where: str = STORE) -> str:
    """What to do about a client's error, by its kind. where: what else to check than the network."""
    kind, status = type(error).__name__, getattr(error, "status", None)
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return f"no answer within {timeout():g} s; check the network and {where}, or allow more with {TIMEOUT}"
    if isinstance(error, PermissionError) or "Credentials" in kind or status in (401, 403):
        said = _one_line(error)
        return f"refused ({said}); check the credentials (of S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE)"
    return f"cannot be reached ({_one_line(error)}); check the network and {where}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
