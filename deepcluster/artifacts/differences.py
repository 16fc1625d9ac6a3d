"""Two copies of an artifact compared: byte by byte, and where they differ by arrays, keys and lines, in words."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.artifacts.shards import Array

CHUNK = 1 << 20
OF_THE_BYTES = ("digest", "files")  # attributes that follow from the rest
CHECKSUMS = "sha256"  # of a checkpoint's files
SHOWN = 60

Rows = Callable[[int, int], Array]


@dataclass(frozen=True)
class Difference:
    """What differs. place: an array, key or line, after its file's name; largest: of the numbers there, if they are."""

    place: str
    what: str
    largest: float | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    step: int
    rows: Rows


def differences(recorded: Path, made: Path) -> list[Difference]:
    """What differs between two files, or folders: empty if they have the same files with the same bytes."""
    differing = [name for name in sorted(_files(recorded) | _files(made)) if not _same(recorded / name, made / name)]
    if not differing:
        return []
    if (recorded / "zarr.json").is_file() and (made / "zarr.json").is_file():
        return _explained(_of_stores, recorded, made) or [Difference(name, "the bytes differ") for name in differing]
    return [found for name in differing for found in _of_files(name, recorded / name, made / name)]


def _files(path: Path) -> set[str]:
    """Names below a folder; of a file, which has none, the empty one."""
    if path.is_file():
        return {""}
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def _same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while content := first.read(CHUNK):
            if content != second.read(CHUNK):
                return False
    return True


def _of_files(name: str, recorded: Path, made: Path) -> list[Difference]:
    if not recorded.is_file() or not made.is_file():
        return [Difference(name, "made only now" if made.is_file() else "recorded, but not made now")]
    match recorded.suffix:
        case ".safetensors":
            explain = _of_tensors
        case ".json":
            explain = _of_json
        case _:
            explain = _of_lines
    inside = _explained(explain, recorded, made) or [Difference("", "the bytes differ")]
    return [Difference(": ".join(filter(None, (name, each.place))), each.what, each.largest) for each in inside]


def _explained(explain: Callable[[Path, Path], Iterator[Difference]], recorded: Path, made: Path) -> list[Difference]:
    try:
        return list(explain(recorded, made))
    except Exception as error:  # a damaged file: its readers raise nearly everything
        return [Difference("", f"the bytes differ, and cannot be read ({' '.join(str(error).split())})")]


def _of_stores(recorded: Path, made: Path) -> Iterator[Difference]:
    import zarr

    groups = [zarr.open_group(path, mode="r", zarr_format=3) for path in (recorded, made)]
    first, second = ({name: _of_zarr(array) for name, array in group.arrays()} for group in groups)
    yield from _of_arrays(first, second)
    ours, theirs = ({k: v for k, v in dict(group.attrs).items() if k not in OF_THE_BYTES} for group in groups)
    yield from _of_values(ours, theirs)


def _of_zarr(array: Any) -> _Array:
    step = int((array.shards or array.chunks)[0])
    return _Array(
        tuple(map(int, array.shape)), np.dtype(array.dtype), step, lambda start, stop: np.asarray(array[start:stop])
    )


def _of_tensors(recorded: Path, made: Path) -> Iterator[Difference]:
    from safetensors.numpy import load_file

    first, second = ({name: _of_tensor(array) for name, array in load_file(path).items()} for path in (recorded, made))
    yield from _of_arrays(first, second)


def _of_tensor(array: Array) -> _Array:
    rows = np.atleast_1d(array)
    return _Array(array.shape, array.dtype, max(1, len(rows)), lambda start, stop: rows[start:stop])


def _of_arrays(recorded: Mapping[str, _Array], made: Mapping[str, _Array]) -> Iterator[Difference]:
    for name in sorted(recorded.keys() | made.keys()):
        if name not in made or name not in recorded:
            yield Difference(name, "made only now" if name in made else "recorded, but not made now")
        elif (kinds := [(each.shape, str(each.dtype)) for each in (recorded[name], made[name])])[0] != kinds[1]:
            (shape, dtype), (now, dtype_now) = kinds
            yield Difference(name, f"was {dtype} {list(shape)}, now {dtype_now} {list(now)}")
        elif found := _of_numbers(name, recorded[name], made[name]):
            yield found


def _of_numbers(name: str, recorded: _Array, made: _Array) -> Difference | None:
    """How many values of two arrays of one shape differ, and by how much at most; None if none does."""
    count, largest, scale = 0, 0.0, 0.0
    for start in range(0, recorded.shape[0] if recorded.shape else 1, recorded.step):
        before, now = recorded.rows(start, start + recorded.step), made.rows(start, start + recorded.step)
        unequal = (before != now) & ~((before != before) & (now != now))  # NaN beside NaN is no difference
        count += int(unequal.sum())
        with np.errstate(all="ignore"):
            gaps = np.abs(np.subtract(before[unequal], now[unequal], dtype=np.float64))
            largest = max(largest, float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0)))
            scale = max(scale, float(np.nan_to_num(np.abs(before.astype(np.float64)), posinf=0.0).max(initial=0.0)))
    if not count:
        return None
    total = int(np.prod(recorded.shape))
    what = f"{count:,} of {total:,} values differ, by up to {largest:.3g} (values up to {scale:.3g})"
    return Difference(name, what, largest)


def _of_json(recorded: Path, made: Path) -> Iterator[Difference]:
    ours, theirs = (json.loads(path.read_text(encoding="utf-8")) for path in (recorded, made))
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        yield from _of_values(ours, theirs)
        return
    sums, sums_now = ours.pop(CHECKSUMS, None), theirs.pop(CHECKSUMS, None)
    found = list(_of_values(ours, theirs))
    if not found and sums != sums_now:
        found = [Difference(CHECKSUMS, "as the files beside it, which differ")]
    yield from found


def _of_values(recorded: Any, made: Any, key: str = "") -> Iterator[Difference]:
    """Where two trees of plain values differ, by dotted keys; lists count as one value."""
    if isinstance(recorded, dict) and isinstance(made, dict):
        for name in sorted(recorded.keys() | made.keys()):
            yield from _of_values(recorded.get(name), made.get(name), f"{key}.{name}" if key else name)
    elif json.dumps(recorded) != json.dumps(made):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, made))
        yield Difference(key, f"was {_short(recorded)}, now {_short(made)}", abs(recorded - made) if numbers else None)


def _of_lines(recorded: Path, made: Path) -> Iterator[Difference]:
    """The first line that differs."""
    with recorded.open("rb") as first, made.open("rb") as second:
        for number, (before, now) in enumerate(zip_longest(first, second, fillvalue=b""), 1):
            if before != now:
                was, is_now = (_short(line.decode(errors="replace").rstrip("\r\n")) for line in (before, now))
                yield Difference(f"line {number:,}", f"was {was}, now {is_now}")
                return


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
