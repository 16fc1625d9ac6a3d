"""A project of its own in a temporary folder, made from the checkout, and commands run in it and accounted for."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from benchmarks.data import noise, write_idx

CHECKOUT = Path(__file__).resolve().parents[1]
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config")
PACKAGES = ("stages", "deepcluster")
MNIST: dict[str, Any] = {
    "data.name": "mnist",
    "data.root": "images",
    "extract.precision": "bf16",
    "train.precision": "bf16",
    "train.batch_size": 256,
    "train.epoch_size": 1.0,
    "pca.components": 64,
    "cluster.k": 100,
}
"""The shortest epoch that makes sense at 28 pixels, so that what the stages add to it weighs most."""
TRIVIAL: dict[str, Any] = {
    **MNIST,
    "extract.precision": "fp32",
    "train.precision": "fp32",
    "train.batch_size": 32,
    "pca.components": 4,
    "cluster.k": 4,
    "evaluate.restarts": 1,
    "evaluate.k": 4,
}
TRIVIAL_IMAGES = 64


@dataclass(frozen=True)
class Finished:
    """A command that ended: wall and CPU seconds of it and its children, lines with their times."""

    wall: float
    cpu: float
    lines: list[tuple[float, str]]


@dataclass(frozen=True)
class Project:
    root: Path

    def run(self, *command: str) -> Finished:
        """Run to the end; RuntimeError with its output if it fails."""
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=self.root, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        lines = [(time.perf_counter() - started, line.rstrip("\n")) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(text for _, text in lines[-30:]))
        return Finished(wall, usage.ru_utime + usage.ru_stime, lines)

    def plan(self, epochs: int) -> None:
        self.run("deepcluster", "plan", "--epochs", str(epochs))

    def _environment(self) -> dict[str, str]:
        """This Python first, the CPU, nobody's own DVC or git settings, output as it comes."""
        foreign = ("DVC", "GIT_", "DEEPCLUSTER_", "PYTHONPATH")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root / ".dvc/site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.root / ".dvc/global"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.root / ".dvc/system"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",
        }


@contextmanager
def temporary_project(images_NHW: NDArray[np.uint8], params: Mapping[str, Any]) -> Iterator[Project]:
    """The checkout's pipeline and code with these images and params; nothing has run."""
    with tempfile.TemporaryDirectory(prefix="deepcluster-benchmark-", ignore_cleanup_errors=True) as folder:
        project = Project(Path(folder))
        for name in FILES:
            (project.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, project.root / name)
        for name in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / name, project.root / name, ignore=ignored)
        write_idx(project.root / "images", images_NHW)
        set_params(project.root / "params.yaml", params)
        project.run("git", "init", "--quiet")
        yield project


@contextmanager
def trivial_project() -> Iterator[Project]:
    """64 images of 8x8: every stage computes for milliseconds, what remains is what a stage costs."""
    with temporary_project(noise(TRIVIAL_IMAGES, 8, 8), TRIVIAL) as project:
        yield project


def set_params(path: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted keys of params.yaml."""
    yaml = YAML()
    content = yaml.load(path)
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    yaml.dump(content, path)
