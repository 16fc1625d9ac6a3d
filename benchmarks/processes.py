"""Each stage by two processes beside one, on the CPU with gloo, one thread each.

The processor time of one process against that of the busier of two: what the wall clock would say where each has a
core to itself and none waits for the other. On a machine that others use it does not say that; its ratio, waiting and
all, stands beside. Start-up is left out. Chunks are 128 KB and shards 2 MB, instead of 1 and 128 MB, so that a small
data set has enough of them to share out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.data import Source

STAGES = ("pca", "cluster", "train", "extract")  # extract last: its own features are narrower than the dump for pca
CHUNK_BYTES, SHARD_BYTES = 128 << 10, 2 << 20
WIDTH = 2048
PARAMS = """\
epochs: 1
model: {arch: convnet}
extract: {batch_size: 256}
pca: {components: 64}
cluster: {k: 1000, fail_on_collapse: false}
train: {batch_size: 256}
augment: {crop: false, rotation: 10.0}
"""
HEADER = ("stage", "one process", "busier of two", "ratio", "lowest", "highest", "ratio of wall clocks", "rounds")


@dataclass(frozen=True)
class Ratio:
    """Processor seconds, medians; ratios of one process's time to two processes', as of the same round."""

    stage: str
    one: float
    two: float
    ratio: float
    lowest: float
    highest: float
    wall_ratio: float
    rounds: int


def measure(source: Source, *, quick: bool, long: bool, images: int | None, output: Path) -> list[Ratio]:
    """All stages; prints the table."""
    count, rounds = images or (5_000 if quick else 20_000), 1 if quick else 3
    with tempfile.TemporaryDirectory(prefix="processes-") as folder:
        _run(Path(folder), "prepare", 1, images=count)
        found = [_ratio(Path(folder), stage, rounds) for stage in STAGES]
    print(results.table(HEADER, [_row(each) for each in found]))
    return found


def _ratio(folder: Path, stage: str, rounds: int) -> Ratio:
    pairs = [(_run(folder, stage, 1), _run(folder, stage, 2)) for _ in range(rounds)]
    ratios = [one[0] / two[0] for one, two in pairs]
    found = Ratio(
        stage,
        statistics.median(one[0] for one, _ in pairs),
        statistics.median(two[0] for _, two in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(one[1] / two[1] for one, two in pairs),
        rounds,
    )
    print("  " + "  ".join(_row(found)), flush=True)
    return found


def _row(found: Ratio) -> tuple[str, ...]:
    seconds = f"{found.one:.2f} s", f"{found.two:.2f} s"
    ratios = (f"{ratio:.2f}" for ratio in (found.ratio, found.lowest, found.highest, found.wall_ratio))
    return (found.stage, *seconds, *ratios, str(found.rounds))


def _run(folder: Path, stage: str, processes: int, *, images: int = 0) -> tuple[float, float]:
    """(processor seconds of the busiest process, wall seconds of the longest) of the stage, started by torchrun."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DEEPCLUSTER_DEVICE": "cpu",
        "DEEPCLUSTER_PROGRESS_SECONDS": "inf",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    command = [sys.executable, *launcher, "benchmarks.processes", stage, str(images)]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    taken = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    return max(each[0] for each in taken), max(each[1] for each in taken)


def work(stage: str, images: int) -> None:
    """One of the processes: does the stage, and leaves the seconds that it took beside the project."""
    import faiss  # noqa: F401  loaded before the clock starts, as all that follows
    import scipy.sparse  # noqa: F401
    import torch.distributed  # noqa: F401
    import zarr  # noqa: F401

    from deepcluster.artifacts import store
    from stages.cluster import cluster
    from stages.extract import extract
    from stages.pca import pca
    from stages.train import train

    store.CHUNK_BYTES, store.SHARD_BYTES = CHUNK_BYTES, SHARD_BYTES
    stages = {"extract": extract, "pca": pca, "cluster": cluster, "train": train}
    began, started = time.process_time(), time.perf_counter()
    if stage == "prepare":
        _prepare(images)
    else:
        stages[stage](1)
    seconds, wall = time.process_time() - began, time.perf_counter() - started
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps([seconds, wall]))


def _prepare(count: int) -> None:
    """A project of one epoch with images and a feature dump; what each stage reads the one before it has written."""
    from benchmarks.data import blobs
    from benchmarks.stages import correlated
    from deepcluster import artifacts, layout
    from stages.initialise import initialise

    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    pixels_NCHW = blobs(count)[:, None]
    about = artifacts.Provenance(count, "benchmark", params={"name": "digits"})
    with artifacts.write_store(layout.IMAGES, "images", about, mean=[0.5], std=[0.3]) as store:
        store.array("images", pixels_NCHW, ("sample", "channel", "y", "x"))
    initialise()
    about = artifacts.Provenance(count, "benchmark", epoch=1)
    with artifacts.write_store(layout.features(1), "features", about) as store:
        store.array("features", correlated(count, WIDTH), ("sample", "feature"))


def main(words: Sequence[str]) -> None:
    work(words[0], int(words[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
