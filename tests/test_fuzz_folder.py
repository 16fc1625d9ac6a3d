"""Image folders: random trees of good and bad files, of links and odd names, read as `datasets.folder` promises."""

import functools
import io
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
from fuzzing import REFUSED, edited, outcomes
from hypothesis import strategies as st
from PIL import Image

from deepcluster.datasets import load_dataset
from deepcluster.datasets.decoding import decode, strict_pillow
from deepcluster.errors import DataError

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "RGB", "CMYK", "I;16", "F", "LAB"),
    "PPM": ("1", "L", "RGB"),
}
PICTURES = [(kind, mode) for kind, modes in FORMATS.items() for mode in modes]
ENDINGS = (".png", ".PNG", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".txt", "")
FOLDERS = ("", "a", "b", "a/b", "train", "train/a", ".hidden", "x.png", "ü ö")
STEMS = (b"1", b"2", b".3", b"new\nline", b"\xff", b"=cmd()", "\u202etxt".encode(), b"a b", b"-x")


@functools.cache
def picture(kind: str, mode: str, width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    match mode:
        case "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        case "F":
            image = Image.fromarray(pixels[..., 0].astype(np.float32))
        case "LAB":
            image = Image.merge("LAB", image.split())
        case _:
            image = image.convert(mode)
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Pictures of 8x8 and of other sizes, whole, edited or cut; empty files and noise."""
    kind, mode = draw(st.sampled_from(PICTURES))
    size = draw(st.sampled_from([(8, 8), (8, 8), (8, 8), (9, 9), (1, 1), (3, 11), (300, 2)]))
    whole = st.just(picture(kind, mode, *size))
    return draw(st.one_of(whole, whole, whole, whole, edited(whole), st.just(b""), st.binary(max_size=30)))


LINKS = ("inside", "outside", "broken", "loop", "folder", "parent", "fifo")
ENTRIES = st.tuples(
    st.sampled_from(FOLDERS),
    st.sampled_from(STEMS),
    st.sampled_from(ENDINGS),
    st.one_of(contents(), contents(), contents(), st.sampled_from(LINKS)),
)
SETTINGS = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["train", "train", "all", "a", "", "none", "..", "x.png"]),
        "image_size": st.sampled_from([None, 8, 8, 16]),
        "grayscale": st.booleans(),
        "max_unreadable": st.sampled_from([0.0, 0.5, 0.9]),
    }
)


def lay(root: Path, outside: Path, folder: str, name: bytes, content: bytes | str) -> None:
    """Put one entry into the tree, unless something of that name is there or on the way."""
    path = os.path.join(os.fsencode(root), folder.encode(), name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        match content:
            case bytes():
                with open(path, "xb") as file:
                    file.write(content)
            case "inside":
                os.symlink(os.path.join(os.fsencode(root), b"1.png"), path)
            case "outside":
                os.symlink(outside / "secret.png", path)
            case "broken":
                os.symlink("nowhere.png", path)
            case "loop":
                os.symlink(os.path.basename(path) or b".", path)
            case "folder":
                os.symlink(outside, path)
            case "parent":
                os.symlink("..", path)
            case "fifo":
                os.mkfifo(path)
    except (FileExistsError, NotADirectoryError):
        pass


def test_any_tree(tmp_path):
    number = itertools.count()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture("PNG", "L", 8, 8))

    def act(given: tuple[list[tuple[str, bytes, str, bytes | str]], dict]) -> str:
        entries, chosen = given
        root = tmp_path / str(next(number))
        root.mkdir()
        try:
            for folder, stem, ending, content in entries:
                lay(root, outside, folder, stem + ending.encode(), content)
            found = load_dataset("folder", root=root, **chosen)
            check(found, root, chosen)
            return "read, some left out" if found.skipped else "read"
        except DataError as error:
            assert str(root) in str(error)
            raise
        finally:
            shutil.rmtree(root)

    counts = outcomes("folders", st.tuples(st.lists(ENTRIES, max_size=8), SETTINGS), act, quick=50)
    assert counts["read"] >= counts.total() // 20, counts
    assert counts[REFUSED] >= counts.total() // 20, counts


def check(found, root: Path, chosen: dict) -> None:
    count, channels, height, width = found.images_NCHW.shape
    assert channels == (1 if chosen["grayscale"] else 3)
    assert height == width == (chosen["image_size"] or height)
    assert count == len(found.sample_ids) > 0
    assert found.sample_ids == sorted(set(found.sample_ids))
    assert all(": " in line and "\n" not in line.partition(": ")[2] for line in found.skipped)
    left_out = {line.partition(": ")[0] for line in found.skipped}
    assert not left_out & set(found.sample_ids)
    assert len(left_out) <= chosen["max_unreadable"] * (count + len(left_out))
    for sample_id, image in zip(found.sample_ids, found.images_NCHW, strict=True):
        path = root / sample_id
        assert path.resolve().is_relative_to(root.resolve())
        assert not any(part.startswith(".") for part in Path(sample_id).parts)
        with strict_pillow():
            assert (decode(path, width, channels) == image).all()
    if found.targets_N is not None:
        assert len(set(found.targets_N.tolist())) == len(found.class_names) >= 2
