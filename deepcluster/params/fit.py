"""Whether params fit a data set and a backbone: asked as soon as both are there, not when the stage's turn comes."""

from collections.abc import Iterator

from deepcluster.params.sections import Params


def misfits(params: Params, *, images: int, features: int) -> Iterator[str]:
    """What `pca` and `cluster` would refuse for so many images, and features of so many values."""
    cluster, pca = params.cluster, params.pca
    if pca.enabled and pca.components > min(images, features):
        yield f"pca.components: must be <= min(N, D) = min({images}, {features}); got {pca.components}"
    if cluster.method == "kmeans" and cluster.k > images:
        yield f"cluster.k: must be <= N = {images} images; got {cluster.k}"
    if cluster.method == "pic" and cluster.pic.neighbours >= images:
        yield f"cluster.pic.neighbours: must be < N = {images} images; got {cluster.pic.neighbours}"
