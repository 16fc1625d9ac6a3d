"""Stores, wherever they lie: in the project, or else in DEEPCLUSTER_STORE."""

from pathlib import Path

from deepcluster.artifacts import store
from deepcluster.artifacts.remote import elsewhere
from deepcluster.artifacts.remote_store import open_remote
from deepcluster.artifacts.store import Store
from deepcluster.errors import ArtifactError


def open_store(path: Path, schema: str, *, made_by: str, ids: str | None = None, epoch: int | None = None) -> Store:
    """Open the store at `path`, refusing one that is missing, damaged, of another kind, data set or epoch.

    One that is not there is looked for in DEEPCLUSTER_STORE, where that is set. `made_by` names the DVC stage that
    writes it, for the remedy in the message.
    """
    remote = None if path.exists() else elsewhere(path)
    if remote is None:
        return store.open_store(path, schema, made_by=made_by, ids=ids, epoch=epoch)
    found = open_remote(remote, path, schema, made_by=made_by, ids=ids, epoch=epoch)
    if found is None:
        raise ArtifactError(f"{path}: not found, nor is there {remote.url}; run `dvc repro {made_by}`")
    return found
