"""Which settings an epoch has: those of the first epochs, or those of section `refine`."""

from deepcluster.params.sections import ClusterMethod, Params


def refined(params: Params, epoch: int | None) -> bool:
    """Whether section `refine` decides how that epoch's features are clustered; None: no epoch's own, so never."""
    return epoch is not None and params.refine.after is not None and epoch > params.refine.after


def clustering_methods(params: Params) -> dict[str, ClusterMethod]:
    """The method of section `cluster`, and that of `refine` where there is refining."""
    methods: dict[str, ClusterMethod] = {"cluster": params.cluster.method}
    return methods if params.refine.after is None else methods | {"refine": params.refine.method}


def final_k(params: Params, classes: int) -> int:
    """Clusters of the final clustering of a data set of so many classes (0: without true labels).

    `evaluate.k`, else the number of classes where there are two or more, else the k of the last epoch's pseudo-labels.
    """
    return params.evaluate.k or (classes if classes > 1 else at_epoch(params, params.epochs).cluster.k)


def at_epoch(params: Params, epoch: int | None) -> Params:
    """`params` as they apply to that epoch: beyond `refine.after`, section `refine` replaces keys of pca and cluster.

    Whitening gives what separates classes and what varies within them the same weight. That keeps training from
    following the largest directions from the start, but the clusters stay poor ones, and a third of the images change
    theirs each epoch. Once the features are good, k-means without whitening finds better clusters, which stand still
    (docs/ablations.md). Spectral clusters may have any shape, and are better where classes do
    (docs/results.md).
    """
    refine = params.refine
    if not refined(params, epoch):
        return params
    own = {"k": refine.k, "restarts": refine.restarts, "init": "k-means++", "method": refine.method}
    pca = params.pca.model_copy(update={"whiten": refine.whiten})
    return params.model_copy(update={"pca": pca, "cluster": params.cluster.model_copy(update=own)})
