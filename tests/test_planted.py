"""No file runs code: a command planted in each kind that is read is refused, in words, and does not run."""

import ast
import gzip
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import noise_bundle
from conftest import CHECKOUT
from dataset_files import idx, load, noise, write
from test_bundle import rewrite

from deepcluster import artifacts, origins, plan
from deepcluster.artifacts.provenance import digest_of
from deepcluster.artifacts.store import _fingerprint
from deepcluster.errors import ArtifactError, DataError, ParamsError, ScheduleError, UserError
from deepcluster.fingerprints import changed_stages
from deepcluster.params import load_params
from deepcluster.settings import set_params
from deepcluster.using.bundle import read_bundle, write_bundle

TRACE = "it ran"
TAGGED = f"!!python/object/apply:os.system [\"touch '{TRACE}'\"]"


class Plant:
    def __reduce__(self):
        return os.system, (f"touch '{TRACE}'",)


PICKLE = pickle.dumps(Plant(), 2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder, in which a plant that ran would leave its trace."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path(TRACE).exists()


@pytest.mark.parametrize("plant", [lambda: pickle.loads(PICKLE), lambda: _unsafe_yaml(f"x: {TAGGED}\n")])
def test_the_plants_are_real_ones(plant):
    plant()
    assert Path(TRACE).exists()
    Path(TRACE).unlink()


def _unsafe_yaml(text: str) -> None:
    yaml = pytest.importorskip("yaml")
    yaml.unsafe_load(text)


def provenance() -> artifacts.Provenance:
    return artifacts.Provenance(3, artifacts.ids_hash("abc"))


def checkpoint() -> Path:
    weights = {"w": np.ones(2, np.float32)}
    artifacts.write_checkpoint(Path("checkpoint"), artifacts.CheckpointFiles(weights, {}, {}), provenance())
    return Path("checkpoint")


def sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def weights(*, zipped: bool) -> None:
    content = {"state_dict": {"w": torch.ones(1)}, "x": Plant()}
    torch.save(content, "w.pth", _use_new_zipfile_serialization=zipped)
    artifacts.read_weight_file(Path("w.pth"))


def weights_in_a_plain_pickle() -> None:
    artifacts.read_weight_file(write(Path("w.pth"), PICKLE))


def weights_called_safetensors() -> None:
    artifacts.read_weight_file(write(Path("w.safetensors"), PICKLE))


def checkpoint_tensors() -> None:
    path = checkpoint()
    about = json.loads((path / "checkpoint.json").read_text())
    about["sha256"]["model.safetensors"] = sha256(PICKLE)
    write(path / "checkpoint.json", json.dumps(about))
    write(path / "model.safetensors", PICKLE)
    artifacts.read_checkpoint(path, made_by="train@1")


def checkpoint_description() -> None:
    write(checkpoint() / "checkpoint.json", PICKLE)
    artifacts.read_checkpoint(Path("checkpoint"), made_by="train@1")


def bundle_tensors() -> None:
    write_bundle(Path("b"), noise_bundle())
    write(Path("b/backbone.safetensors"), PICKLE)
    digests = json.loads(Path("b/bundle.json").read_text())["sha256"]
    rewrite(Path("b"), sha256=digests | {"backbone.safetensors": sha256(PICKLE)})
    read_bundle(Path("b"))


def bundle_description() -> None:
    write_bundle(Path("b"), noise_bundle())
    write(Path("b/bundle.json"), PICKLE)
    read_bundle(Path("b"))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda: weights(zipped=True), "refused, since loading it could run code: it names posix.system"),
        (lambda: weights(zipped=False), "refused, since loading it could run code: it names posix.system"),
        (weights_in_a_plain_pickle, "refused, since loading it could run code"),
        (weights_called_safetensors, "damaged"),
        (checkpoint_tensors, "damaged"),
        (checkpoint_description, "damaged"),
        (bundle_tensors, "damaged"),
        (bundle_description, "damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_weights_checkpoints_and_bundles(plant: Callable[[], None], said: str):
    with pytest.raises(ArtifactError, match=said):
        plant()


class TestStores:
    """Somebody who gets all checksums right, too."""

    @pytest.fixture
    def store(self) -> Path:
        path = Path("x.zarr")
        with artifacts.write_store(path, "clusters", provenance(), note="import os") as store:
            store.array("labels", np.arange(3, dtype=np.int32), ("sample",))
        return path

    def read(self, path: Path) -> np.ndarray:
        return artifacts.open_store(path, "clusters", made_by="cluster@1").read("labels")

    def rewrite(self, path: Path, attributes: dict[str, object] | None = None, **metadata: object) -> None:
        """Change an array's metadata, or the attributes, and all checksums after them."""
        array, group = path / "labels/zarr.json", path / "zarr.json"
        if metadata:
            array.write_text(json.dumps(json.loads(array.read_text()) | metadata))
        content = json.loads(group.read_text())
        content["attributes"] |= attributes or {}
        content["attributes"]["files"]["labels/zarr.json"] = _fingerprint(array)
        content["attributes"]["digest"] = digest_of(content["attributes"])
        group.write_text(json.dumps(content))

    @pytest.fixture
    def planted_codec(self, monkeypatch):
        """A package that is installed and knows zarr codec `planted`, which leaves the trace when it is made."""
        from zarr.codecs import Crc32cCodec
        from zarr.registry import register_codec

        class Planted(Crc32cCodec):
            @classmethod
            def from_dict(cls, data):
                os.system(f"touch '{TRACE}'")
                return Crc32cCodec()

        register_codec("planted", Planted)
        return "planted"

    def test_untouched_it_is_read(self, store):
        self.rewrite(store)
        np.testing.assert_array_equal(self.read(store), [0, 1, 2])

    @pytest.mark.parametrize("inside", [False, True])
    def test_a_codec_of_another_package(self, store, planted_codec, inside):
        import zarr

        codecs = json.loads((store / "labels/zarr.json").read_text())["codecs"]
        (codecs[0]["configuration"]["codecs"] if inside else codecs).append({"name": planted_codec})
        self.rewrite(store, codecs=codecs)
        with pytest.raises(ArtifactError) as caught:
            self.read(store)
        assert str(caught.value) == (
            "x.zarr/labels: refused, as its codec 'planted' could run code; it was not written here"
        )
        assert not Path(TRACE).exists()
        zarr.open_group(store, mode="r")["labels"]  # the trap is a real one
        Path(TRACE).unlink()

    def test_a_codec_in_consolidated_metadata(self, store, planted_codec):
        """Which zarr would take for the array's own, whatever that says."""
        array = json.loads((store / "labels/zarr.json").read_text())
        array["codecs"][0]["configuration"]["codecs"].append({"name": planted_codec})
        group = json.loads((store / "zarr.json").read_text())
        group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {"labels": array}}
        (store / "zarr.json").write_text(json.dumps(group))
        np.testing.assert_array_equal(self.read(store), [0, 1, 2])

    @pytest.mark.parametrize("kind", ["variable_length_bytes", "string", {"name": "numpy.datetime64"}, None, []])
    def test_what_is_no_number(self, store, kind):
        self.rewrite(store, data_type=kind)
        with pytest.raises(ArtifactError) as caught:
            self.read(store)
        assert str(caught.value) == (
            f"x.zarr/labels: refused, as it holds {kind!r}, which is no number; it was not written here"
        )

    @pytest.mark.parametrize("whole", [True, False])
    def test_pickled_objects_of_zarr_2(self, store, whole):
        old = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C"}
        write(store / "labels/.zarray", json.dumps(old | {"compressor": None, "filters": [{"id": "pickle"}]}))
        write(store / "labels/0", PICKLE)
        (store / "labels/zarr.json").unlink()
        self.rewrite(store)
        if whole:
            write(store / ".zgroup", json.dumps({"zarr_format": 2}))
            write(store / ".zattrs", json.dumps(json.loads((store / "zarr.json").read_text())["attributes"]))
            (store / "zarr.json").unlink()
        with pytest.raises(ArtifactError, match="damaged"):
            self.read(store)

    def test_attributes_are_but_text(self, store):
        self.rewrite(store, {"note": TAGGED, "py/object": "os.system", "class_names": [f"$(touch '{TRACE}')"]})
        assert artifacts.open_store(store, "clusters", made_by="x").attributes["note"] == TAGGED


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte.gz"),
        ("usps", "usps.t.bz2"),
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("stl10", "stl10_binary/test_X.bin"),
    ],
)
def test_data_sets(tmp_path, name, file):
    write(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", idx(np.zeros(1, np.uint8)))
    write(tmp_path / "stl10_binary/test_y.bin", b"\x01")
    write(tmp_path / file, gzip.compress(PICKLE) if file.endswith(".gz") else PICKLE)
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / file))}: "):
        load(name, tmp_path, "test")


def test_images(tmp_path):
    write(tmp_path / "a.png", PICKLE)
    with pytest.raises(DataError, match=r"a\.png: not an image of a known format"):
        load("folder", tmp_path, "all", image_size=8)


class TestYaml:
    def test_params(self):
        path = write(Path("params.yaml"), f"seed: {TAGGED}\n")
        with pytest.raises(
            ParamsError, match=r"^params\.yaml: not YAML: could not determine a constructor for the tag"
        ):
            load_params(path)

    def test_a_value_on_the_command_line(self):
        write(Path("params.yaml"), (CHECKOUT / "params.yaml").read_bytes())
        with pytest.raises(ParamsError):
            set_params([f"seed={TAGGED}"])

    def test_the_schedule(self):
        with pytest.raises(ScheduleError, match="not a schedule; run `deepcluster plan`"):
            plan.scheduled_epochs(write(Path("schedule.yaml"), f"schedule: {TAGGED}\n"))

    def test_the_digests_of_code(self):
        assert "train" in changed_stages(write(Path("code.yaml"), f"train: {TAGGED}\n"))

    def test_dvc_lock_as_we_read_it(self):
        write(Path("params.yaml"), "")
        write(Path("dvc.lock"), f"stages: {TAGGED}\n")
        with pytest.raises(UserError, match=r"^dvc\.lock: not YAML"), origins.origin(None):
            pass

    @pytest.mark.parametrize("file", ["dvc.lock", "dvc.yaml"])
    def test_as_dvc_reads_it(self, file):
        from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

        write(Path(file), f"stages: {TAGGED}\n")
        with pytest.raises(YAMLFileCorruptedError):
            load_yaml(file)


def test_dvc_lock_in_a_run(project):
    path = project.root / "dvc.lock"
    path.write_text(path.read_text().replace("schema: '2.0'", f"schema: {TAGGED}"))
    failed = project.run("deepcluster", "run", status=2)
    assert "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert not (project.root / TRACE).exists()


RUN_CODE = {
    "pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load",
    "dill.loads", "np.load", "numpy.load", "torch.load", "yaml.load", "eval", "exec", "os.system", "os.popen",
    "pd.read_pickle", "cloudpickle.load", "cloudpickle.loads",
}  # fmt: skip
HARMLESS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def that_run_code(source: str) -> list[str]:
    """Calls that can run what a file holds; one with the argument that prevents it is not among them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, settings = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        wanted, value = HARMLESS.get(name, ("", None))
        if name in RUN_CODE and settings.get(wanted) != str(value):
            found.append(name)
        if settings.get("shell") == "True" or settings.get("allow_pickle") == "True":
            found.append(name)
    return found


def test_nothing_calls_what_can_run_code():
    files = [path for folder in ("deepcluster", "stages") for path in sorted((CHECKOUT / folder).rglob("*.py"))]
    assert len(files) > 100
    assert {path.name: calls for path in files if (calls := that_run_code(path.read_text()))} == {}


def test_such_calls_would_be_found():
    assert that_run_code("pickle.loads(x)\nnp.load(p)\nnp.load(p, allow_pickle=True)") == [
        "pickle.loads", "np.load", "np.load", "np.load",
    ]  # fmt: skip
    assert that_run_code("torch.load(p, weights_only=False); torch.load(p)") == ["torch.load"] * 2
    assert that_run_code("torch.load(p, weights_only=True); np.load(p, allow_pickle=False)") == []
    assert that_run_code("subprocess.run(x, shell=True)") == ["subprocess.run"]


def test_tables_written_by_hand_hold_numbers_alone():
    """All other tables have names of files in them, and are written by `spreadsheets`, which defuses formulas."""
    own = re.compile(r"\bcsv\.(?:Dict)?[Ww]riter\(")
    files = [path for folder in ("deepcluster", "stages") for path in (CHECKOUT / folder).rglob("*.py")]
    found = {path.relative_to(CHECKOUT).as_posix() for path in files if own.search(path.read_text())}
    numbers = {"evaluation/epochs.py", "evaluation/lineage.py", "seeds.py", "sweep.py", "timings.py"}
    assert found == {*(f"deepcluster/{name}" for name in numbers), "stages/train.py"}


def test_noise_is_no_plant():
    """The same readers read what is honest, so they do not refuse everything."""
    write(Path("root/MNIST/raw/t10k-images-idx3-ubyte"), idx(noise(2, 28, 28)))
    write(Path("root/MNIST/raw/t10k-labels-idx1-ubyte"), idx(np.array([1, 2], np.uint8)))
    assert load("mnist", Path("root"), "test").sample_ids == ["0", "1"]
    torch.save({"w": torch.ones(1)}, "w.pth")
    assert artifacts.read_weight_file(Path("w.pth")).content["w"].tolist() == [1.0]
    assert artifacts.read_checkpoint(checkpoint(), made_by="x").weights["w"].tolist() == [1.0, 1.0]
    write_bundle(Path("b"), noise_bundle())
    assert read_bundle(Path("b")).k == 4
