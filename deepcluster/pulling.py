"""`deepcluster run --pull`: what DVC's remote has of the stages to run, brought into the cache in two sweeps.

DVC itself pulls stage by stage, and waits for a remote that has gone silent for as long as that one's client does, many
times over. Here the work is given up when nothing arrives for DEEPCLUSTER_STORE_TIMEOUT seconds (60).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from deepcluster.artifacts.remote import reason, started, timeout
from deepcluster.errors import RemoteError, UserError
from deepcluster.references import contents

T = TypeVar("T")
_PATIENT = ("s3", "http", "https")  # clients that have such settings
_LOOK_SECONDS = 0.1


def pull(repo: Any, outputs: Iterable[Any]) -> int:
    """Bring DVC's run-cache and the `outputs` (of `dvc.output.Output`) into the cache; the number of files that came.

    What the remote does not have is left out: stages make it. UserError without a remote; RemoteError where it refuses,
    stalls or cannot be reached, and where files of it did not come, which would else be made at great cost.
    """
    name = repo.config["core"].get("remote")
    if not name:
        raise UserError("--pull: no remote to pull from; `dvc remote add -d NAME URL` names one")
    url = repo.config["remote"][name]["url"]
    with _patience(repo, url, name), _said(url):
        remote = repo.cloud.get_remote_odb(None, "fetch")
        if url.startswith("/") and not Path(url).is_dir():
            raise RemoteError(f"{url}: not found; is the disk that has DVC's remote {name!r} there?")
        return _watched(lambda seen: _sweeps(repo, remote, outputs, seen))


def _sweeps(repo: Any, remote: Any, outputs: Iterable[Any], seen: Callable[[], None]) -> int:
    """Folders' own objects first, which say what files they have. seen: to be called when something arrives."""
    from dvc_data.hashfile.hash_info import HashInfo

    if hasattr(remote.fs.fs, "retries"):
        remote.fs.fs.retries = 1
    came = _pull_run_cache(repo, seen)
    wanted = {out.hash_info for out in outputs if out.use_cache and out.hash_info and out.hash_info.name == "md5"}
    cache = repo.cache.local
    came += _transfer(repo, remote, {each for each in wanted if each.isdir}, seen)
    inside = {md5 for each in wanted for md5 in contents(Path(cache.path), each.value)}
    return came + _transfer(repo, remote, wanted | {HashInfo("md5", md5) for md5 in inside}, seen)


def _transfer(repo: Any, remote: Any, objects: set[Any], seen: Callable[[], None]) -> int:
    from fsspec.callbacks import Callback

    class Seen(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            seen()

        def branched(self, path_1: str, path_2: str, **kwargs: Any) -> "Seen":
            return Seen()

    cache = repo.cache.local
    missing = {each for each in objects if not cache.exists(each.value)}
    if not missing:
        return 0
    found = repo.cloud.transfer(remote, cache, missing, cache_odb=cache, verify=remote.verify, callback=Seen())
    if found.failed:
        raise RemoteError(f"{len(found.failed)} files did not come, as said above")
    return len(found.transferred)


def _pull_run_cache(repo: Any, seen: Callable[[], None]) -> int:
    """Entries that are not here yet: as `dvc fetch --run-cache`, which copies all each time. HTTP remotes have none."""
    from dvc_objects.fs.generic import copy

    remote, cache = repo.cloud.get_remote_odb(None, "fetch", hash_name="md5-dos2unix"), repo.cache.legacy
    if str(remote.fs.protocol).startswith("http"):
        return 0
    runs, came = remote.fs.join(remote.path, "runs"), 0
    for source in remote.fs.find(runs) if remote.fs.exists(runs) else ():
        target = cache.fs.join(cache.path, remote.fs.relpath(source, remote.path))
        seen()
        if not cache.fs.exists(target):
            copy(remote.fs, source, cache.fs, target)
            came += 1
    return came


@contextmanager
def _patience(repo: Any, url: str, name: str) -> Iterator[None]:
    """Clients give up after the time-out, and try once: unless the remote's own settings, or AWS's, say otherwise."""
    if url.partition("://")[0] in _PATIENT:
        for key in ("connect_timeout", "read_timeout"):
            repo.config["remote"][name].setdefault(key, timeout())
    ours = "AWS_MAX_ATTEMPTS" not in os.environ
    if ours:
        os.environ["AWS_MAX_ATTEMPTS"] = "1"
    try:
        yield
    finally:
        if ours:
            del os.environ["AWS_MAX_ATTEMPTS"]


def _watched(work: Callable[[Callable[[], None]], T]) -> T:
    """The result of `work`, which runs in a thread; TimeoutError once it has seen nothing arrive for the time-out."""
    last = [time.monotonic()]

    def seen(_: object = None) -> None:
        last[0] = time.monotonic()

    future, limit = started(work, seen), timeout()
    while not future.done():
        if time.monotonic() - last[0] > limit:
            raise TimeoutError
        time.sleep(_LOOK_SECONDS)
    return future.result()


@contextmanager
def _said(url: str) -> Iterator[None]:
    """Whatever a client raises, as one line."""
    try:
        yield
    except (MemoryError, UserError) as error:
        if type(error) is RemoteError and not str(error).startswith(url):
            raise RemoteError(f"{url}: {error}") from error
        raise
    except Exception as error:  # clients raise what they like
        said = reason(error, where="`dvc remote list`")
        raise RemoteError(f"{url}: {said}") from error
