"""All that tells which cluster an image belongs to: backbone, reduction, centroids, preprocessing, and their origin.

Shapes: K clusters, d components, N images, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts
from deepcluster.checkpoint import BackboneDescription, load_weights, weights_of
from deepcluster.models.build import Backbone, Precision
from deepcluster.reduction.pca import Components

QUANTILE, MEMBERS = 0.99, 20
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes uint8 [C, S, S] (`datasets.decoding.decode`), and what normalises that, as in training.

    crop: the centre square is taken; else the whole is squeezed into a square. mean, std: per channel, 255 being 1.
    """

    image_size: int
    channels: int
    crop: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Features:
    """How the backbone runs: as many images at once as in training, so that kernels, and rounding, are the same."""

    batch_size: int
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Reduction:
    """Features to the space of the centroids. `components` None: no PCA. block_rows: how many rows are reduced at once,
    as in training. `spherical`: rows of norm 1, as spherical k-means has them."""

    components: Components | None = None
    whiten: bool = False
    normalize: bool = True
    spherical: bool = False
    block_rows: int = BLOCK_ROWS


@dataclass(frozen=True)
class Clusters:
    """centroids_Kd float32; sizes_K int64, images of the training set; thresholds_K float64: beyond that distance from
    its centroid an image counts as an outlier (`outlier_thresholds`)."""

    centroids_Kd: NDArray[np.float32]
    sizes_K: NDArray[np.int64]
    thresholds_K: NDArray[np.float64]


@dataclass(frozen=True)
class Bundle:
    """A clustering that can be asked about any image. `about`: what it is, and its provenance, as in bundle.json."""

    description: BackboneDescription
    backbone: Backbone
    preprocessing: Preprocessing
    features: Features
    reduction: Reduction
    clusters: Clusters
    about: Mapping[str, Any]

    @property
    def k(self) -> int:
        return len(self.clusters.sizes_K)

    @property
    def name(self) -> str:
        """`the final clustering of epoch 20 (k = 10)`."""
        return f"{self.about['clustering']} (k = {self.k})"


def outlier_thresholds(
    distances_N: NDArray[np.float64], labels_N: NDArray[np.int32], sizes_K: NDArray[np.int64]
) -> NDArray[np.float64]:
    """For each cluster the distance that 99 % of its images do not exceed: float64 [K], each a distance that occurs.

    Of fewer than 20 images that says nothing, so smaller clusters (one-image and empty ones among them) have the
    threshold of all images together.
    """
    overall = np.quantile(distances_N, QUANTILE, method="higher")
    thresholds_K = np.full(len(sizes_K), overall, np.float64)
    for cluster in np.flatnonzero(sizes_K >= MEMBERS):
        thresholds_K[cluster] = np.quantile(distances_N[labels_N == cluster], QUANTILE, method="higher")
    return thresholds_K


def write_bundle(target: Path, bundle: Bundle) -> None:
    """Publish the folder: safetensors files, bundle.json, README.txt. Same bundle, same bytes."""
    components, clusters = bundle.reduction.components, bundle.clusters
    reduction = {} if components is None else {name.rpartition("_")[0]: a for name, a in vars(components).items()}
    tensors = {
        "backbone": weights_of(bundle.backbone),
        "reduction": reduction,
        "clusters": {name.rpartition("_")[0]: array for name, array in vars(clusters).items()},
    }
    about = dict(bundle.about) | {
        "k": bundle.k,
        "backbone": vars(bundle.description),
        "preprocessing": vars(bundle.preprocessing),
        "features": vars(bundle.features),
        "reduction": {name: value for name, value in vars(bundle.reduction).items() if name != "components"},
    }
    artifacts.write_bundle_files(target, artifacts.BundleFiles(tensors, about), readme(bundle))


def read_bundle(path: Path) -> Bundle:
    """What `write_bundle` wrote; ArtifactError if it is missing, damaged or of another version. Runs no code of it."""
    files = artifacts.read_bundle_files(path)
    about, tensors = files.about, files.tensors
    try:
        description = BackboneDescription(**about["backbone"])
        backbone = description.build()
        preprocessing = Preprocessing(**{name: _tuple(value) for name, value in about["preprocessing"].items()})
        features = Features(**about["features"])
        found = Components(**_suffixed(tensors["reduction"], Components)) if tensors["reduction"] else None
        reduction = Reduction(components=found, **about["reduction"])
        clusters = Clusters(**_suffixed(tensors["clusters"], Clusters))
    except (KeyError, TypeError) as error:
        raise artifacts.damaged_bundle(path, f"description: {error}") from error
    load_weights(backbone, dict(tensors["backbone"]), path)
    kept = {name: about[name] for name in about if name not in _OF_FILES}
    return Bundle(description, backbone, preprocessing, features, reduction, clusters, kept)


_OF_FILES = {"format", "version", "k", "backbone", "preprocessing", "features", "reduction", "sha256", "digest"}


def readme(bundle: Bundle) -> str:
    """What the folder says of itself."""
    side, channels = bundle.preprocessing.image_size, bundle.preprocessing.channels
    cut = "the centre square" if bundle.preprocessing.crop else "the whole image"
    colours = "grey" if channels == 1 else "RGB"
    with_pca = bundle.reduction.components is not None
    reduced, pca_file = ("PCA, ", "reduction.safetensors   the PCA\n") if with_pca else ("", "")
    threshold, few = f"{QUANTILE:.0%}", MEMBERS
    return f"""\
A DeepCluster bundle: {bundle.name}.

It tells which of {bundle.k} clusters an image belongs to. It needs the Python package deepcluster, and nothing else:
not the project it comes from, nor its images.

    deepcluster assign --bundle FOLDER photo.jpg more/photos --out labels.csv
    deepcluster sort more/photos --into sorted --link --bundle FOLDER

bundle.json             what made it, how images are prepared, sha256 of the other files
backbone.safetensors    weights of the network ({bundle.description.arch}, {bundle.backbone.feature_dim} features)
{pca_file}clusters.safetensors    centroids, sizes, and the distances beyond which an image counts as an outlier

An image is turned upright, laid on white if it is transparent, and made {colours}; {cut} is scaled
to {side}x{side} pixels (bilinear, antialiased). Pixels from 0 to 1 are normalised by mean and std, and go through
the network. Its features ({reduced}scaled to length 1 where bundle.json says so) belong to the nearest centroid, by
Euclidean distance. An outlier lies farther from its centroid than {threshold} of the training images of that cluster
(of all clusters, where it holds fewer than {few}).

The files are safetensors and JSON: to open them runs no code.
"""


def without_paths(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params for a folder that is given away: of files and folders on this machine only the last name stays."""
    shortened = {name: Path(params[name]).name for name in ("root", "weights") if params.get(name)}
    return dict(params) | shortened


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _suffixed(arrays: Mapping[str, artifacts.Array], kind: type) -> dict[str, artifacts.Array]:
    """Arrays by the field of the dataclass that they belong to: "centroids" is centroids_Kd."""
    return {field: arrays[field.rpartition("_")[0]] for field in kind.__dataclass_fields__}  # type: ignore[attr-defined]
