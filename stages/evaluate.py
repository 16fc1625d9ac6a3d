"""evaluate: every epoch's numbers, and a final clustering of the last backbone beside the baselines."""

import json
from typing import TYPE_CHECKING

from stages.common import device, faiss_gpu, main, open_images, stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.params import Params


def evaluate() -> None:
    """Score every epoch, and cluster the last backbone's features for the result.

    Reads data/dataset/{images,targets}.zarr, data/dataset/{test,test_targets}.zarr, data/history,
    data/epochs/0/checkpoint, data/epochs/LAST/checkpoint and params.yaml's section `evaluate`. Writes to
    data/evaluation: epochs.csv (a row an epoch), metrics.json, scores.json (what `dvc metrics` shows of it),
    clusters.zarr and clusters.csv (the final clustering: a row an image), map.zarr (where images lie among its
    clusters), lineage.zarr and lineage.csv (clusters followed through the epochs). The only reader of the true labels
    and of the test images. With labels metrics.json also has k-NN, linear probe, retrieval and
    over-clustering, and the scores of the test images (docs/evaluation.md).
    """
    from deepcluster import artifacts, layout
    from deepcluster.evaluation import epochs, final, measures, trust_runs
    from deepcluster.evaluation.lineage import write_lineage
    from deepcluster.evaluation.places import write_places
    from deepcluster.evaluation.tables import write_results
    from deepcluster.headline import scores
    from deepcluster.images import open_rows
    from deepcluster.seeding import derive_seed

    with stage("evaluate") as params:
        settings, images, last = params.evaluate, open_images(), params.epochs
        gpu = faiss_gpu(deterministic=params.deterministic)
        truth = artifacts.open_store(layout.TARGETS, "targets", made_by="prepare", ids=images.ids)
        targets_N = truth.read("targets") if truth.attributes["labelled"] else None
        class_names = truth.attributes["class_names"]
        k = _clusters(params, len(class_names or ()), images.samples)
        test_MCHW, test_targets_M = _test_images(images.ids)
        rows = [epochs.epoch_row(epoch, images.ids, targets_N) for epoch in range(1, last + 1)]
        judge = None
        if targets_N is not None:
            judge = measures.truth(
                targets_N,
                test_targets_M,
                classes=len(class_names),
                settings=settings,
                seed=params.seed,
                device=device(),
                gpu=gpu,
            )
        result = final.evaluate_backbones(
            final.Images(images, open_rows(images), test_MCHW, params.extract.batch_size, device()),
            last_epoch=last,
            targets_N=targets_N,
            truth=judge,
            k=k,
            restarts=settings.restarts,
            seed=derive_seed(params.seed, "evaluate", 0),
            gpu=gpu,
        )
        provenance = artifacts.Provenance(images.samples, images.ids, last, params.seed, settings.model_dump())
        final.write_clusters(layout.EVALUATION / "clusters.zarr", provenance, result, targets_N, class_names)
        write_places(provenance, result.places)
        tables = {
            "lineage.csv": write_lineage(provenance, last=last),
            "clusters.csv": final.clusters_csv(images.strings("sample_ids"), result.clustering),
            "epochs.csv": epochs.to_csv(rows),
        }
        metrics = result.metrics | {"pseudo_labels": epochs.last_scores(rows)}
        metrics["trust"] = trust_runs.trust_section(
            images, result.clustering, params=params, epoch=last, device=device(), gpu=gpu
        )
        artifacts.write_text(layout.EVALUATION / "scores.json", json.dumps(scores(metrics), indent=2) + "\n")
        write_results(metrics, tables)


def _clusters(params: "Params", classes: int, count: int) -> int:
    """Of the final clustering; ParamsError for more than images, before anything is computed."""
    from deepcluster.errors import ParamsError
    from deepcluster.params import final_k

    k = final_k(params, classes)
    if k > count:
        given = "" if params.evaluate.k else ", since null takes the number of classes, else that of the pseudo-labels"
        raise ParamsError(f"evaluate.k: must be <= N = {count} images; got {k}{given}")
    return k


def _test_images(train_ids: str) -> "tuple[NDArray[np.uint8], NDArray[np.int64]] | tuple[None, None]":
    """The test images and their true labels; None twice where there are none, or without labels."""
    from deepcluster import artifacts, layout
    from deepcluster.errors import ArtifactError

    images = artifacts.open_store(layout.TEST_IMAGES, "test_images", made_by="prepare")
    if images.attributes["train_ids"] != train_ids:
        raise ArtifactError(f"{layout.TEST_IMAGES}: belongs to other training images; run `dvc repro prepare`")
    truth = artifacts.open_store(layout.TEST_TARGETS, "targets", made_by="prepare", ids=images.ids)
    if not truth.attributes["labelled"]:
        return None, None
    return images.read("images"), truth.read("targets")


if __name__ == "__main__":
    main(evaluate)
