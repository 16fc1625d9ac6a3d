"""`python -m benchmarks.faults`: a run of 64 images of noise, damaged and refused in every way; the record of it.

Writes docs/reliability/faults.json: what was tried, what was found, and the line that each kind of fault is told by.
Mounts (a small disk, a read-only one) need root on Linux; without, these are left out and the record says so.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepcluster.threads import settle

settle()
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DEEPCLUSTER_DEVICE": "cpu"}

import numpy as np

from benchmarks import damage, refusals, results
from benchmarks.project import CHECKOUT, Project, set_params, trivial_project
from deepcluster import artifacts, layout
from deepcluster.errors import UserError

RECORD = CHECKOUT / "docs/reliability/faults.json"
EPOCHS = 2
LEFT = (0, 4096, 16384, 65536, 262144, 1 << 20, 2 << 20)
OPEN_FILES = (8, 12, 20)
ADDRESS_SPACE_MB = (400, 800, 1600, 3200)


def stages() -> dict[str, tuple[Callable[[], None], list[Path]]]:
    """A call of each stage, and its outputs."""
    from stages import cluster, evaluate, extract, initialise, pca, prepare, report, train

    images = [layout.IMAGES, layout.TARGETS, layout.TEST_IMAGES, layout.TEST_TARGETS]
    tables = ("clusters.zarr", "map.zarr", "lineage.zarr", "clusters.csv", "lineage.csv", "epochs.csv", "scores.json")
    return {
        "prepare": (prepare.prepare, images),
        "initialise": (initialise.initialise, [layout.checkpoint(0), layout.clusters(0)]),
        "extract@2": (lambda: extract.extract(2), [layout.features(2)]),
        "pca@2": (lambda: pca.pca(2), [layout.pca(2)]),
        "cluster@2": (lambda: cluster.cluster(2), [layout.clusters(2)]),
        "train@2": (lambda: train.train(2), [layout.checkpoint(2), layout.train_steps(2), layout.train_summary(2)]),
        "evaluate": (evaluate.evaluate, [layout.EVALUATION / name for name in (*tables, "metrics.json")]),
        "report": (report.report, [layout.REPORT]),
    }


def damages(count: int, seed: int) -> dict[str, Any]:
    """Bits flipped, then files cut short, emptied and deleted, over all artifacts and a bundle."""
    flips = list(damage.sampled(count, seed=seed))
    others = list(damage.sampled(count, seed=seed + 1, kinds=damage.KINDS[1:]))
    messages = {
        each.kind: each.message for each in flips + others if "damaged" in each.message or "not found" in each.message
    }
    missed = [f"{found.kind}: {found.file}" for found in flips + others if found.outcome == "missed"]
    harmless = sorted({str(found.file) for found in flips + others if found.outcome == "harmless"})
    artifacts_ = Counter(
        next(part for part in each.file.parts if "." in part or part in ("checkpoint", "bundle")) for each in flips
    )
    return {
        "flips": damage.counts(flips),
        "cut short, emptied, deleted": damage.counts(others),
        "missed": missed,
        "harmless": harmless,
        "files hit": len({found.file for found in flips}),
        "flips by artifact": dict(sorted(artifacts_.items())),
        "messages": messages,
    }


def settings_flipped(count: int, seed: int) -> dict[str, Any]:
    """Bits of params.yaml and dvc.lock: refused, another value that DVC then sees as a change, or the same values."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from deepcluster.lockfile import check_lock
    from deepcluster.params import load_params

    rng, tally = np.random.default_rng(seed), dict[str, dict[str, int]]()
    for name in ("params.yaml", "dvc.lock"):
        known = tally.setdefault(name, {"tried": 0, "refused": 0, "seen as a change": 0, "harmless": 0})
        for _ in range(count):
            known["tried"] += 1
            with damage.damaged(Path(name), "bit flipped", rng):
                try:
                    load_params()
                    check_lock()
                    with Repo() as repo:
                        changed = bool(repo.status())
                    known["seen as a change" if changed else "harmless"] += 1
                except (UserError, DvcException):  # an error of another kind would reach the user with a traceback
                    known["refused"] += 1
    return tally


def full_at_every_write(every: int) -> dict[str, Any]:
    """Each stage with each of its writes failing for want of space; then the stage again."""
    found: dict[str, Any] = {}
    for name, (work, outputs) in stages().items():
        tried = list(refusals.failing_writes(work, outputs, every=every))
        found[name] = summary(tried)
        print(f"  {name}: {found[name]['tried']} writes", flush=True)
    return found


def small_disks(project: Path) -> dict[str, Any]:
    """Each stage in a copy of the project on a small disk with so many bytes left."""
    found: dict[str, Any] = {}
    disk = project.parent / f"{project.name} small disk"
    disk.mkdir()
    with refusals.small_disk(disk, 64 << 20):
        for name in ("data", "stages", "deepcluster", "images"):
            shutil.copytree(project / name, disk / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(project / "params.yaml", disk / "params.yaml")
        with inside(disk):
            for name, (work, outputs) in stages().items():
                tried = [
                    refusals.refused(work, outputs, refusals.filled(disk, left), f"{left} bytes left") for left in LEFT
                ]
                found[name] = summary(tried)
    disk.rmdir()
    return found


def summary(tried: list[refusals.Refusal]) -> dict[str, Any]:
    return {
        "tried": len(tried),
        "refused": sum(bool(refusal.message) for refusal in tried),
        "wrong": sorted({name for refusal in tried for name in refusal.wrong}),
        "recovered": sum(refusal.recovered is True for refusal in tried),
        "message": next((refusal.message for refusal in tried if refusal.message), None),
    }


def limits(environment: dict[str, str]) -> list[dict[str, Any]]:
    """Stages as processes of their own, under limits of the shell."""
    found = []
    limits_ = [f"ulimit -n {count}" for count in OPEN_FILES]
    limits_ += [f"ulimit -v {size * 1000}" for size in ADDRESS_SPACE_MB] + ["ulimit -f 1"]
    before = refusals.digests([layout.DATA / "epochs", layout.DATA / "history"])
    for limit in limits_:
        for stage in ("pca", "train"):
            command = [sys.executable, "-m", f"stages.{stage}", "--epoch", "2"]
            status, said = refusals.limited(command, limit=limit, environment=environment)
            same = refusals.digests([layout.DATA / "epochs", layout.DATA / "history"]) == before
            lines = said.strip().splitlines()
            clear = status == 0 or (status == 2 and "Traceback" not in said)
            found.append(
                {"limit": limit, "stage": stage, "status": status, "clear": clear, "artifacts as before": same}
                | {"message": lines[-1] if lines else ""}
            )
            print(f"  {limit}, {stage}: {status} {lines[-1][:150] if lines else ''}", flush=True)
    return found


def read_only(project: Project) -> list[dict[str, Any]]:
    """`deepcluster run` with work to do, its data or DVC's folder mounted read-only; then the same without."""
    found = []
    for place in (".dvc/cache", "data"):
        folder = project.root / place
        before = refusals.digests([project.root / "data/history"])
        artifacts.remove(project.root / "data/history/2/clusters.zarr")
        artifacts.remove(project.root / ".dvc/cache/runs")
        bind = ["mount", "--bind", str(folder), str(folder)]
        subprocess.run(bind, check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        try:
            status, said = refusals.limited(
                ["deepcluster", "run", "train@2"], limit="true", environment=project._environment()
            )
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        lines = said.strip().splitlines()
        project.run("deepcluster", "run")
        recovered = refusals.digests([project.root / "data/history"]) == before
        message = lines[-1].replace(f"{project.root}/", "") if lines else ""
        found.append({"read-only": place, "status": status, "message": message, "again": recovered})
        print(f"  {found[-1]}", flush=True)
    return found


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def mapped_again() -> dict[str, float]:
    """GB/s of the check of a mapped file of images (256 MB, in the page cache), and of a sum over its bytes."""
    path, size = layout.DATA / ".flat.u8", 256 << 20
    artifacts.write_flat(path, iter([np.ones(size // 16, np.uint8)] * 16))

    def check() -> float:
        artifacts.is_whole(path, size)
        return size / 1e9

    def total() -> float:
        int(np.memmap(path, np.uint8, mode="r").sum(dtype=np.uint64))
        return size / 1e9

    found = results.rates([check, total], 5)
    path.unlink()
    return {"check": float(np.median(found[0])), "numpy sum of a map": float(np.median(found[1]))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument(
        "--flips", type=int, default=400, help="bits flipped in artifacts; as many files cut or deleted"
    )
    parser.add_argument("sections", nargs="*", help="some of the sections, added to the record; by default all")
    parser.add_argument("--settings", type=int, default=30, help="bits flipped in each of params.yaml and dvc.lock")
    parser.add_argument("--every", type=int, default=1, help="every so many-th write of a stage fails")
    chosen = parser.parse_args()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if chosen.sections and RECORD.is_file() else {}
    record |= {"machine": results.hardware(), "date": time.strftime("%Y-%m-%d"), "every": chosen.every}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    with trivial_project() as project:
        set_params(project.root / "params.yaml", {"data.test_split": "none", "evaluate.probe": "none"})
        project.plan(EPOCHS)
        project.run("deepcluster", "run")
        project.run("deepcluster", "bundle")
        for path in (project.root / "data").rglob("*"):  # DVC protects what it links; a damage comes all the same
            path.chmod(0o755 if path.is_dir() else 0o644)
        with inside(project.root):
            found = sections(project, chosen)
            for name, work in {name: found[name] for name in chosen.sections or found}.items():
                print(f"== {name}", flush=True)
                try:
                    record[name] = work()
                except subprocess.CalledProcessError as error:
                    record[name] = f"left out: {error}"
                RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{RECORD}")


def sections(project: Project, chosen: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    return {
        "damages": lambda: damages(chosen.flips, seed=1),
        "settings": lambda: settings_flipped(chosen.settings, seed=2),
        "full at every write": lambda: full_at_every_write(chosen.every),
        "small disks": lambda: small_disks(project.root),
        "limits": lambda: limits(project._environment()),
        "read-only": lambda: read_only(project),
        "check of a mapped file, GB/s": mapped_again,
    }


if __name__ == "__main__":
    main()
