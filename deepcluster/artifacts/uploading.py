"""Artifacts of the workspace to the folder behind a URL, so that a reader there finds each one whole or not at all.

What says that an artifact is there, zarr.json or checkpoint.json, goes last; if another one is there already it is
taken away first. A store of whole objects, as S3, publishes each of them in one step. Beside it lies a receipt, the
sha256 of all that was sent, by which a second upload, and a copy of the images made from it, know what is there.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepcluster.artifacts import safetensors_files, store
from deepcluster.artifacts.provenance import damaged
from deepcluster.artifacts.refusals import replaced
from deepcluster.artifacts.remote import RECEIPT, Remote, ahead
from deepcluster.artifacts.shards import METADATA

DESCRIPTIONS = (METADATA, safetensors_files.DESCRIPTION)


@dataclass(frozen=True)
class Sent:
    """One artifact: where it lies in the project, its files in the order of sending, and their bytes."""

    path: Path
    files: tuple[str, ...]
    size: int

    @property
    def description(self) -> str:
        """The file that goes last; of an artifact of one file, that."""
        return self.files[-1]


def plan_upload(path: Path) -> Sent:
    """The artifact at a path; ArtifactError if it is damaged, so far as sizes and checksums of descriptions tell."""
    if path.is_file():
        return Sent(path.parent, (path.name,), path.stat().st_size)
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    last = next((name for name in DESCRIPTIONS if name in names), None)
    if last is None:
        raise damaged(path, f"it has neither {' nor '.join(DESCRIPTIONS)}")
    store.check_files(path) if last == METADATA else safetensors_files.check_files(path)
    files = (*(name for name in names if name != last), last)
    return Sent(path, files, sum((path / name).stat().st_size for name in files))


def send(planned: Sent, remote: Remote, *, force: bool) -> Iterator[int]:
    """Yields bytes as they have arrived; nothing if the same artifact is there already and `force` is not given.

    ArtifactError, and no artifact there, if another one takes the place of this one meanwhile.
    """
    receipt = f"{planned.description}{RECEIPT}"
    digests = _digests(planned)
    digest = (
        hashlib.sha256("".join(f"{name}:{digests[name]}\n" for name in planned.files).encode()).hexdigest().encode()
    )
    before = remote.read_or_none(receipt)
    if before == digest and not force:
        return
    if before is not None:
        remote.remove(receipt)  # first, so that what breaks off is never taken for what was there
    if len(planned.files) > 1 and remote.read_or_none(planned.description) is not None:
        remote.remove(planned.description)

    def put(name: str) -> int:
        with _unreplaced(planned):
            content = (planned.path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise replaced(planned.path)
        remote.write(name, content)
        return len(content)

    yield from ahead(put, planned.files[:-1])
    yield put(planned.description)
    remote.write(receipt, digest)


def _digests(planned: Sent) -> dict[str, str]:
    """sha256 (hex) of each file. A store's description is not enough: it has the sizes of shards alone."""
    digests = {}
    for name in planned.files:
        with _unreplaced(planned), (planned.path / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@contextmanager
def _unreplaced(planned: Sent) -> Iterator[None]:
    """A file that has gone since they were looked at went with its artifact."""
    try:
        yield
    except FileNotFoundError:
        raise replaced(planned.path) from None
