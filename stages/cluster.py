"""cluster@e: pseudo-labels."""

from typing import TYPE_CHECKING

from stages.common import Epoch, faiss_gpu, main
from stages.together import refuse_idle, started, together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Store
    from deepcluster.clustering.health import Health
    from deepcluster.clustering.kmeans import Clustering
    from deepcluster.clustering.sharded import Part
    from deepcluster.distributed import Process
    from deepcluster.params import Params


def cluster(epoch: Epoch) -> None:
    """Cluster the reduced features: the pseudo-label of every image.

    Reads data/epochs/E/pca.zarr, from epoch 2 on data/history/E-1/clusters.zarr, and params.yaml's section `cluster`.
    Writes data/history/E/clusters.zarr: labels int32 [N], squared distances float32 [N], centroids [K, d],
    objective per iteration, sizes [K]; with `fail_on_collapse` nothing, if clusters or features have collapsed.
    Of several clusterings these are the first's, and beside them stand labels_all [H, N] and centroids_all [H, K, d].
    """
    if started("cluster", epoch, _alone):
        return
    with together("cluster", epoch, _alone) as (params, process):
        found = _clusterings(params, epoch, process)
        if process.first:
            _publish(params, epoch, *found)


def _clusterings(params: "Params", epoch: int, process: "Process") -> "tuple[Store, list[Clustering], list[Health]]":
    """The reduced features, and every clustering with its state, at the first process; nothing collapsed."""
    from deepcluster import artifacts, layout
    from deepcluster.clustering.kmeans import uses_gpu
    from deepcluster.clustering.sharded import Part

    settings, previous = params.cluster, None
    reduced = artifacts.open_store(layout.pca(epoch), "pca", made_by=f"pca@{epoch}", epoch=epoch)
    count, components = reduced.shape("reduced")
    _refuse_unfit(params, epoch, count, components, process)
    if epoch > 1:
        previous = artifacts.open_store(
            layout.clusters(epoch - 1), "clusters", made_by=f"cluster@{epoch - 1}", ids=reduced.ids, epoch=epoch - 1
        )
    told = {"pca": reduced.attributes["digest"], "clusters": previous.attributes["digest"] if previous else ""}
    process.agree(f"cluster@{epoch}", told)
    chunk = reduced.chunk_rows("reduced")
    refuse_idle(process, f"cluster@{epoch}", -(-count // chunk), "chunk")
    own = process.rows(count, chunk)
    part = Part(reduced.read("reduced", own), own.start, count, process)
    gpu = faiss_gpu(deterministic=params.deterministic)
    if process.first and uses_gpu("faiss" if settings.method != "kmeans" else settings.backend, gpu):
        print(f"cluster@{epoch}: faiss on GPUs promises no order of addition; two runs may differ slightly")
    variance_d = _variances(reduced, part)
    found, states = [], []
    for number in range(settings.clusterings):
        previous_N = _previous_labels(previous, number)
        clustering = _clustering(params, epoch, number, part, previous_N)
        if clustering is not None:
            found.append(clustering)
            states.append(_checked(params, epoch, number, clustering, previous_N, variance_d, components))
    return reduced, found, states


def _publish(params: "Params", epoch: int, reduced: "Store", found: "list[Clustering]", states: "list[Health]") -> None:
    import numpy as np

    from deepcluster import artifacts, layout

    first = found[0]
    provenance = artifacts.Provenance(reduced.samples, reduced.ids, epoch, params.seed, params.cluster.model_dump())
    extra = {"health": states[0].attributes(), "trained_on": first.trained_on}
    with artifacts.write_store(layout.clusters(epoch), "clusters", provenance, **extra) as store:
        store.array("labels", first.labels_N, ("sample",))
        store.array("distances", first.distances_N, ("sample",))
        store.array("centroids", first.centroids_Kd, ("cluster", "component"))
        store.array("objective", first.objective, ("iteration",))
        store.array("sizes", first.sizes_K, ("cluster",))
        if len(found) > 1:
            labels_HN = np.stack([each.labels_N for each in found])
            store.array("labels_all", labels_HN, ("clustering", "sample"))
            centroids_HKd = np.stack([each.centroids_Kd for each in found])
            store.array("centroids_all", centroids_HKd, ("clustering", "cluster", "component"))


def _alone(params: "Params") -> str | None:
    settings = params.cluster
    if settings.method != "kmeans":
        return f"cluster.method {settings.method}"
    return f"cluster.backend {settings.backend}" if settings.backend != "faiss" else None


def _variances(reduced: "Store", part: "Part") -> "NDArray[np.floating]":
    """The variances along the principal axes: those of PCA, or else of some of the rows."""
    from deepcluster.clustering.health import spread, variances_of

    if reduced.has("explained_variance"):
        return reduced.read("explained_variance")
    return variances_of(part.at(spread(part.count)))


def _previous_labels(previous: "Store | None", number: int) -> "NDArray[np.int32] | None":
    """Of the same clustering in the epoch before, if there was one."""
    if previous is None:
        return None
    if number == 0:
        return previous.read("labels")
    if not previous.has("labels_all") or number >= previous.shape("labels_all")[0]:
        return None
    labels_N: NDArray[np.int32] = previous.read("labels_all", slice(number, number + 1))[0]
    return labels_N


def _checked(
    params: "Params",
    epoch: int,
    number: int,
    found: "Clustering",
    previous_N: "NDArray[np.int32] | None",
    variance_d: "NDArray[np.floating]",
    components: int,
) -> "Health":
    """The state of a clustering, printed; CollapseError if it has collapsed and the settings do not go on."""
    from deepcluster.clustering.health import Limits, collapsed, health
    from deepcluster.errors import CollapseError
    from deepcluster.params import refined

    settings = params.cluster
    state = health(found.sizes_K, found.labels_N, previous_N, variance_d)
    name = f"cluster@{epoch}" + (f", clustering {number + 1}" if settings.clusterings > 1 else "")
    print(
        f"{name}: {found.sizes_K.min():,} to {found.sizes_K.max():,} images a cluster, effective k "
        f"{state.effective_k:.1f} of {len(found.sizes_K)}{' found' if settings.method == 'pic' else ''}, "
        f"feature rank {state.feature_rank:.1f}" + ("" if state.drift is None else f", drift {state.drift:.2f}")
    )
    limits = Limits(**settings.collapse.model_dump())
    late = refined(params, epoch)
    if problem := collapsed(state, found.sizes_K, components, limits, method=settings.method, refined=late):
        if settings.fail_on_collapse:
            sweep = f"`deepcluster sweep-k --epoch {epoch}` tries other k, " if settings.method == "kmeans" else ""
            raise CollapseError(
                f"{name}: {problem}. Nothing was published; {sweep}cluster.fail_on_collapse: false goes on all the same"
            )
        print(f"warning: {problem}")
    return state


def _clustering(
    params: "Params", epoch: int, number: int, part: "Part", previous_N: "NDArray[np.int32] | None"
) -> "Clustering | None":
    """The clustering of that number, which has a seed of its own; numbered as in the epoch before, if asked.

    Of several processes at the first one.
    """
    from deepcluster.clustering.matching import match_labels, renumbered

    found = _found(params, epoch, number, part, previous_N)
    if found is None or not params.cluster.match_labels or previous_N is None:
        return found
    k = len(found.sizes_K)
    _refuse_matching(k)  # pic tells k only now
    return renumbered(found, match_labels(found.labels_N, previous_N, k))


def _found(
    params: "Params", epoch: int, number: int, part: "Part", previous_N: "NDArray[np.int32] | None"
) -> "Clustering | None":
    from functools import partial

    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.clustering.pic import pic
    from deepcluster.clustering.sharded import kmeans_of_parts
    from deepcluster.clustering.spectral import spectral
    from deepcluster.seeding import derive_seed

    settings, initial_Kd, gpu = params.cluster, None, faiss_gpu(deterministic=params.deterministic)
    if settings.method == "pic":
        return pic(part.rows_Md, **settings.pic.model_dump(), gpu=gpu)
    seed = derive_seed(params.seed, "kmeans", epoch)
    if settings.method == "spectral":
        return spectral(
            part.rows_Md,
            k=settings.k,
            **settings.spectral.model_dump(),
            iterations=settings.iterations,
            restarts=settings.restarts,
            seed=seed,
            init=settings.init,
            gpu=gpu,
        )
    if settings.warm_start and previous_N is not None:
        initial_Kd = _warm_start(part, previous_N, settings.k)
    several = part.process.count > 1
    run = partial(kmeans_of_parts, part) if several else partial(kmeans, part.rows_Md, backend=settings.backend)
    return run(
        k=settings.k,
        iterations=settings.iterations,
        restarts=settings.restarts,
        seed=derive_seed(seed, "clustering", number) if number else seed,
        init=settings.init,
        spherical=settings.spherical,
        points_per_centroid=settings.points_per_centroid,
        initial_centroids_Kd=initial_Kd,
        gpu=gpu,
    )


def _warm_start(part: "Part", previous_N: "NDArray[np.int32]", k: int) -> "NDArray[np.float32] | None":
    from deepcluster.clustering.sharded import means_of_clusters_of_parts
    from deepcluster.clustering.warm_start import means_of_clusters

    if part.process.count == 1:
        return means_of_clusters(part.rows_Md, previous_N, k=k)
    own_M = previous_N[part.first : part.first + len(part.rows_Md)]
    return means_of_clusters_of_parts(part, own_M, k=k)


def _refuse_unfit(params: "Params", epoch: int, count: int, components: int, process: "Process") -> None:
    """What cannot be, or does not fit into memory, before anything is read."""
    from deepcluster.clustering import kmeans, pic, spectral
    from deepcluster.distributed import processes_here
    from deepcluster.errors import NumericsError
    from deepcluster.memory import refuse_too_large
    from deepcluster.params import refined

    settings = params.cluster
    if settings.k > count and refined(params, epoch):
        raise NumericsError(f"refine.k: must be <= N = {count} images; got {settings.k}")
    what = f"cluster: {count:,} x {components:,} values"
    if settings.method == "pic":
        needed = pic.memory_needed(count, components, settings.pic.neighbours)
    elif settings.method == "spectral":
        vectors = spectral.vectors_of(settings.k, settings.spectral.extra_vectors, count)
        needed = spectral.memory_needed(count, components, settings.spectral.neighbours, vectors)
    else:
        needed = kmeans.memory_needed(settings.backend, count, components)
    if settings.match_labels and settings.method != "pic":
        _refuse_matching(settings.k)
    refuse_too_large(needed * processes_here() / process.count, what, "take fewer pca.components")


def _refuse_matching(k: int) -> None:
    from deepcluster.clustering.matching import memory_needed
    from deepcluster.memory import refuse_too_large

    refuse_too_large(memory_needed(k), f"cluster.match_labels: tables of {k:,} clusters", "switch it off")


if __name__ == "__main__":
    main(cluster)
