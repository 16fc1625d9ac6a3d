"""Damaged bytes with unchanged times: every reader of ours finds them, and `deepcluster check` finds the rest."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import damage
from deepcluster import artifacts, images, layout
from deepcluster.artifacts.flat_files import is_whole, write_flat
from deepcluster.errors import ArtifactError


@pytest.fixture
def bundled(workspace):
    """The finished run's artifacts as current folder, and a bundle beside them."""
    from bundles import noise_bundle

    from deepcluster.using.bundle import write_bundle

    write_bundle(Path("data/a bundle"), noise_bundle())
    return workspace


def test_bits_flipped_anywhere_are_found_or_do_no_harm(bundled):
    found = list(damage.sampled(70, seed=0))
    assert [each for each in found if each.outcome == "missed"] == []
    assert Counter(each.outcome for each in found)["detected"] > 55
    assert len({each.file for each in found}) > 30


def test_files_cut_short_emptied_or_deleted_are_found(bundled):
    found = list(damage.sampled(70, seed=1, kinds=damage.KINDS[1:]))
    assert [each for each in found if each.outcome == "missed"] == []
    assert Counter(each.outcome for each in found)["detected"] > 55


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("bit flipped",), damage.KINDS[1:]], ids=["flips", "others"])
def test_a_thousand_damages(bundled, kinds):
    assert [each for each in damage.sampled(1000, seed=2, kinds=kinds) if each.outcome == "missed"] == []


def flip(path, old, new):
    """Change text in a file, leaving its size and times as they are."""
    content, found = path.read_text(), path.stat()
    assert old in content
    assert len(old) == len(new)
    path.write_text(content.replace(old, new, 1))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


class TestSmallFiles:
    """Digits that turned into others: valid JSON and CSV, which only a checksum can tell."""

    def test_a_loss(self, tmp_path):
        artifacts.write_json(tmp_path / "train.json", {"loss": 1.25, "accuracy": 0.5})
        assert artifacts.read_json(tmp_path / "train.json", made_by="train@1") == {"loss": 1.25, "accuracy": 0.5}
        flip(tmp_path / "train.json", "1.25", "1.35")
        with pytest.raises(ArtifactError, match=r"train\.json: damaged \(altered\); delete it and run"):
            artifacts.read_json(tmp_path / "train.json", made_by="train@1")

    @pytest.mark.parametrize("content", ["{}", '{"loss": 1.0}'])
    def test_no_digest(self, tmp_path, content):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ArtifactError, match=r"damaged \(no digest: altered, or written by an earlier version\)"):
            artifacts.read_json(tmp_path / "x.json", made_by="train@1")

    def test_a_description_of_a_checkpoint(self, tmp_path):
        provenance = artifacts.Provenance(samples=3, ids="x", epoch=1, seed=7)
        artifacts.write_checkpoint(tmp_path / "c", artifacts.CheckpointFiles({}, {}, {}), provenance)
        artifacts.read_checkpoint(tmp_path / "c", made_by="train@1")
        flip(tmp_path / "c/checkpoint.json", '"seed": 7', '"seed": 5')
        with pytest.raises(ArtifactError, match=r"checkpoint\.json: damaged \(altered\)"):
            artifacts.read_checkpoint(tmp_path / "c", made_by="train@1")
        with pytest.raises(ArtifactError, match=r"checkpoint\.json: damaged \(altered\)"):
            artifacts.read_bank(tmp_path / "c")
        assert artifacts.checkpoint_params(tmp_path / "c") == {}

    def test_a_checkpoint_of_the_version_before(self, tmp_path):
        provenance = artifacts.Provenance(samples=3, ids="x", epoch=1)
        artifacts.write_checkpoint(tmp_path / "c", artifacts.CheckpointFiles({}, {}, {}), provenance)
        flip(tmp_path / "c/checkpoint.json", '"version": 3', '"version": 2')
        with pytest.raises(ArtifactError, match=r"version: expected 3, got 2 \(written by deepcluster 0"):
            artifacts.read_checkpoint(tmp_path / "c", made_by="train@1")

    @pytest.mark.parametrize("name", ["epochs.csv", "lineage.csv"])
    def test_a_table_that_is_not_the_one_of_metrics_json(self, workspace, outcome, name):
        path = layout.EVALUATION / name
        flip(path, "\n2,", "\n1,")
        status, _, err = outcome("report")
        assert (status, err) == (
            2,
            f"error: {path}: damaged (checksum differs); delete it and run `dvc checkout` or `dvc repro`; if it comes "
            "back damaged, `deepcluster check --repair` first\n",
        )

    def test_metadata_of_an_array_that_show_prints(self, workspace, outcome):
        flip(layout.features(1) / "features/zarr.json", "48", "47")
        status, _, err = outcome("show", "features", "--epoch", "1")
        assert status == 2
        assert "features/zarr.json: damaged (missing, cut short or altered)" in err


class TestMappedImages:
    ROWS = np.random.default_rng(0).integers(0, 256, (70, 1, 8, 8), dtype=np.uint8)

    @pytest.mark.parametrize("size", [0, 1, 1000])
    def test_round_trip(self, tmp_path, size, monkeypatch):
        monkeypatch.setattr("deepcluster.artifacts.flat_files.READ_BYTES", 64)
        rows = np.arange(size).astype(np.uint8)
        write_flat(tmp_path / "x.u8", [rows[:300], rows[300:]])
        assert (tmp_path / "x.u8").read_bytes()[:-4] == rows.tobytes()
        assert is_whole(tmp_path / "x.u8", size)
        assert not is_whole(tmp_path / "x.u8", size + 1)
        content = bytearray((tmp_path / "x.u8").read_bytes())
        for position in {0, len(content) // 2, len(content) - 1}:
            content[position] ^= 16
            (tmp_path / "x.u8").write_bytes(content)
            assert not is_whole(tmp_path / "x.u8", size)
            content[position] ^= 16

    def test_a_flipped_bit_is_mended(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
        with artifacts.write_store(layout.IMAGES, "images", artifacts.Provenance(70, "ids")) as writer:
            writer.array("images", self.ROWS, ("sample", "channel", "y", "x"))
        store = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
        np.testing.assert_array_equal(images.open_rows(store), self.ROWS)
        (path,) = layout.DATA.glob(".images-*.u8")
        with damage.damaged(path, "bit flipped", np.random.default_rng(0)):
            np.testing.assert_array_equal(images.open_rows(store), self.ROWS)


class TestCheck:
    """`deepcluster check`, on a project whose cache it can read without any stage running."""

    def test_nothing_is_wrong(self, project, outcome, monkeypatch):
        monkeypatch.chdir(project.root)
        status, out, _ = outcome("check")
        assert status == 0
        assert out.endswith("cached files: all as saved\n")
        assert out.startswith("27 artifacts, ")

    def test_a_flipped_bit_that_dvc_does_not_see(self, project, outcome, monkeypatch):
        monkeypatch.chdir(project.root)
        path = layout.features(1)
        with damage.damaged(path / "features/c/0/0", "bit flipped", np.random.default_rng(0)):
            status, out, err = outcome("check")
            assert (status, out) == (2, "")
            (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
            assert line == (
                f"error: {path}: damaged (not what dvc.lock says); delete it with `deepcluster check --repair`; the "
                "next `deepcluster run` or `dvc repro` restores or makes it anew"
            )

    def test_repair_deletes_artifact_and_cached_file(self, project, outcome, monkeypatch):
        monkeypatch.chdir(project.root)
        cached = next(path for path in Path(".dvc/cache/files/md5").glob("??/*") if path.stat().st_size > 10_000)
        for path in (cached, layout.REPORT):
            content = bytearray(path.read_bytes())
            content[20] ^= 1
            path.unlink()
            path.write_bytes(content)
            path.chmod(0o444)  # as DVC leaves them: it takes them for whole
        status, out, _ = outcome("check", "--repair")
        assert status == 0
        assert out.splitlines()[:2] == [
            f"deleted: {layout.REPORT} (not what dvc.lock says)",
            f"deleted: {cached.resolve()} (its name says another hash)",
        ]
        assert out.splitlines()[2].endswith(": the others are as they were saved")
        assert not cached.exists()
        assert not layout.REPORT.exists()
        assert outcome("check")[0] == 0

    def test_outside_of_a_project(self, tmp_path, outcome, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, _, err = outcome("check")
        assert (status, err) == (
            2,
            "error: params.yaml: not found; run this in the project's folder, the one with dvc.yaml\n",
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("command", [("dvc", "repro"), ("deepcluster", "run")])
    @pytest.mark.parametrize("in_cache", [False, True])
    def test_after_repair_the_same_command_ends_with_the_undisturbed_bytes(self, project, command, in_cache):
        assert project.repro() == []  # so that DVC knows the copied files by their times
        before = project.digests()
        path = project.root / layout.features(2) / "features/c/0/0"
        content = path.read_bytes()
        places = [path]
        if in_cache:
            cache = project.root / ".dvc/cache/files/md5"
            places += [file for file in cache.glob("??/*") if file.read_bytes() == content]
            assert len(places) == 2
        for place in places:
            place.chmod(0o644)
            flipped = bytearray(content)
            flipped[77] ^= 2
            times = place.stat()
            place.write_bytes(flipped)
            os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
            if place != path:
                place.chmod(0o444)
        assert project.repro() == []  # nor does it see what happened to them
        found = project.run("deepcluster", "pca", "--epoch", "2", status=2)
        assert "error: data/epochs/2/features.zarr/features: damaged (c/0/0: checksum differs); " in found.stderr
        project.run("deepcluster", "check", status=2)
        project.run("deepcluster", "check", "--repair")
        project.run(*command)
        assert project.digests() == before
        project.run("deepcluster", "check")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"schema: '2.0'\nstages:\n  a:\n    outs:\n    - hash: md4\n", "damaged (hash: expected md5, got 'md4')"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_lock_that_dvc_fails_on_without_a_word(workspace, outcome, content, reason):
    Path("dvc.lock").write_bytes(content)
    status, _, err = outcome("run")
    assert status == 2
    assert err == (
        f"error: dvc.lock: {reason}; run `git checkout dvc.lock`, or delete it: DVC finds again in its run-cache what "
        "was run\n"
    )


def test_the_remedy_of_a_schedule_that_is_no_text_works(workspace, outcome):
    before = layout.SCHEDULE.read_bytes()
    layout.SCHEDULE.write_bytes(b"\xff" + before[1:])
    assert outcome("plan")[0] == 0
    assert layout.SCHEDULE.read_bytes() == before
