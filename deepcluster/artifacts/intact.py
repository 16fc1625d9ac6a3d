"""What a killed process had written of a store, cut back to what can be trusted."""

from collections.abc import Callable
from pathlib import Path

from deepcluster.artifacts.publish import remove
from deepcluster.artifacts.shards import METADATA, PlainRows, plain_rows


def keep_intact(store: Path, name: str, progress: Callable[[int, int], None] | None = None) -> int:
    """How many rows, from the first on, an unfinished store holds of an array; whatever else lies in it is removed.

    Every chunk up to the first whose checksum differs is read, and the index of every whole shard. The last good chunk
    is given up too, so that one is left to write, and with it its shard's index. 0, and no store, where the array's
    metadata are missing or not those of `PlainRows`; they are written anew in any case, and stay until then.
    `progress` is told (rows checked, rows in total).
    """
    found, chunks = _intact(store / name, progress)
    if found is None or chunks < 2:
        remove(store)
        return 0
    kept = found.cut_after(chunks - 1) | {found.folder / METADATA}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path not in kept:
            path.unlink()
    return (chunks - 1) * found.chunk_rows


def _intact(folder: Path, progress: Callable[[int, int], None] | None) -> tuple[PlainRows | None, int]:
    try:
        found = plain_rows(folder)
        return found, found.intact(progress) if found else 0
    except Exception:  # metadata that are missing or damaged can lead to anything; then nothing is kept
        return None, 0
