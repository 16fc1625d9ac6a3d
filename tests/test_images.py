"""Images in memory or mapped from a flat file: the same bytes, and a file that is never stale."""

import errno
import os

import numpy as np
import pytest

from deepcluster import artifacts, images, memory
from deepcluster.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)


def store(pixels=PIXELS):
    target = images.layout.IMAGES
    with artifacts.write_store(target, "images", artifacts.Provenance(len(pixels), "ids")) as writer:
        writer.array("images", pixels, ("sample", "channel", "y", "x"))
    return artifacts.open_store(target, "images", made_by="prepare")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPCLUSTER_MEMORY_SHARE", raising=False)


def flat_files():
    return sorted(path.name for path in images.layout.DATA.glob(".images-*"))


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_small_collections_are_read_into_memory():
    found = images.open_rows(store())
    np.testing.assert_array_equal(found, PIXELS)
    assert not is_mapped(found)
    assert flat_files() == []


def test_beyond_the_share_the_same_rows_come_from_a_mapped_file(monkeypatch):
    monkeypatch.setattr(images, "_rows_at_once", lambda opened: 32)
    monkeypatch.setattr(images, "available_memory", lambda: PIXELS.nbytes * 2 - 1)
    found = images.open_rows(store())
    assert is_mapped(found)
    np.testing.assert_array_equal(found, PIXELS)
    np.testing.assert_array_equal(found[[69, 0, 3]], PIXELS[[69, 0, 3]])
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
    assert len(flat_files()) == 1


def test_the_file_is_used_again_and_made_anew_for_other_images(monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
    images.open_rows(store())
    (name,) = flat_files()
    written = os.stat(images.layout.DATA / name).st_mtime_ns
    images.open_rows(artifacts.open_store(images.layout.IMAGES, "images", made_by="prepare"))
    assert os.stat(images.layout.DATA / name).st_mtime_ns == written
    other = PIXELS[::-1].copy()  # the same shape, so the same sizes
    np.testing.assert_array_equal(images.open_rows(store(other)), other)
    (renewed,) = flat_files()
    assert renewed != name


def test_a_file_cut_short_is_written_again(monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
    opened = store()
    images.open_rows(opened)
    (name,) = flat_files()
    os.truncate(images.layout.DATA / name, 100)
    np.testing.assert_array_equal(images.open_rows(opened), PIXELS)


@pytest.mark.parametrize("text", ["half", "-0.1", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", text)
    with pytest.raises(UserError, match=r"^DEEPCLUSTER_MEMORY_SHARE: must be a number from 0 to 1; got '"):
        images.open_rows(store())


def test_a_full_disk_is_told_with_the_remedy_and_leaves_nothing(monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
    opened = store()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.Store, "blocks", full)
    with pytest.raises(UserError, match="No space left on device; free disk space, or raise DEEPCLUSTER_MEMORY_SHARE"):
        images.open_rows(opened)
    assert flat_files() == []


def test_memory_that_a_container_leaves(tmp_path):
    assert memory._container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 500\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._container_memory(tmp_path) == 700
    (tmp_path / "memory.max").write_text("200\n")
    assert memory._container_memory(tmp_path) == 0
    assert memory.available_memory() > 0
