"""Digits as PNG files: the bundle and the estimator give all 1,797 images the labels of the pipeline's artifacts."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import CHECKOUT, TINY, edit_params
from PIL import Image
from sklearn.datasets import load_digits

from deepcluster import DeepCluster
from deepcluster.augment import augmentation_of
from deepcluster.params import load_params

pytestmark = pytest.mark.xdist_group("same labels")
COUNT = 1797
SETTINGS = TINY | {"data.image_size": None, "pca.components": 16, "cluster.k": 20, "train.batch_size": 64}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on Digits as image files, half of them in a subfolder, so that nothing is a class."""
    root = tmp_path_factory.mktemp("digits run")
    for index, pixels in enumerate(load_digits().images):
        path = root / "images" / ("", "deeper/half")[index % 2] / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(path)
    shutil.copyfile(CHECKOUT / "params.yaml", root / "params.yaml")
    refined = {"refine.after": 1, "refine.k": 10}
    edit_params(root / "params.yaml", SETTINGS | refined | {"data.root": str(root / "images"), "evaluate.k": 10})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DEEPCLUSTER_DEVICE", "cpu")
        run_stages(2)
    return root


def run_stages(epochs: int) -> None:
    import faiss  # noqa: F401  numeric libraries are limited to one thread only once they are loaded
    import sklearn.decomposition  # noqa: F401
    import torch  # noqa: F401
    from threadpoolctl import threadpool_limits

    from stages.cluster import cluster
    from stages.evaluate import evaluate
    from stages.extract import extract
    from stages.initialise import initialise
    from stages.pca import pca
    from stages.prepare import prepare
    from stages.train import train

    with threadpool_limits(1):
        prepare()
        initialise()
        for epoch in range(1, epochs + 1):
            for stage in (extract, pca, cluster, train):
                stage(epoch)
        evaluate()


@pytest.fixture
def away(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as current one, for work without the project."""
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    monkeypatch.chdir(digits)
    return tmp_path


def assigned(path: Path) -> dict[str, int]:
    """Clusters by the name of the file, of a table of `assign`."""
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(row["sample"]).name: int(row["cluster"]) for row in csv.DictReader(file)}


def labels_of(root: Path, store: str) -> dict[str, int]:
    """Clusters by the name of the file, read from the artifacts with plain zarr."""
    images, clusters = (zarr.open_group(root / path, mode="r") for path in ("data/dataset/images.zarr", store))
    names = [bytes(row).rstrip(b"\0").decode() for row in images["sample_ids"][:]]
    return {Path(name).name: int(label) for name, label in zip(names, clusters["labels"][:], strict=True)}


@pytest.mark.parametrize(
    ("arguments", "store"),
    [
        ((), "data/evaluation/clusters.zarr"),
        (("--labels", "pseudo", "--epoch", "1"), "data/history/1/clusters.zarr"),
        (("--labels", "pseudo", "--epoch", "2"), "data/history/2/clusters.zarr"),
    ],
)
def test_a_bundle_elsewhere_gives_every_training_image_its_label(digits, away, outcome, monkeypatch, arguments, store):
    status, out, err = outcome("bundle", "--out", str(away / "given away"), *arguments)
    assert status == 0, err
    assert "check: all 1,797 training images get the cluster that they have in the artifact" in out
    expected = labels_of(digits, store)
    moved = digits.rename(away / "moved project")
    try:
        monkeypatch.chdir(away)
        status, _, err = outcome("assign", str(moved / "images"), "--bundle", "given away", "--out", "labels.csv")
        assert status == 0, err
        found = assigned(Path("labels.csv"))
    finally:
        monkeypatch.chdir(away)
        moved.rename(digits)
    assert len(expected) == COUNT
    assert found == expected
    assert len(set(found.values())) == len(set(expected.values())) > 5


@pytest.mark.parametrize("arguments", [(), ("--labels", "pseudo", "--epoch", "2")])
def test_neither_order_nor_number_of_the_images_changes_a_label(digits, away, outcome, arguments):
    outcome("bundle", "--no-check", "--out", str(away / "b"), *arguments)
    files = sorted(map(str, (digits / "images").rglob("*.png")))
    outcome("assign", *files, "--bundle", str(away / "b"), "--out", str(away / "all.csv"))
    shuffled = np.random.default_rng(0).permutation(files)[:700]
    outcome("assign", *shuffled, "--bundle", str(away / "b"), "--out", str(away / "some.csv"))
    outcome("assign", files[5], "--bundle", str(away / "b"), "--out", str(away / "one.csv"))
    everything, some, one = (assigned(away / name) for name in ("all.csv", "some.csv", "one.csv"))
    assert (len(everything), len(some), len(one)) == (COUNT, 700, 1)
    assert some.items() <= everything.items()
    assert one.items() <= everything.items()


SPECTRAL = {
    "cluster.method": "spectral",
    "cluster.iterations": 50,
    "cluster.restarts": 10,
    "cluster.init": "k-means++",
    "refine.method": "spectral",
}


@pytest.fixture
def spectral_digits(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same images, clustered by the graph of neighbours."""
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    shutil.copyfile(digits / "params.yaml", tmp_path / "params.yaml")
    edit_params(tmp_path / "params.yaml", SPECTRAL)
    monkeypatch.chdir(tmp_path)
    run_stages(2)
    return tmp_path


@pytest.mark.parametrize(("method", "run"), [("kmeans", "digits"), ("spectral", "spectral_digits")])
def test_the_estimator_finds_the_labels_of_the_pipeline(method, run, request, monkeypatch):
    monkeypatch.chdir(request.getfixturevalue(run))
    params = load_params()
    assert params.cluster.method == method
    images, final, pseudo = (
        zarr.open_group(f"data/{path}", mode="r")
        for path in ("dataset/images.zarr", "evaluation/clusters.zarr", "history/2/clusters.zarr")
    )
    model = DeepCluster(
        k=10,
        clusters=20,
        method=method,
        refine=0.5,
        epochs=2,
        components=16,
        batch_size=64,
        epoch_size=1.0,
        schedule="constant",
        restarts=1,
        augmentation=augmentation_of(params.augment, "folder"),
        device="cpu",
    )
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # as the stages ran: sums on other numbers of threads round otherwise
        assert model.fit(images["images"][:]) is model
    np.testing.assert_array_equal(model.pseudo_labels_, pseudo["labels"][:])
    np.testing.assert_array_equal(model.labels_, final["labels"][:])
    np.testing.assert_allclose(
        model.cluster_centers_, final["centroids"][:], rtol=1e-4, atol=1e-6
    )  # same but for rounding
