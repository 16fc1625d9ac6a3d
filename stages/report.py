"""report: one HTML page that shows the run."""

from stages.common import main, open_images, stage


def report() -> None:
    """Write the report: curves, baselines, and each cluster's most central images.

    Reads data/dataset/images.zarr and data/evaluation. Writes data/report/report.html, one page that needs no network.
    """
    from deepcluster import artifacts, layout
    from deepcluster.evaluation.epochs import read_results
    from deepcluster.images import open_rows
    from deepcluster.inspection.held_out import tables
    from deepcluster.inspection.report import render_report
    from deepcluster.inspection.tables import named_baselines
    from deepcluster.metrics import collapse_warning
    from deepcluster.params import as_yaml

    with stage("report") as params:
        images = open_images()
        final = artifacts.open_store(
            layout.EVALUATION / "clusters.zarr", "final_clusters", made_by="evaluate", ids=images.ids
        )
        rows, metrics = read_results()
        page = render_report(
            title=f"DeepCluster: {images.attributes['params']['name']}",
            summary=metrics["final"] | {"epochs": len(rows), "k": metrics["k"]} | metrics["clusters"],
            epochs=rows,
            baselines=named_baselines(metrics["baselines"]),
            images=open_rows(images),
            sample_ids=images.strings("sample_ids"),
            labels_N=final.read("labels"),
            distances_N=final.read("distances"),
            class_names=final.attributes["class_names"],
            targets_N=final.read("targets") if final.attributes["labelled"] else None,
            params_text=as_yaml(params),
            warnings=[warning] if (warning := collapse_warning(final.read("sizes"))) else [],
            per_cluster=params.evaluate.gallery,
            further=tables(metrics),
        )
        artifacts.write_text(layout.REPORT, page)


if __name__ == "__main__":
    main(report)
