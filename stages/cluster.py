"""cluster@e: pseudo-labels."""

from stages.common import Epoch, faiss_gpu, main, stage


def cluster(epoch: Epoch) -> None:
    """Cluster the reduced features: the pseudo-label of every image.

    Reads data/epochs/E/pca.zarr, with `warm_start` also data/history/E-1/clusters.zarr, and params.yaml's section
    `cluster`. Writes data/history/E/clusters.zarr: labels int32 [N], squared distances float32 [N], centroids [K, d],
    objective per iteration, sizes [K].
    """
    from deepcluster import artifacts, layout
    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.clustering.warm_start import means_of_clusters
    from deepcluster.metrics import collapse_warning, effective_k
    from deepcluster.seeding import derive_seed

    with stage("cluster", epoch) as params:
        settings = params.cluster
        reduced = artifacts.open_store(layout.pca(epoch), "pca", made_by=f"pca@{epoch}", epoch=epoch)
        rows_Nd, initial_Kd = reduced.read("reduced"), None
        if settings.warm_start and epoch > 1:
            previous = artifacts.open_store(
                layout.clusters(epoch - 1), "clusters", made_by=f"cluster@{epoch - 1}", ids=reduced.ids, epoch=epoch - 1
            )
            initial_Kd = means_of_clusters(rows_Nd, previous.read("labels"), k=settings.k)
        found = kmeans(
            rows_Nd,
            k=settings.k,
            backend=settings.backend,
            iterations=settings.iterations,
            restarts=settings.restarts,
            seed=derive_seed(params.seed, "kmeans", epoch),
            initial_centroids_Kd=initial_Kd,
            gpu=faiss_gpu(),
        )
        provenance = artifacts.Provenance(reduced.samples, reduced.ids, epoch, params.seed, settings.model_dump())
        with artifacts.write_store(layout.clusters(epoch), "clusters", provenance) as store:
            store.array("labels", found.labels_N, ("sample",))
            store.array("distances", found.distances_N, ("sample",))
            store.array("centroids", found.centroids_Kd, ("cluster", "component"))
            store.array("objective", found.objective, ("iteration",))
            store.array("sizes", found.sizes_K, ("cluster",))
        print(
            f"cluster@{epoch}: {found.sizes_K.min():,} to {found.sizes_K.max():,} images a cluster, "
            f"effective k {effective_k(found.sizes_K):.1f} of {settings.k}"
        )
        if warning := collapse_warning(found.sizes_K):
            print(f"warning: {warning}")


if __name__ == "__main__":
    main(cluster)
