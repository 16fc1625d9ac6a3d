"""Image files and folders on a command line, decoded some at a time, as a folder data set reads them.

Shapes: B images of a block, C channels, S pixels a side.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepcluster.datasets.decoding import decode_files, strict_pillow
from deepcluster.datasets.folder import EXTENSIONS, list_images
from deepcluster.errors import DataError
from deepcluster.progress import Report
from deepcluster.using.bundle import Preprocessing

_FILES_AT_ONCE = 1024
MISSING = "no such file or folder"


@dataclass(frozen=True)
class Files:
    """names: paths as they can be opened from here, in order. refused: by name, why those are not opened.

    missing: those of them that were named and are not there.
    """

    names: list[str]
    refused: dict[str, str]
    missing: list[str]


def list_files(arguments: Sequence[Path], *, follow_links: bool = False) -> Files:
    """Every file named, whatever it is called, and of every folder the images in it, at any depth (`datasets.folder`).

    What is named may be a link; those in a folder are followed out of it with `follow_links` only.

    DataError if none of the arguments is there, which lists them, and for the first folder without an image.
    """
    missing = [_printable(path) for path in arguments if not os.path.exists(path)]
    if len(missing) == len(arguments):
        raise DataError("\n".join(f"{name}: {MISSING}" for name in missing))
    names: list[str] = []
    refused = dict.fromkeys(missing, MISSING)
    for path in arguments:
        if path.is_dir():
            listed, problems = list_images(path, path, follow_links=follow_links)
            if not listed and not problems:
                raise DataError(f"{path}: holds no images ({' '.join(EXTENSIONS)})")
            found = dict.fromkeys(listed, "") | problems
            for name in sorted(found):
                names.append(str(path / name))
                refused |= {names[-1]: found[name]} if found[name] else {}
        else:
            names.append(_printable(path))
            if names[-1] not in refused and (problem := _problem(path)):
                refused[names[-1]] = problem
    return Files(names, refused, missing)


def decoded(
    files: Files, preprocessing: Preprocessing, failures: dict[str, str], report: Report
) -> Iterator[NDArray[np.uint8]]:
    """Blocks uint8 [B, C, S, S] of the files that can be read, in order; the others' reasons go into `failures`."""
    failures |= files.refused
    total = len(files.names)
    with strict_pillow():
        for start in range(0, total, _FILES_AT_ONCE):
            listed = [name for name in files.names[start : start + _FILES_AT_ONCE] if name not in files.refused]
            images_BCHW, broken = decode_files(
                Path(),
                listed,
                side=preprocessing.image_size,
                channels=preprocessing.channels,
                crop=preprocessing.crop,
                progress=lambda done, _, before=start: report(before + done, total),  # type: ignore[misc]
            )
            failures |= broken
            report(min(start + _FILES_AT_ONCE, total), total)
            if len(broken) < len(listed):
                yield images_BCHW[[name not in broken for name in listed]]


def shown(name: str) -> str:
    """A file's name for a terminal: what is not printable, such as the start of an escape sequence, as \\x1b."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _problem(path: Path) -> str:
    """Why a file that was named must not be opened, or an empty string."""
    if not path.is_file():
        return "not a regular file"
    return "" if _printable(path) == str(path) else "name is not UTF-8"


def _printable(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()  # as `list_images` has it
