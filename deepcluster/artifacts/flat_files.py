"""Rows as nothing but their bytes, to be mapped; behind them their crc32c, since no reader of a map would notice."""

from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np

from deepcluster.artifacts.publish import publishing
from deepcluster.artifacts.shards import Array

CHECKSUM_BYTES = 4
READ_BYTES = 8 << 20


def write_flat(target: Path, blocks: Iterable[Array]) -> None:
    """Publish the bytes of the blocks, one after the other, and their checksum."""
    checksum = 0
    with publishing(target) as partial, partial.open("wb") as file:
        for block in blocks:
            content = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            checksum = google_crc32c.extend(checksum, content)
            file.write(content.data)
        file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))


def is_whole(path: Path, size: int) -> bool:
    """Whether `path` holds `size` bytes and their checksum; reads all of them."""
    if not path.exists() or path.stat().st_size != size + CHECKSUM_BYTES:
        return False
    buffer, checksum, left = memoryview(bytearray(min(READ_BYTES, max(1, size)))), 0, size
    with path.open("rb") as file:
        while left and (count := file.readinto(buffer[: min(len(buffer), left)])):
            checksum, left = google_crc32c.extend(checksum, np.frombuffer(buffer[:count], np.uint8)), left - count
        return left == 0 and file.read() == checksum.to_bytes(CHECKSUM_BYTES, "little")
