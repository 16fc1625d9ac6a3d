"""What label-free measures are worth on Digits: their rank correlation with true accuracy, over epochs and over runs.

    python -m benchmarks.trust FOLDER                  six settings, seeds 1 and 2: 12 runs of 20 epochs, 20 minutes
    python -m benchmarks.trust FOLDER --seeds 1,2,3
    python -m benchmarks.trust FOLDER --tables         of what is there

Each run lies in a folder of its own, FOLDER/SETTING-SEED; one that has been measured is not run again. The score was
chosen on seed 1, so its table and that of the other seeds stand apart. docs/trust.md has the result.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from deepcluster.threads import settle

settle()  # before torch and faiss load

import numpy as np

from benchmarks.trust_tables import report
from deepcluster import artifacts
from deepcluster.augment import augmentation_of
from deepcluster.evaluation.trust_runs import judge, open_run
from deepcluster.metrics import cluster_statistics, hungarian_accuracy
from deepcluster.params import load_params
from deepcluster.params.edit import edited
from deepcluster.plan import plan
from stages.common import device

CHECKOUT = Path(__file__).resolve().parents[1]
UNREFINED = ["refine.after=null", "refine.k=null"]  # all of them, as when the score was chosen
SETTINGS = {
    "default": [],
    "k10": ["cluster.k=10"],
    "nowhiten": ["pca.whiten=false"],
    "lr4": ["train.optimizer.lr=0.2"],
    "constant": ["train.schedule.name=constant"],
    "noaug": ["augment.rotation=0", "augment.translate=0", "augment.zoom=[1,1]", "augment.shear=0"],
}
RESTARTS = 20


def train_run(folder: Path, seed: int, changes: Sequence[str]) -> None:
    """The pipeline's stages up to the last epoch, in this process, in `folder`."""
    from stages.cluster import cluster
    from stages.extract import extract
    from stages.initialise import initialise
    from stages.pca import pca
    from stages.prepare import prepare
    from stages.train import train

    (folder / "stages").mkdir(parents=True, exist_ok=True)
    text, _ = edited((CHECKOUT / "params.yaml").read_text(encoding="utf-8"), [*UNREFINED, *changes, f"seed={seed}"])
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        plan()
        prepare()
        initialise()
        for epoch in range(1, load_params().epochs + 1):
            for stage in (extract, pca, cluster, train):
                stage(epoch)
            artifacts.remove(Path(f"data/epochs/{epoch}/pca.zarr"))
    finally:
        os.chdir(before)


def measure_run(folder: Path, every: int = 2) -> None:
    """measured.json: a row for each of the run's epochs (`every` second one), views by the checkout's augmentation.

    The accuracy stands in the rows; the tables' scores do not look at it.
    """
    run = open_run(folder)
    targets_N = run.targets()
    assert targets_N is not None
    kind = augmentation_of(load_params(CHECKOUT / "params.yaml").augment, "digits")
    pixels_NCHW, rows, labelings = run.images.read("images"), [], []
    for epoch in [epoch for epoch in run.epochs if epoch % every == 0]:
        found = judge(run, epoch, pixels_NCHW, [kind], restarts=RESTARTS, seed=1, device=device(), gpu=False)
        sizes_K = np.bincount(found.labels_N, minlength=run.k)
        summary = json.loads((folder / f"data/history/{epoch}/train.json").read_text(encoding="utf-8"))
        rows.append(
            {
                "epoch": epoch,
                **asdict(found.trust),
                "drift": found.drift,
                "balance": cluster_statistics(sizes_K)["effective_k"] / run.k,
                "pseudo_label_accuracy": summary["accuracy"],
                "accuracy": hungarian_accuracy(found.labels_N, targets_N),
            }
        )
        labelings.append(found.labels_N.tolist())
    artifacts.write_text(folder / "measured.json", json.dumps({"rows": rows, "labels": labelings}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trust", description="What label-free measures are worth."
    )
    parser.add_argument("folder", type=Path, help="where the runs lie")
    parser.add_argument("--seeds", default="1,2", help="of each setting")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    for seed in [] if chosen.tables else map(int, chosen.seeds.split(",")):
        for setting, changes in SETTINGS.items():
            folder = chosen.folder.resolve() / f"{setting}-{seed}"
            if not (folder / "measured.json").exists():
                train_run(folder, seed, changes)
                measure_run(folder)
    print(report(chosen.folder))


if __name__ == "__main__":
    main()
