"""pca@e: features reduced, whitened and normalised."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from stages.common import Epoch, main, torch_gpu
from stages.together import refuse_idle, started, together, write_shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.params import Params


def pca(epoch: Epoch) -> None:
    """Reduce the features: PCA, whitening, L2 normalisation, each switchable.

    Reads data/epochs/E/features.zarr and params.yaml's section `pca`. Writes data/epochs/E/pca.zarr: reduced float32
    [N, d]; with PCA enabled also components [d, D], mean [D], explained variance [d] and its ratio [d].
    """
    from deepcluster import artifacts, layout
    from deepcluster.reduction.pca import fit, reduce
    from deepcluster.seeding import derive_seed

    if started("pca", epoch, _alone):
        return
    with together("pca", epoch, _alone) as (params, process):
        settings, found = params.pca, None
        features = artifacts.open_store(layout.features(epoch), "features", made_by=f"extract@{epoch}", epoch=epoch)
        process.agree(f"pca@{epoch}", {"features": features.attributes["digest"]})
        count, width = features.shape("features")
        chunk = features.chunk_rows("features")
        shape = count, settings.components if settings.enabled else width
        to_read, to_write = -(-count // chunk), artifacts.shard_count(shape, "float32")
        refuse_idle(process, f"pca@{epoch}", max(to_read, to_write), "chunk" if to_read > to_write else "shard")
        own = process.rows(count, chunk)
        if settings.enabled:
            found = fit(
                lambda rows: features.blocks("features", rows, first=own.start, last=own.stop),
                (count, width),
                backend=settings.backend,
                components=settings.components,
                seed=derive_seed(params.seed, "pca", epoch),
                device=torch_gpu(),
                process=process,
                first_row=own.start,
            )

        def reduced(rows: slice) -> "Iterator[NDArray[np.float32]]":
            start = features.block_start("features", rows.start)
            blocks = reduce(
                lambda number: features.blocks("features", number, first=start, last=rows.stop),
                width,
                found,
                whiten=settings.whiten,
                normalize=settings.normalize,
                first_row=start,
            )
            return _without(blocks, rows.start - start)

        provenance = artifacts.Provenance(features.samples, features.ids, epoch, params.seed, settings.model_dump())
        writing = artifacts.write_store(layout.pca(epoch), "pca", provenance) if process.first else nullcontext()
        with writing as store:
            write_shards(process, store, "reduced", shape, ("sample", "component"), reduced)
            if found is None or store is None:
                return
            store.array("components", found.components_dD, ("component", "feature"))
            store.array("mean", found.mean_D, ("feature",))
            store.array("explained_variance", found.explained_variance_d, ("component",))
            store.array("explained_variance_ratio", found.explained_variance_ratio_d, ("component",))
        kept = found.explained_variance_ratio_d.sum()
        print(f"pca@{epoch}: {settings.components} components keep {kept:.1%} of the variance")


def _alone(params: "Params") -> str | None:
    settings = params.pca
    return f"pca.backend {settings.backend}" if settings.enabled and settings.backend != "streaming" else None


def _without(blocks: "Iterator[NDArray[np.float32]]", skipped: int) -> "Iterator[NDArray[np.float32]]":
    """The blocks without the first rows of the first one."""
    for block in blocks:
        yield block[skipped:]
        skipped = 0


if __name__ == "__main__":
    main(pca)
