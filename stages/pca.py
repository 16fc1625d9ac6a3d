"""pca@e: features reduced, whitened and normalised."""

from stages.common import Epoch, main, stage, torch_gpu


def pca(epoch: Epoch) -> None:
    """Reduce the features: PCA, whitening, L2 normalisation, each switchable.

    Reads data/epochs/E/features.zarr and params.yaml's section `pca`. Writes data/epochs/E/pca.zarr: reduced float32
    [N, d]; with PCA enabled also components [d, D], mean [D], explained variance [d] and its ratio [d].
    """
    from deepcluster import artifacts, layout
    from deepcluster.reduction.pca import fit, reduce
    from deepcluster.seeding import derive_seed

    with stage("pca", epoch) as params:
        settings, found = params.pca, None
        features = artifacts.open_store(layout.features(epoch), "features", made_by=f"extract@{epoch}", epoch=epoch)
        count, width = features.shape("features")
        if settings.enabled:
            found = fit(
                lambda rows: features.blocks("features", rows),
                (count, width),
                backend=settings.backend,
                components=settings.components,
                seed=derive_seed(params.seed, "pca", epoch),
                device=torch_gpu(),
            )
        reduced = reduce(
            lambda rows: features.blocks("features", rows),
            width,
            found,
            whiten=settings.whiten,
            normalize=settings.normalize,
        )
        provenance = artifacts.Provenance(features.samples, features.ids, epoch, params.seed, settings.model_dump())
        with artifacts.write_store(layout.pca(epoch), "pca", provenance) as store:
            store.rows("reduced", reduced, total=count, dimensions=("sample", "component"))
            if found is None:
                return
            store.array("components", found.components_dD, ("component", "feature"))
            store.array("mean", found.mean_D, ("feature",))
            store.array("explained_variance", found.explained_variance_d, ("component",))
            store.array("explained_variance_ratio", found.explained_variance_ratio_d, ("component",))
        kept = found.explained_variance_ratio_d.sum()
        print(f"pca@{epoch}: {settings.components} components keep {kept:.1%} of the variance")


if __name__ == "__main__":
    main(pca)
