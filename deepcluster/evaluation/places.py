"""Where images lie among the final clusters: how near to a border, and their places on a plane.

Shapes: N images, D features, K clusters, S images on the map, p components, B rows of a block.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepcluster import artifacts, layout
from deepcluster.blockwise import in_order, l2_normalize, one_thread_a_product
from deepcluster.clustering.assignment import slices
from deepcluster.clustering.kmeans import Clustering
from deepcluster.errors import UserError
from deepcluster.reduction.pca import fit_transform

MapMethod = Literal["pca", "tsne", "umap"]
MOST_ON_MAP = 4000
MOST_COMPONENTS = 50  # what t-SNE and UMAP are given; more only slow them down (van der Maaten and Hinton 2008)
_BLOCK_BYTES = 16 << 20
_NEIGHBOURS = 15


@dataclass(frozen=True)
class Places:
    """Of every image how near it is to another cluster, and of a sample its principal components.

    ratios_N: float32 in [0, 1], the distance to the own centroid over that to the nearest other one; 1 on the border.
    second_N: int32, that other cluster; the own one where there is no other.
    sample_S: int64, rows of the images on the map, evenly spaced over the data set.
    components_Sp: float32, of the L2-normalised features, in descending order of variance.
    explained_variance_ratio_p: float32, of the variance of all features of the sample.
    """

    ratios_N: NDArray[np.float32]
    second_N: NDArray[np.int32]
    sample_S: NDArray[np.int64]
    components_Sp: NDArray[np.float32]
    explained_variance_ratio_p: NDArray[np.float32]


def find_places(features_ND: NDArray[np.float32], found: Clustering, *, most: int = MOST_ON_MAP) -> Places:
    """Of features as they are, and the clustering of them L2-normalised."""
    sample_S = np.linspace(0, len(features_ND) - 1, min(len(features_ND), most)).astype(np.int64)
    rows_SD = l2_normalize(features_ND[sample_S])
    settings = {"components": min(MOST_COMPONENTS, *rows_SD.shape), "seed": 0}
    reduction = fit_transform(rows_SD, backend="streaming", whiten=False, normalize=False, **settings)
    ratios_N, second_N = border_ratios(features_ND, found.centroids_Kd, found.labels_N)
    return Places(ratios_N, second_N, sample_S, reduction.reduced_Nd, reduction.explained_variance_ratio_d)


def border_ratios(
    features_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32], labels_N: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """ratios_N and second_N of `Places`; the features are L2-normalised first. Distances in float64."""
    centres_KD = centroids_KD.astype(np.float64)
    norms_K = np.einsum("kd,kd->k", centres_KD, centres_KD)

    def work(rows: slice) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        block_BD = l2_normalize(features_ND[rows]).astype(np.float64)
        squares_BK = norms_K - 2 * (block_BD @ centres_KD.T) + np.einsum("bd,bd->b", block_BD, block_BD)[:, None]
        np.clip(squares_BK, 0, None, out=squares_BK)
        every_B, own_B = np.arange(len(block_BD)), labels_N[rows]
        first_B = squares_BK[every_B, own_B]
        squares_BK[every_B, own_B] = np.inf
        second_B = squares_BK.argmin(axis=1)
        other_B = squares_BK[every_B, second_B]
        alone_B = np.isinf(other_B)
        ratio_B = np.where(
            alone_B, 0, np.sqrt(np.divide(first_B, other_B, out=np.ones_like(first_B), where=other_B > 0))
        )
        return np.minimum(ratio_B, 1).astype(np.float32), np.where(alone_B, own_B, second_B).astype(np.int32)

    step = max(1, _BLOCK_BYTES // (8 * (features_ND.shape[1] + len(centroids_KD))))
    with one_thread_a_product():
        parts = list(in_order(work, slices(len(features_ND), step)))
    return np.concatenate([ratios for ratios, _ in parts]), np.concatenate([second for _, second in parts])


def on_a_plane(components_Sp: NDArray[np.float32], method: MapMethod, *, seed: int) -> NDArray[np.float32]:
    """float32 [S, 2]: the first two components, or t-SNE or UMAP of all of them, which keep neighbours together.

    UserError for umap without umap-learn. One component gives a line. Fewer than five images, or
    identical ones, are placed by PCA.
    """
    count, width = components_Sp.shape
    if method == "umap":
        _refuse_without_umap()
    if method == "pca" or count < 5 or not components_Sp.any():
        plane_S2 = np.zeros((count, 2), np.float32)
        plane_S2[:, : min(2, width)] = components_Sp[:, :2]
        return plane_S2
    with one_thread_a_product():
        return _tsne(components_Sp, seed) if method == "tsne" else _umap(components_Sp, seed)


def _tsne(components_Sp: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    start = "pca" if min(components_Sp.shape) >= 2 else "random"
    perplexity = min(30.0, (len(components_Sp) - 1) / 3)
    found = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(components_Sp)
    return np.asarray(found, np.float32)


def _umap(components_Sp: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from umap import UMAP

    neighbours = min(_NEIGHBOURS, len(components_Sp) - 1)
    found = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(components_Sp)
    return np.asarray(found, np.float32)


def _refuse_without_umap() -> None:
    from importlib.util import find_spec

    if find_spec("umap") is None:
        raise UserError(
            "report.map: umap needs the package umap-learn; run `pip install umap-learn`, or take pca or tsne"
        )


def write_places(provenance: artifacts.Provenance, places: Places) -> None:
    """Publish map.zarr."""
    with artifacts.write_store(layout.EVALUATION / "map.zarr", "map", provenance) as store:
        store.array("ratios", places.ratios_N, ("sample",))
        store.array("second", places.second_N, ("sample",))
        store.array("map_sample", places.sample_S, ("map_sample",))
        store.array("components", places.components_Sp, ("map_sample", "component"))
        store.array("explained_variance_ratio", places.explained_variance_ratio_p, ("component",))


def read_places(ids: str) -> Places:
    """map.zarr of the data set; ArtifactError if it is missing, damaged or another's."""
    store = artifacts.open_store(layout.EVALUATION / "map.zarr", "map", made_by="evaluate", ids=ids)
    names = ("ratios", "second", "map_sample", "components", "explained_variance_ratio")
    return Places(*(store.read(name) for name in names))
