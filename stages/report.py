"""report: one HTML page that shows the run."""

from typing import TYPE_CHECKING

from stages.common import main, open_images, stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Store
    from deepcluster.inspection.report import Lineage, Map
    from deepcluster.params import Params


def report() -> None:
    """Write the report: result, curves, lineage, a map of the features, and the clusters with their images.

    Reads data/dataset/images.zarr, data/evaluation, data/epochs/LAST/pca.zarr and all of params.yaml, with
    report.timings also data/timings.csv. Writes data/report/report.html, one page that needs no network.
    """
    from deepcluster import artifacts, layout
    from deepcluster.clustering.health import Limits
    from deepcluster.evaluation.epochs import read_results
    from deepcluster.evaluation.places import read_places
    from deepcluster.images import open_rows
    from deepcluster.inspection.advice import warnings_of
    from deepcluster.inspection.held_out import tables
    from deepcluster.inspection.report import render_report
    from deepcluster.inspection.tables import named_baselines, timing_cells
    from deepcluster.params import as_yaml
    from deepcluster.params.refine import clustering_methods
    from deepcluster.timings import last_timings

    with stage("report") as params:
        images = open_images()
        final = artifacts.open_store(
            layout.EVALUATION / "clusters.zarr", "final_clusters", made_by="evaluate", ids=images.ids
        )
        rows, metrics = read_results()
        lineage, places = _lineage(images), read_places(images.ids)
        baselines, last = named_baselines(metrics["baselines"]), params.epochs
        reduced = artifacts.open_store(layout.pca(last), "pca", made_by=f"pca@{last}", ids=images.ids, epoch=last)
        targets_N = final.read("targets") if final.attributes["labelled"] else None
        page = render_report(
            title=f"DeepCluster: {images.attributes['params']['name']}",
            summary=metrics["final"] | {"epochs": len(rows), "k": metrics["k"]} | metrics["clusters"],
            epochs=rows,
            baselines=baselines,
            images=open_rows(images),
            sample_ids=images.strings("sample_ids"),
            labels_N=final.read("labels"),
            distances_N=final.read("distances"),
            class_names=final.attributes["class_names"],
            targets_N=targets_N,
            params_text=as_yaml(params),
            warnings=warnings_of(
                epochs=rows,
                lineage=lineage.rows,
                sizes_K=final.read("sizes"),
                final=metrics["final"],
                baselines=baselines,
                limits=Limits(**params.cluster.collapse.model_dump()),
                classes=None if targets_N is None else len(set(targets_N.tolist())),
                components=reduced.shape("reduced")[1],
                methods=clustering_methods(params),
                refined_after=params.refine.after,
            ),
            ratios_N=places.ratios_N,
            lineage=lineage,
            places=_map(params, places.sample_S, places.components_Sp),
            explained_d=reduced.read(explained) if reduced.has(explained := "explained_variance_ratio") else None,
            timings=timing_cells(last_timings()) if params.report.timings else None,
            per_cluster=params.evaluate.gallery,
            seed=params.seed,
            further=tables(metrics),
        )
        artifacts.write_text(layout.REPORT, page)


def _lineage(images: "Store") -> "Lineage":
    from deepcluster import artifacts, layout
    from deepcluster.evaluation.lineage import read_lineage
    from deepcluster.inspection.flow import MOST_EPOCHS
    from deepcluster.inspection.page import chosen
    from deepcluster.inspection.report import Lineage

    rows = read_lineage()
    store = artifacts.open_store(
        layout.EVALUATION / "lineage.zarr", "lineage", made_by="evaluate", ids=images.ids, epoch=len(rows)
    )
    drawn = chosen(range(len(rows)), MOST_EPOCHS)
    trajectories = [store.read("trajectories", slice(place, place + 1))[0] for place in drawn]
    return Lineage(rows, [place + 1 for place in drawn], trajectories)


def _map(params: "Params", sample_S: "NDArray[np.int64]", components_Sp: "NDArray[np.float32]") -> "Map":
    from deepcluster.evaluation.places import on_a_plane
    from deepcluster.inspection.report import Map
    from deepcluster.seeding import derive_seed

    method = params.report.map
    if method != "pca":
        print(f"report: placing {len(sample_S):,} images by {method}")
    return Map(sample_S, on_a_plane(components_Sp, method, seed=derive_seed(params.seed, "gallery", 0)), method)


if __name__ == "__main__":
    main(report)
