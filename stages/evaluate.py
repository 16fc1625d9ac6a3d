"""evaluate: every epoch's numbers, and a final clustering of the last backbone beside the baselines."""

import json

from stages.common import device, faiss_gpu, main, open_images, stage


def evaluate() -> None:
    """Score every epoch, and cluster the last backbone's features for the result.

    Reads data/dataset/{images,targets}.zarr, data/history, data/epochs/0/checkpoint, data/epochs/LAST/checkpoint and
    params.yaml's section `evaluate`. Writes to data/evaluation: epochs.csv (a row an epoch), metrics.json,
    clusters.zarr and clusters.csv (the final clustering: a row an image), map.zarr (where images lie among its
    clusters), lineage.zarr and lineage.csv (clusters followed through the epochs). The only reader of the true labels.
    """
    from deepcluster import artifacts, layout
    from deepcluster.evaluation import epochs, final, trust_runs
    from deepcluster.evaluation.lineage import write_lineage
    from deepcluster.evaluation.places import write_places
    from deepcluster.params import at_epoch
    from deepcluster.seeding import derive_seed

    with stage("evaluate") as params:
        settings, images, last = params.evaluate, open_images(), params.epochs
        truth = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare", ids=images.ids)
        targets_N = truth.read("targets") if truth.attributes["labelled"] else None
        class_names = truth.attributes["class_names"]
        rows = [epochs.epoch_row(epoch, images.ids, targets_N) for epoch in range(1, last + 1)]
        result = final.evaluate_backbones(
            images,
            last_epoch=last,
            targets_N=targets_N,
            k=settings.k or (len(class_names) if class_names else at_epoch(params, last).cluster.k),
            restarts=settings.restarts,
            batch_size=params.extract.batch_size,
            seed=derive_seed(params.seed, "evaluate", 0),
            device=device(),
            gpu=faiss_gpu(),
        )
        provenance = artifacts.Provenance(images.samples, images.ids, last, params.seed, settings.model_dump())
        final.write_clusters(layout.EVALUATION / "clusters.zarr", provenance, result, targets_N, class_names)
        write_places(provenance, result.places)
        write_lineage(provenance, last=last)
        csv = final.clusters_csv(images.strings("sample_ids"), result.clustering)
        artifacts.write_text(layout.EVALUATION / "clusters.csv", csv)
        artifacts.write_text(layout.EVALUATION / "epochs.csv", epochs.to_csv(rows))
        metrics = result.metrics | {"pseudo_labels": epochs.last_scores(rows)}
        metrics["trust"] = trust_runs.trust_section(
            images, result.clustering, params=params, epoch=last, device=device(), gpu=faiss_gpu()
        )
        artifacts.write_text(layout.EVALUATION / "metrics.json", json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main(evaluate)
