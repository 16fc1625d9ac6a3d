"""Where artifacts lie, relative to the project's folder."""

from pathlib import Path

DATA = Path("data")
IMAGES = DATA / "dataset/images.zarr"
TARGETS = DATA / "dataset/targets.zarr"
TEST_IMAGES = DATA / "dataset/test.zarr"
TEST_TARGETS = DATA / "dataset/test_targets.zarr"
EVALUATION = DATA / "evaluation"
REPORT = DATA / "report/report.html"
AUGMENTATIONS = DATA / "augmentations.png"
TIMINGS = DATA / "timings.csv"
TRUST = DATA / "trust"
HISTORY = DATA / "history"
EPOCHS = DATA / "epochs"
SEEDS = DATA / "seeds"
PROGRESS = DATA / "progress"
SCHEDULE = Path("stages/schedule.yaml")
PRUNED = Path("stages/pruned.yaml")


def epoch_folder(epoch: int) -> Path:
    """What is large: feature dumps and checkpoints."""
    return EPOCHS / str(epoch)


def features(epoch: int) -> Path:
    return epoch_folder(epoch) / "features.zarr"


def pca(epoch: int) -> Path:
    return epoch_folder(epoch) / "pca.zarr"


def checkpoint(epoch: int) -> Path:
    return epoch_folder(epoch) / "checkpoint"


def history_folder(epoch: int) -> Path:
    """What evaluate reads of every epoch: small files only, so that pruned feature dumps do not matter to it."""
    return HISTORY / str(epoch)


def clusters(epoch: int) -> Path:
    return history_folder(epoch) / "clusters.zarr"


def train_summary(epoch: int) -> Path:
    return history_folder(epoch) / "train.json"


def train_steps(epoch: int) -> Path:
    return history_folder(epoch) / "steps.csv"


def made_by_checkpoint(epoch: int) -> str:
    """The DVC stage that writes `checkpoint(epoch)`."""
    return f"train@{epoch}" if epoch else "initialise"


def progress(stage: str, epoch: int) -> Path:
    """What a stage has done so far, for the next try if it is killed; no stage's output, which DVC would remove."""
    return PROGRESS / f"{stage}-{epoch}"


def filters(epoch: int) -> Path:
    """Pictures of what a backbone's channels respond to; no stage's output."""
    return DATA / "filters" / str(epoch)


def sweep(epoch: int) -> Path:
    """What `deepcluster sweep-k` found; no stage's output."""
    return DATA / "sweeps" / str(epoch)


def seed_result(seed: int) -> Path:
    """What `deepcluster seeds` found for one seed; no stage's output."""
    return SEEDS / f"seed-{seed}.json"


def seed_work(seed: int) -> Path:
    """The copy of the project that a seed runs in, until it has finished."""
    return SEEDS / "work" / f"seed-{seed}"
