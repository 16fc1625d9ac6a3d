"""cluster@e: pseudo-labels."""

from stages.common import Epoch, faiss_gpu, main, stage


def cluster(epoch: Epoch) -> None:
    """Cluster the reduced features: the pseudo-label of every image.

    Reads data/epochs/E/pca.zarr, from epoch 2 on data/history/E-1/clusters.zarr, and params.yaml's section `cluster`.
    Writes data/history/E/clusters.zarr: labels int32 [N], squared distances float32 [N], centroids [K, d],
    objective per iteration, sizes [K]; with `fail_on_collapse` nothing, if clusters or features have collapsed.
    """
    from deepcluster import artifacts, layout
    from deepcluster.clustering.health import Limits, collapsed, health, variances
    from deepcluster.clustering.kmeans import kmeans, memory_needed, uses_gpu
    from deepcluster.clustering.warm_start import means_of_clusters
    from deepcluster.errors import CollapseError
    from deepcluster.memory import refuse_too_large
    from deepcluster.seeding import derive_seed

    with stage("cluster", epoch) as params:
        settings, previous_N, initial_Kd = params.cluster, None, None
        reduced = artifacts.open_store(layout.pca(epoch), "pca", made_by=f"pca@{epoch}", epoch=epoch)
        count, components = reduced.shape("reduced")
        what = f"cluster: {count:,} x {components:,} values"
        refuse_too_large(memory_needed(settings.backend, count, components), what, "take fewer pca.components")
        rows_Nd = reduced.read("reduced")
        if epoch > 1:
            previous = artifacts.open_store(
                layout.clusters(epoch - 1), "clusters", made_by=f"cluster@{epoch - 1}", ids=reduced.ids, epoch=epoch - 1
            )
            previous_N = previous.read("labels")
            if settings.warm_start:
                initial_Kd = means_of_clusters(rows_Nd, previous_N, k=settings.k)
        if uses_gpu(settings.backend, faiss_gpu()):
            print(f"cluster@{epoch}: faiss on GPUs promises no order of addition; two runs may differ slightly")
        found = kmeans(
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
        variance_d = reduced.read("explained_variance") if reduced.has("explained_variance") else variances(rows_Nd)
        state = health(found.sizes_K, found.labels_N, previous_N, variance_d)
        print(
            f"cluster@{epoch}: {found.sizes_K.min():,} to {found.sizes_K.max():,} images a cluster, "
            f"effective k {state.effective_k:.1f} of {settings.k}, feature rank {state.feature_rank:.1f}"
            + ("" if state.drift is None else f", drift {state.drift:.2f}")
        )
        if problem := collapsed(state, found.sizes_K, components, Limits(**settings.collapse.model_dump())):
            if settings.fail_on_collapse:
                raise CollapseError(
                    f"cluster@{epoch}: {problem}. Nothing was published; `deepcluster sweep-k --epoch {epoch}` tries "
                    "other k, cluster.fail_on_collapse: false goes on all the same"
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


if __name__ == "__main__":
    main(cluster)
