"""Whether params fit a data set and a backbone: asked as soon as both are there, not when the stage's turn comes."""

from collections.abc import Iterator

from deepcluster.params.refine import clustering_methods
from deepcluster.params.sections import Params


def misfits(params: Params, *, images: int, features: int) -> Iterator[str]:
    """What `pca`, `cluster` and `evaluate` would refuse for so many images, and features of so many values."""
    cluster, pca, refine, final = params.cluster, params.pca, params.refine, params.evaluate.k
    if pca.enabled and pca.components > min(images, features):
        yield f"pca.components: must be <= min(N, D) = min({images}, {features}); got {pca.components}"
    if cluster.method != "pic" and cluster.k > images:
        yield f"cluster.k: must be <= N = {images} images; got {cluster.k}"
    if refine.after is not None and refine.k is not None and refine.k > images:
        yield f"refine.k: must be <= N = {images} images; got {refine.k}"
    if final is not None and final > images:
        yield f"evaluate.k: must be <= N = {images} images; got {final}"
    if cluster.method == "pic" and cluster.pic.neighbours >= images:
        yield f"cluster.pic.neighbours: must be < N = {images} images; got {cluster.pic.neighbours}"
    if "spectral" in clustering_methods(params).values() and cluster.spectral.neighbours >= images:
        yield f"cluster.spectral.neighbours: must be < N = {images} images; got {cluster.spectral.neighbours}"
