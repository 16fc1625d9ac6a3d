"""Which settings an epoch has: those of the first epochs, or those of section `refine`."""

from deepcluster.params.sections import Params


def at_epoch(params: Params, epoch: int | None) -> Params:
    """`params` as they apply to that epoch: beyond `refine.after`, section `refine` replaces keys of pca and cluster.

    Whitening gives what separates classes and what varies within them the same weight. That keeps training from
    following the largest directions from the start, but the clusters stay poor ones, and a third of the images change
    theirs each epoch. Once the features are good, k-means without whitening finds better clusters, which stand still
    (docs/ablations.md).
    """
    refine = params.refine
    if epoch is None or refine.after is None or epoch <= refine.after:
        return params
    own = {"k": refine.k, "restarts": refine.restarts, "init": "k-means++", "method": "kmeans"}
    pca = params.pca.model_copy(update={"whiten": refine.whiten})
    return params.model_copy(update={"pca": pca, "cluster": params.cluster.model_copy(update=own)})
