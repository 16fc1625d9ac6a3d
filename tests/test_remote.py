"""Artifacts behind a URL: the same rows as on the disk, from S3 and from HTTP; one clear line for what goes wrong."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from remotes import BUCKET, KEYS, closed_port, http_server, s3_server, silent_server

from deepcluster import artifacts, images, layout
from deepcluster.artifacts import remote, shards, store
from deepcluster.artifacts.provenance import digest_of
from deepcluster.artifacts.store import _fingerprint
from deepcluster.errors import ArtifactError, RemoteError, UserError
from deepcluster.resuming import Key

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 3, 8, 8), dtype=np.uint8)
FEATURES = np.random.default_rng(1).standard_normal((50, 40), dtype=np.float32)
NAMED = ["sample", "sample a", "ü"]


@pytest.fixture(scope="module")
def s3():
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        own_keys(patch, address)
        yield address
    remote.filesystem.cache_clear()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The folder of a project with a few artifacts: several chunks in a shard, several shards in an array."""
    root = tmp_path_factory.mktemp("a project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small(patch)
        Path("params.yaml").touch()
        write()
    return root


@pytest.fixture(scope="module")
def uploaded(original, s3):
    """The URL behind which S3 has all of it. Never change that."""
    from deepcluster.upload import upload

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(original)
        small(patch)
        own_keys(patch, s3)
        patch.setenv("DEEPCLUSTER_STORE", f"s3://{BUCKET}/up loaded/")
        upload([], force=False)
    return f"s3://{BUCKET}/up loaded"


@pytest.fixture(autouse=True)
def _own_project(original, s3, tmp_path, monkeypatch):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    small(monkeypatch)
    for name in ("DEEPCLUSTER_MEMORY_SHARE", "DEEPCLUSTER_STORE", "DEEPCLUSTER_STORE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    own_keys(monkeypatch, s3)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """DEEPCLUSTER_STORE is an empty prefix of its own in the bucket."""
    monkeypatch.setenv("DEEPCLUSTER_STORE", f"s3://{BUCKET}/{tmp_path.name}/")
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture(params=["s3", "http"])
def moved(request, uploaded, tmp_path, monkeypatch):
    """The artifacts are no longer in the project, but behind a URL."""
    shutil.move("data", tmp_path / "served place/data")
    if request.param == "s3":
        monkeypatch.setenv("DEEPCLUSTER_STORE", uploaded)
        yield uploaded
        return
    with http_server(tmp_path / "served place") as address:
        monkeypatch.setenv("DEEPCLUSTER_STORE", address)
        yield address


def own_keys(patch, address):
    """Whatever the machine knows of S3, it is that server with these keys; clients of another one are forgotten."""
    if os.environ.get("AWS_ENDPOINT_URL") != address:
        remote.filesystem.cache_clear()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        patch.delenv(name, raising=False)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        patch.setenv(name, value)


def small(patch):
    patch.setattr(store, "CHUNK_BYTES", 1 << 10)
    patch.setattr(store, "SHARD_BYTES", 4 << 10)


def write(pixels=PIXELS):
    ids = artifacts.Provenance(len(pixels), "ids")
    with artifacts.write_store(layout.IMAGES, "images", ids) as writer:
        writer.array("images", pixels, ("sample", "channel", "y", "x"))
        writer.strings("sample_ids", NAMED, ("sample",))
    with artifacts.write_store(layout.features(7), "features", artifacts.Provenance(50, "ids", 7)) as writer:
        writer.array("features", FEATURES, ("sample", "feature"))
    weights = {"body.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    files = artifacts.CheckpointFiles(weights, {}, {"arch": "convnet"}, bank=FEATURES)
    artifacts.write_checkpoint(layout.checkpoint(7), files, artifacts.Provenance(50, "ids", 7))


def open_images():
    return artifacts.open_store(layout.IMAGES, "images", made_by="prepare", ids="ids")


def open_features():
    return artifacts.open_store(layout.features(7), "features", made_by="extract@7", epoch=7)


def test_the_tests_have_several_shards_of_several_chunks():
    assert [open_images().group["images"].shards[0], open_images().group["images"].chunks[0]] == [20, 5]
    assert isinstance(open_features()._rows("features"), shards.PlainRows)


def test_rows_are_those_on_the_disk(moved):
    found = open_images()
    np.testing.assert_array_equal(found.read("images"), PIXELS)
    np.testing.assert_array_equal(found.read("images", slice(19, 41)), PIXELS[19:41])
    assert found.read("images", slice(30, 30)).shape == (0, 3, 8, 8)
    assert found.strings("sample_ids") == NAMED
    np.testing.assert_array_equal(open_features().read("features"), FEATURES)


def test_blocks_begin_and_end_where_they_do_on_the_disk(moved):
    """Sums over blocks round by where they are cut: pca@e must give the same bytes."""
    for count, first in ((1, 0), (13, 0), (10, 28), (10_000, 0)):
        lengths = [len(block) for block in open_images().blocks("images", count, first=first)]
        step, start = max(1, count // 5) * 5, first - first % 5
        assert lengths == [min(step, 70 - row) for row in range(start, 70, step)]
        joined = np.concatenate(list(open_images().blocks("images", count, first=first)))
        np.testing.assert_array_equal(joined, PIXELS[start:])


def test_images_too_large_for_memory_are_streamed_or_put_in_a_file(moved, monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
    ordered = images.rows_in_order(open_images())
    assert isinstance(ordered, images.RowsInOrder)
    found = np.concatenate([ordered[start : start + 16] for start in range(0, 70, 16)])
    np.testing.assert_array_equal(found, PIXELS)
    mapped = images.open_rows(open_images())
    np.testing.assert_array_equal(mapped[[69, 0, 33]], PIXELS[[69, 0, 33]])
    (name,) = layout.DATA.glob(".images-*.u8")
    assert name.stat().st_size == PIXELS.nbytes + 4  # its checksum


def test_checkpoints_too(moved):
    found = artifacts.read_checkpoint(layout.checkpoint(7), made_by="train@7", ids="ids", epoch=7)
    np.testing.assert_array_equal(found.weights["body.weight"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(artifacts.read_bank(layout.checkpoint(7)), FEATURES)


def test_a_mounted_folder_is_a_store_too(tmp_path, monkeypatch):
    """A file system whose client is not asynchronous."""
    from deepcluster.upload import upload

    monkeypatch.setenv("DEEPCLUSTER_STORE", f"file://{tmp_path}/a mounted place")
    upload([], force=False)
    shutil.rmtree("data")
    np.testing.assert_array_equal(open_images().read("images"), PIXELS)
    np.testing.assert_array_equal(artifacts.read_bank(layout.checkpoint(7)), FEATURES)
    with pytest.raises(ArtifactError, match="nor is there file://"):
        artifacts.open_store(layout.features(8), "features", made_by="extract@8")


def test_what_the_project_has_is_read_there(bucket):
    """No request is made: nothing has been uploaded."""
    assert type(open_images()) is artifacts.Store
    assert artifacts.read_checkpoint(layout.checkpoint(7), made_by="train@7").description["epoch"] == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_of_a_store_on_the_disk_may_be_read_ahead(workers):
    found = list(open_images().blocks("images", 10, first=12, workers=workers))
    assert [len(block) for block in found] == [10] * 6
    np.testing.assert_array_equal(np.concatenate(found), PIXELS[10:])


def test_slices_that_jump_begin_anew():
    ordered = images.RowsInOrder(open_images())
    for rows in (slice(0, 3), slice(3, 33), slice(7, 9), slice(68, 75), slice(70, 80), slice(2, 2)):
        np.testing.assert_array_equal(ordered[rows], PIXELS[rows])
    with pytest.raises(ValueError, match="rows must be taken in steps of 1"):
        ordered[::2]


def test_ahead_keeps_the_order_and_no_more_than_its_workers_under_way():
    made, taken = [], []
    for item in remote.ahead(lambda number: made.append(number) or number, range(9), workers=2):
        taken.append(item)
        assert len(made) <= len(taken) + 2
    assert taken == list(range(9))


class TestRefusals:
    def refusal(self, kind=RemoteError):
        with pytest.raises(kind) as found:
            open_images().read("images")
        assert "\n" not in str(found.value)
        return str(found.value)

    def test_nothing_there(self, moved):
        with pytest.raises(ArtifactError) as found:
            artifacts.open_store(layout.features(8), "features", made_by="extract@8")
        place = f"{moved}/data/epochs/8/features.zarr"
        assert str(found.value) == (
            f"data/epochs/8/features.zarr: not found, nor is there {place}; run `dvc repro extract@8`"
        )
        with pytest.raises(ArtifactError, match=r"^data/epochs/8/checkpoint: not found, nor is there .*train@8`$"):
            artifacts.read_checkpoint(layout.checkpoint(8), made_by="train@8")

    def test_another_data_set_or_epoch(self, moved):
        with pytest.raises(ArtifactError, match=r"^(s3|http)://.*features.zarr: epoch: expected 8, got 7; run"):
            artifacts.open_store(layout.features(7), "features", made_by="extract@8", epoch=8)
        with pytest.raises(ArtifactError, match=r"images.zarr: belongs to another data set"):
            artifacts.open_store(layout.IMAGES, "images", made_by="prepare", ids="others")

    @pytest.mark.parametrize("url", [f"s3://{BUCKET}/p", None], ids=["s3", "http"])
    def test_a_closed_port(self, monkeypatch, url):
        shutil.rmtree("data")
        address = closed_port()
        own_keys(monkeypatch, address)
        monkeypatch.setenv("DEEPCLUSTER_STORE", url or address)
        place = re.escape(f"{url or address}/data/dataset/images.zarr/zarr.json")
        assert re.fullmatch(
            place + r": cannot be reached \(.*\); check the network and DEEPCLUSTER_STORE", self.refusal()
        )

    @pytest.mark.parametrize("url", [f"s3://{BUCKET}/p", None], ids=["s3", "http"])
    def test_a_server_that_never_answers(self, monkeypatch, url):
        shutil.rmtree("data")
        with silent_server() as address:
            own_keys(monkeypatch, address)
            monkeypatch.setenv("DEEPCLUSTER_STORE", url or address)
            monkeypatch.setenv("DEEPCLUSTER_STORE_TIMEOUT", "0.2")
            assert self.refusal() == (
                f"{url or address}/data/dataset/images.zarr/zarr.json: no answer within 0.2 s; check the network and "
                "DEEPCLUSTER_STORE, or allow more with DEEPCLUSTER_STORE_TIMEOUT"
            )

    def test_a_client_that_would_wait_for_ever_is_given_up(self, bucket, monkeypatch):
        """Whatever a client does by itself: a limit is around it, longer where more bytes are to arrive."""
        from fsspec.exceptions import FSTimeoutError

        limits = []

        def gives_up(*_, timeout):
            limits.append(timeout)
            raise FSTimeoutError

        monkeypatch.setattr("fsspec.asyn.sync", gives_up)
        for size in (None, 48 << 20):
            with pytest.raises(RemoteError, match=r"/x: no answer within 60 s"):
                remote.Remote(bucket).read("x", size=size)
        assert limits == [60, 240]

    def test_wrong_credentials(self, uploaded, monkeypatch):
        shutil.rmtree("data")
        monkeypatch.setenv("DEEPCLUSTER_STORE", uploaded)
        monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on moto knows who may do what
        assert re.fullmatch(
            re.escape(f"{uploaded}/data/dataset/images.zarr/zarr.json: refused (") + r".*\); check the credentials "
            r"\(of S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE\)",
            self.refusal(),
        )

    def test_a_shard_that_is_missing_cut_short_or_altered(self, moved, tmp_path, monkeypatch):
        if moved.startswith("s3"):
            pytest.skip("the same code; files are easier to damage behind HTTP")
        shard = tmp_path / "served place/data/dataset/images.zarr/images/c/2/0/0/0"
        place = f"{moved}/data/dataset/images.zarr/images/c/2/0/0/0"
        remedy = "; `deepcluster upload --force` it again where it is"
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1])
        expected = f"{place}: damaged ({len(whole) - 1:,} bytes of {len(whole):,}){remedy}"
        assert self.refusal(ArtifactError) == expected
        shard.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        assert re.fullmatch(re.escape(place) + r": damaged \(.*\)" + re.escape(remedy), self.refusal(ArtifactError))
        shard.unlink()
        assert self.refusal(ArtifactError) == f"{place}: damaged (missing){remedy}"

    @pytest.fixture
    def planted_codec(self, monkeypatch):
        """A package that is installed and knows zarr codec `planted`; of it nothing may be made."""
        from zarr.codecs import Crc32cCodec
        from zarr.registry import register_codec

        class Planted(Crc32cCodec):
            @classmethod
            def from_dict(cls, data):
                pytest.fail("it ran")

        register_codec("planted", Planted)
        return "planted"

    def rewrite(self, folder, *, own, consolidated=()):
        """The images' codecs, all checksums put right; or those that consolidated metadata tell of."""
        described, group = (json.loads((folder / name / "zarr.json").read_text()) for name in ("images", "."))
        changed = described | {"codecs": [*described["codecs"], *own]}
        (folder / "images/zarr.json").write_text(json.dumps(changed))
        if consolidated:
            told = {"images": described | {"codecs": [*described["codecs"], *consolidated]}}
            group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": told}
        group["attributes"]["files"]["images/zarr.json"] = _fingerprint(folder / "images/zarr.json")
        group["attributes"]["digest"] = digest_of(group["attributes"])
        (folder / "zarr.json").write_text(json.dumps(group))

    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """The images' folder behind HTTP."""
        shutil.move("data", tmp_path / "served place/data")
        with http_server(tmp_path / "served place") as address:
            monkeypatch.setenv("DEEPCLUSTER_STORE", address)
            yield tmp_path / "served place/data/dataset/images.zarr"

    def test_a_codec_that_could_run_code(self, served, planted_codec):
        self.rewrite(served, own=[{"name": planted_codec}])
        assert self.refusal(ArtifactError) == (
            f"{os.environ['DEEPCLUSTER_STORE']}/data/dataset/images.zarr/images: refused, as its codec 'planted' could "
            "run code; it was not written here"
        )

    def test_a_codec_in_consolidated_metadata_is_not_looked_at(self, served, planted_codec):
        self.rewrite(served, own=[], consolidated=[{"name": planted_codec}])
        np.testing.assert_array_equal(open_images().read("images"), PIXELS)

    def test_a_checkpoint_s_description_that_was_altered(self, served):
        file = served.parents[1] / "epochs/7/checkpoint/checkpoint.json"
        file.write_text(file.read_text().replace('"convnet"', '"vgg16"'))
        for read in (lambda path: artifacts.read_checkpoint(path, made_by="train@7"), artifacts.read_bank):
            with pytest.raises(ArtifactError, match=r"^http://.*/checkpoint/checkpoint\.json: damaged \(altered\); "):
                read(layout.checkpoint(7))

    def test_want_of_memory_is_neither_damage_nor_the_network(self, served, monkeypatch):
        """Whether it is the fetching or the decoding that has too little."""
        for name in ("artifacts.remote.Remote._call", "artifacts.remote_store._opened"):
            found = open_images()

            def refuses(*_, **__):
                raise MemoryError

            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr(f"deepcluster.{name}", refuses)
                found.read("images")

    @pytest.mark.parametrize("content", ["[" * 100_000, "{}", "no JSON", '{"attributes": {"files": 1}}'])
    def test_a_description_that_is_none(self, served, content):
        (served / "zarr.json").write_text(content)
        assert re.fullmatch(r"http://.*/images\.zarr/zarr\.json: damaged \(.*", self.refusal(ArtifactError))

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("bucket/p", "DEEPCLUSTER_STORE: must be a URL, such as s3://bucket/project or https://host/project; got"),
            ("nosuch://bucket/p", "DEEPCLUSTER_STORE: nosuch://bucket/p/data/dataset/images.zarr: "),
        ],
    )
    def test_urls_that_are_none(self, monkeypatch, url, message):
        shutil.rmtree("data")
        monkeypatch.setenv("DEEPCLUSTER_STORE", url)
        assert self.refusal(UserError).startswith(message)

    @pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
    def test_time_outs_that_are_none(self, monkeypatch, text):
        monkeypatch.setenv("DEEPCLUSTER_STORE_TIMEOUT", text)
        with pytest.raises(UserError, match=r"^DEEPCLUSTER_STORE_TIMEOUT: must be a number of seconds above 0; got '"):
            remote.timeout()


class TestReplaced:
    """By another upload, while it is read."""

    def upload(self, pixels):
        from deepcluster.upload import upload

        write(pixels)
        upload([layout.IMAGES], force=False)
        shutil.rmtree(layout.IMAGES)

    @pytest.fixture
    def opened(self, bucket):
        self.upload(PIXELS)
        return open_images()

    def refused(self, bucket):
        return pytest.raises(
            ArtifactError,
            match=rf"^{bucket}/data/dataset/images\.zarr: was replaced while it was read, by an upload; try again$",
        )

    def test_nothing_of_another_one_is_read(self, bucket, opened):
        """Of the same shape: only pixels differ, and shards are as long, as what is noise hardly compresses."""
        np.testing.assert_array_equal(opened.read("images"), PIXELS)
        self.upload(PIXELS[::-1].copy())
        with self.refused(bucket):
            opened.read("images", slice(0, 3))
        np.testing.assert_array_equal(open_images().read("images"), PIXELS[::-1])

    def test_nor_between_two_blocks(self, bucket, opened):
        blocks = opened.blocks("images", 5)
        np.testing.assert_array_equal(next(blocks), PIXELS[:5])
        self.upload(PIXELS[::-1].copy())
        with self.refused(bucket):
            list(blocks)

    def test_nor_while_an_upload_is_under_way(self, bucket, opened):
        store = remote.Remote(f"{bucket}/data/dataset/images.zarr")
        store.remove("zarr.json.sha256")
        with self.refused(bucket):
            opened.read("images")
        store.remove("zarr.json")
        store.remove("images/c/0/0/0/0")
        with self.refused(bucket):
            opened.read("images")


class TestProgress:
    """What an interrupted stage keeps is of the content that a bucket has."""

    def digests(self):
        return Key({}, {"images": layout.IMAGES, "checkpoint": layout.checkpoint(7) / "checkpoint.json"}).digests()

    def test_a_key_is_of_what_was_uploaded(self, uploaded, bucket, monkeypatch):
        from deepcluster.upload import upload

        upload([], force=False)
        shutil.rmtree("data")
        here = self.digests()
        assert len({*here.values()}) == len(here) == 2
        key = Key({}, {"images": layout.IMAGES})
        assert key.digests()["images"] == here["images"]
        write(PIXELS[::-1].copy())
        upload([], force=False)
        shutil.rmtree("data")
        assert key.digests() is None
        assert {name for name, digest in self.digests().items() if digest != here[name]} == {"images"}

    def test_there_is_none_where_content_is_not_known(self, monkeypatch, tmp_path):
        shutil.move("data", tmp_path / "served place/data")
        with http_server(tmp_path / "served place") as address:
            monkeypatch.setenv("DEEPCLUSTER_STORE", address)
            assert self.digests() is None

    def test_nor_where_a_server_no_longer_answers(self, bucket, monkeypatch):
        from deepcluster.upload import upload

        upload([], force=False)
        shutil.rmtree("data")
        key = Key({}, {"images": layout.IMAGES})
        own_keys(monkeypatch, closed_port())
        assert key.digests() is None


class TestUpload:
    def upload(self, *paths, force=False):
        from deepcluster.upload import upload

        upload([Path(path) for path in paths], force=force)

    def test_a_second_time_only_what_has_changed_is_sent(self, bucket, capsys):
        self.upload()
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in lines] == [
            "data/dataset/images.zarr", "data/epochs/7/checkpoint", "data/epochs/7/features.zarr", "3 sent",
        ]  # fmt: skip
        self.upload()
        assert capsys.readouterr().out == "0 sent, 3 there already\n"
        write(PIXELS[::-1].copy())
        self.upload()
        assert capsys.readouterr().out.endswith("\n1 sent, 2 there already\n")
        shutil.rmtree("data")
        np.testing.assert_array_equal(open_images().read("images"), PIXELS[::-1])

    def test_an_upload_that_breaks_off_publishes_nothing(self, bucket, monkeypatch):
        self.upload()
        write(PIXELS[::-1].copy())
        put = remote.Remote.write

        def breaks_off(self, name, content):
            if name.endswith("c/3/0/0/0"):
                raise KeyboardInterrupt
            put(self, name, content)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(remote.Remote, "write", breaks_off)
            self.upload("data/dataset/images.zarr")
        shutil.move("data", "kept")
        with pytest.raises(ArtifactError, match=r"^data/dataset/images.zarr: not found, nor is there s3://"):
            open_images()
        shutil.move("kept", "data")
        self.upload()
        shutil.rmtree("data")
        np.testing.assert_array_equal(open_images().read("images"), PIXELS[::-1])

    @pytest.mark.parametrize("changed", [lambda: write(PIXELS[::-1].copy()), lambda: shutil.rmtree(layout.IMAGES)])
    def test_what_a_run_replaces_meanwhile_is_not_sent(self, bucket, monkeypatch, changed):
        put = remote.Remote.write

        def replacing(self, name, content):
            if name.endswith("c/0/0/0/0"):
                changed()
            put(self, name, content)

        with monkeypatch.context() as patch, pytest.raises(ArtifactError) as found:
            patch.setattr(remote.Remote, "write", replacing)
            self.upload("data/dataset/images.zarr")
        assert str(found.value) == (
            "data/dataset/images.zarr: was replaced while it was read, by a run that goes on; try again"
        )
        assert remote.Remote(bucket).read_or_none("data/dataset/images.zarr/zarr.json") is None

    def test_only_what_is_named(self, bucket, capsys):
        self.upload("data/epochs/7/checkpoint/")
        assert capsys.readouterr().out.splitlines()[1] == "1 sent"
        with pytest.raises(UserError) as found:
            self.upload("data/epochs/8/checkpoint")
        assert str(found.value) == (
            "data/epochs/8/checkpoint: no artifact of this project; name one such as data/epochs/7/features.zarr, "
            "relative to its folder"
        )

    def test_nothing_damaged_is_sent(self, bucket):
        (layout.features(7) / "features/c/1/0").write_bytes(b"")
        with pytest.raises(ArtifactError, match="features/c/1/0: damaged"):
            self.upload()
        (layout.checkpoint(7) / "model.safetensors").write_bytes(b"")
        with pytest.raises(ArtifactError, match=r"model.safetensors: damaged"):
            self.upload("data/epochs/7/checkpoint")
        assert remote.Remote(bucket).read_or_none("data/dataset/images.zarr/zarr.json") is None

    def test_http_is_for_reading(self, monkeypatch, tmp_path):
        with http_server(tmp_path / "nothing") as address:
            monkeypatch.setenv("DEEPCLUSTER_STORE", address)
            with pytest.raises(UserError) as found:
                self.upload()
        assert str(found.value) == (
            f"DEEPCLUSTER_STORE: {address}/data/dataset/images.zarr: HTTP is for reading; upload to the bucket behind "
            "it, e.g. s3://..."
        )

    def test_without_a_store_a_project_or_an_artifact(self, monkeypatch):
        with pytest.raises(UserError, match="DEEPCLUSTER_STORE: not set; it says where to"):
            self.upload()
        monkeypatch.setenv("DEEPCLUSTER_STORE", "memory://nowhere")
        shutil.rmtree("data")
        with pytest.raises(UserError, match="data: nothing to upload yet"):
            self.upload()
        Path("params.yaml").unlink()
        with pytest.raises(UserError, match=r"params.yaml: not found; run this in the project's folder"):
            self.upload()


def test_an_epoch_whose_inputs_are_in_a_bucket_gives_the_same_bytes(bucket, tmp_path, monkeypatch):
    """Stages by hand, as on another machine: only what each of them writes is there."""
    from conftest import CHECKOUT, TINY, digests, edit_params, write_images

    from deepcluster.upload import upload
    from stages.cluster import cluster
    from stages.extract import extract
    from stages.initialise import initialise
    from stages.pca import pca
    from stages.prepare import prepare
    from stages.train import train

    shutil.rmtree("data")
    shutil.copyfile(CHECKOUT / "params.yaml", "params.yaml")
    write_images(tmp_path / "photographs")
    edit_params(tmp_path / "params.yaml", TINY | {"data.root": str(tmp_path / "photographs")})
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    with monkeypatch.context() as patch:
        patch.delenv("DEEPCLUSTER_STORE")
        prepare()
        initialise()
        for stage in (extract, pca, cluster, train):
            stage(1)
    expected = digests(tmp_path, "data/epochs/1", "data/history/1")
    upload([], force=False)
    shutil.rmtree("data")
    monkeypatch.setenv("DEEPCLUSTER_MEMORY_SHARE", "0")
    for stage in (extract, pca, cluster, train):
        stage(1)
    assert digests(tmp_path, "data/epochs/1", "data/history/1") == expected
    assert not layout.IMAGES.exists()
    shutil.rmtree(layout.features(1))
    shutil.rmtree(layout.clusters(1))
    pca(1)
    train(1)
    assert digests(tmp_path, "data/epochs/1/pca.zarr", "data/epochs/1/checkpoint") == {
        path: digest for path, digest in expected.items() if "/pca.zarr/" in path or "/checkpoint/" in path
    }
