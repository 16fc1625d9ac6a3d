"""What killed processes had written of a store, cut back to what can be trusted."""

from collections.abc import Callable
from pathlib import Path

from deepcluster.artifacts.publish import remove
from deepcluster.artifacts.shards import METADATA, PlainRows, plain_rows


def keep_intact(store: Path, name: str, progress: Callable[[int, int], None] | None = None) -> list[slice] | None:
    """What is left to write of an array in an unfinished store: rows of its shards, in order, none of them empty.

    Whatever else lies in the store is removed. All of it is read: of a whole shard with its index nothing is left, of
    another what follows the chunks whose checksums fit, less one; if all are whole, the last chunk. None, and no store,
    where nothing is kept, or the array's metadata are missing or not those of `PlainRows`; they are written anew in any
    case, and stay until then. `progress` is told (rows checked, rows in total).
    """
    found, chunks = _intact(store / name, progress)
    if found is None or not any(chunks):
        remove(store)
        return None
    files = {found.cut(shard, count) for shard, count in enumerate(chunks)} | {found.folder / METADATA}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path not in files:
            path.unlink()
    starts = [rows.start + count * found.chunk_rows for rows, count in zip(found.shards, chunks, strict=True)]
    left = [slice(start, rows.stop) for start, rows in zip(starts, found.shards, strict=True)]
    return [rows for rows in left if rows.start < rows.stop]


def _intact(folder: Path, progress: Callable[[int, int], None] | None) -> tuple[PlainRows | None, list[int]]:
    """The array, and how many chunks to keep of each shard: never all of them."""
    try:
        found = plain_rows(folder)
        chunks = found.intact(progress) if found else []
    except Exception:  # metadata that are missing or damaged can lead to anything; then nothing is kept
        return None, []
    if found and all(count == found.chunks_of(shard) for shard, count in enumerate(chunks)):
        chunks[-1] -= 1
    return found, chunks
