"""cluster@e: pseudo-labels."""

from typing import TYPE_CHECKING

from stages.common import Epoch, faiss_gpu, main, stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.clustering.kmeans import Clustering
    from deepcluster.params import Params
    from deepcluster.params.sections import Cluster


def cluster(epoch: Epoch) -> None:
    """Cluster the reduced features: the pseudo-label of every image.

    Reads data/epochs/E/pca.zarr, from epoch 2 on data/history/E-1/clusters.zarr, and params.yaml's section `cluster`.
    Writes data/history/E/clusters.zarr: labels int32 [N], squared distances float32 [N], centroids [K, d],
    objective per iteration, sizes [K]; with `fail_on_collapse` nothing, if clusters or features have collapsed.
    """
    from deepcluster import artifacts, layout
    from deepcluster.clustering.health import Limits, collapsed, health, variances
    from deepcluster.clustering.kmeans import uses_gpu
    from deepcluster.clustering.matching import match_labels, renumbered
    from deepcluster.errors import CollapseError

    with stage("cluster", epoch) as params:
        settings, previous_N = params.cluster, None
        reduced = artifacts.open_store(layout.pca(epoch), "pca", made_by=f"pca@{epoch}", epoch=epoch)
        count, components = reduced.shape("reduced")
        _refuse_too_large(settings, count, components)
        rows_Nd = reduced.read("reduced")
        if epoch > 1:
            previous = artifacts.open_store(
                layout.clusters(epoch - 1), "clusters", made_by=f"cluster@{epoch - 1}", ids=reduced.ids, epoch=epoch - 1
            )
            previous_N = previous.read("labels")
        if uses_gpu("faiss" if settings.method == "pic" else settings.backend, faiss_gpu()):
            print(f"cluster@{epoch}: faiss on GPUs promises no order of addition; two runs may differ slightly")
        found = _clustering(params, epoch, rows_Nd, previous_N)
        k = len(found.sizes_K)
        if settings.match_labels and previous_N is not None:
            _refuse_matching(k)  # pic tells k only now
            found = renumbered(found, match_labels(found.labels_N, previous_N, k))
        variance_d = reduced.read("explained_variance") if reduced.has("explained_variance") else variances(rows_Nd)
        state = health(found.sizes_K, found.labels_N, previous_N, variance_d)
        print(
            f"cluster@{epoch}: {found.sizes_K.min():,} to {found.sizes_K.max():,} images a cluster, effective k "
            f"{state.effective_k:.1f} of {k}{' found' if settings.method == 'pic' else ''}, "
            f"feature rank {state.feature_rank:.1f}" + ("" if state.drift is None else f", drift {state.drift:.2f}")
        )
        limits = Limits(**settings.collapse.model_dump())
        if problem := collapsed(state, found.sizes_K, components, limits, method=settings.method):
            if settings.fail_on_collapse:
                sweep = f"`deepcluster sweep-k --epoch {epoch}` tries other k, " if settings.method == "kmeans" else ""
                raise CollapseError(
                    f"cluster@{epoch}: {problem}. Nothing was published; {sweep}"
                    "cluster.fail_on_collapse: false goes on all the same"
                )
            print(f"warning: {problem}")
        provenance = artifacts.Provenance(reduced.samples, reduced.ids, epoch, params.seed, settings.model_dump())
        extra = {"health": state.attributes(), "trained_on": found.trained_on}
        with artifacts.write_store(layout.clusters(epoch), "clusters", provenance, **extra) as store:
            store.array("labels", found.labels_N, ("sample",))
            store.array("distances", found.distances_N, ("sample",))
            store.array("centroids", found.centroids_Kd, ("cluster", "component"))
            store.array("objective", found.objective, ("iteration",))
            store.array("sizes", found.sizes_K, ("cluster",))


def _clustering(
    params: "Params", epoch: int, rows_Nd: "NDArray[np.float32]", previous_N: "NDArray[np.int32] | None"
) -> "Clustering":
    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.clustering.pic import pic
    from deepcluster.clustering.warm_start import means_of_clusters
    from deepcluster.seeding import derive_seed

    settings, initial_Kd = params.cluster, None
    if settings.method == "pic":
        return pic(rows_Nd, **settings.pic.model_dump(), gpu=faiss_gpu())
    if settings.warm_start and previous_N is not None:
        initial_Kd = means_of_clusters(rows_Nd, previous_N, k=settings.k)
    return kmeans(
        rows_Nd,
        k=settings.k,
        backend=settings.backend,
        iterations=settings.iterations,
        restarts=settings.restarts,
        seed=derive_seed(params.seed, "kmeans", epoch),
        init=settings.init,
        spherical=settings.spherical,
        points_per_centroid=settings.points_per_centroid,
        initial_centroids_Kd=initial_Kd,
        gpu=faiss_gpu(),
    )


def _refuse_too_large(settings: "Cluster", count: int, components: int) -> None:
    """Before anything is read."""
    from deepcluster.clustering import kmeans, pic
    from deepcluster.memory import refuse_too_large

    what = f"cluster: {count:,} x {components:,} values"
    if settings.method == "pic":
        needed = pic.memory_needed(count, components, settings.pic.neighbours)
    else:
        needed = kmeans.memory_needed(settings.backend, count, components)
        if settings.match_labels:
            _refuse_matching(settings.k)
    refuse_too_large(needed, what, "take fewer pca.components")


def _refuse_matching(k: int) -> None:
    from deepcluster.clustering.matching import memory_needed
    from deepcluster.memory import refuse_too_large

    refuse_too_large(memory_needed(k), f"cluster.match_labels: tables of {k:,} clusters", "switch it off")


if __name__ == "__main__":
    main(cluster)
