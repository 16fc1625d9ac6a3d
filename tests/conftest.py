"""A tiny project of its own, in a git repository whose path has a space, for the tests that run real DVC.

The finished run of two epochs is made once, whatever the number of test processes; tests that change it take a copy.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before numpy, torch and faiss load, for this process and those that it starts: the tests' arrays are too small for
# more, and threads that wait for each other beside busy processes took more than half of the processor's time (33 s
# in the place of 13 s in test_estimator). Tests of what several threads do ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from ruamel.yaml import YAML

CHECKOUT = Path(__file__).resolve().parents[1]
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
PACKAGES = ("stages", "deepcluster")
IMAGES = 48
TINY = {
    "epochs": 2,
    "data.name": "folder",
    "data.image_size": 8,
    "data.grayscale": True,
    "pca.components": 4,
    "refine.after": None,
    "cluster.k": 4,
    "train.batch_size": 16,
    "train.epoch_size": 1.0,
    "train.schedule.name": "constant",
    "evaluate.restarts": 1,
}
EPOCH_STAGES = ("extract", "pca", "cluster", "train")


@dataclass(frozen=True)
class Project:
    """A project's folder, and commands run in it as a person would."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str, status: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; it must exit with `status`, unless that is None."""
        found = subprocess.run(
            command, cwd=self.root, env=self.environment | variables, capture_output=True, text=True, timeout=600
        )
        assert status is None or found.returncode == status, f"{command}\n{found.stdout}\n{found.stderr}"
        return found

    def dvc(self, *arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *arguments, status=status)

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro`; the stages that ran, in order."""
        return ran(self.dvc("repro", *arguments))

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def clone(self, target: Path) -> "Project":
        """A fresh `git clone`: no cache, no artifacts."""
        self.run("git", "clone", "--quiet", str(self.root), str(target))
        return Project(target, self.environment)

    def set_params(self, **changes: Any) -> None:
        """Edit params.yaml by hand; `cluster__k=3` sets cluster.k."""
        edit_params(self.root / "params.yaml", {key.replace("__", "."): value for key, value in changes.items()})

    def digests(self, *folders: str) -> dict[str, str]:
        """sha256 of every file below the folders, by path; of all artifacts if none is named."""
        return digests(self.root, *folders)


def ran(finished: subprocess.CompletedProcess[str]) -> list[str]:
    """Stages whose command DVC ran, as its output says."""
    return re.findall(r"^Running stage '(.+)':", finished.stdout, flags=re.MULTILINE)


def digests(root: Path, *folders: str) -> dict[str, str]:
    files = [path for folder in folders or ("data",) for path in sorted((root / folder).rglob("*")) if path.is_file()]
    # .gitignore files are DVC's own; timings differ from run to run
    kept = [path for path in files if path.name not in (".gitignore", "timings.csv")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def edit_params(path: Path, changes: dict[str, Any]) -> None:
    yaml = YAML()
    content = yaml.load(path)
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[key] = value
    yaml.dump(content, path)


def write_images(folder: Path, *, count: int = IMAGES, seed: int = 0) -> None:
    """Two class folders of grey 8x8 images: one class bright above, the other bright on the left."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        name = ("above", "left")[index % 2]
        pixels = rng.integers(0, 60, (8, 8)).astype(np.uint8)
        pixels[(slice(4), slice(None)) if name == "above" else (slice(None), slice(4))] += 150
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{index:03}.png")


def command_environment(folder: Path) -> dict[str, str]:
    """The environment of commands: this Python first, CPU, and nobody's own DVC or git settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "dvc-site"),
        "DVC_GLOBAL_CONFIG_DIR": str(folder / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(folder / "dvc-system"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()},
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


FOREIGN = ("DVC", "GIT_", "DEEPCLUSTER_", "PYTHONPATH", "COLUMNS")
IDENTITY = {"NAME": "Test", "EMAIL": "test@example.org"}


def make_project(root: Path, images: Path, environment: dict[str, str]) -> Project:
    """The checkout's pipeline and code with the tiny settings, planned and committed; nothing has run."""
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / name, root / name)
    for name in PACKAGES:
        shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    edit_params(root / "params.yaml", TINY | {"data.root": str(images)})
    project = Project(root, environment)
    project.run("deepcluster", "plan")
    project.run("git", "init", "--quiet")
    project.commit("A tiny project")
    return project


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared projects"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def unstarted(shared_folder: Path) -> Project:
    """A project in which nothing has run. Never change it: take a `clone` of it."""
    root = shared_folder / "un started"
    environment = command_environment(shared_folder)
    with FileLock(shared_folder / "unstarted.lock"):
        if not (shared_folder / "unstarted.done").exists():
            shutil.rmtree(root, ignore_errors=True)
            write_images(shared_folder / "images")
            make_project(root, shared_folder / "images", environment)
            (shared_folder / "unstarted.done").touch()
    return Project(root, environment)


@pytest.fixture(scope="session")
def finished(unstarted: Project, shared_folder: Path) -> Project:
    """A run of two epochs. Only for tests that change nothing; the others take `project`."""
    root = shared_folder / "a finished run"
    with FileLock(shared_folder / "finished.lock"):
        if not (shared_folder / "finished.done").exists():
            shutil.rmtree(root, ignore_errors=True)
            said = unstarted.clone(root).run("deepcluster", "run").stdout  # test_runner: the same as by `dvc repro`
            (shared_folder / "finished.txt").write_text(said)
            (shared_folder / "finished.done").touch()
    return Project(root, unstarted.environment)


@pytest.fixture(scope="session")
def said(finished: Project, shared_folder: Path) -> str:
    """What `deepcluster run` printed while it made the finished run."""
    return (shared_folder / "finished.txt").read_text()


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of the finished run, with its cache, to change at will."""
    root = tmp_path / "a copy"
    # without what commands that run there at this moment, for another test, keep for themselves
    shutil.copytree(finished.root, root, symlinks=True, ignore=shutil.ignore_patterns("rwlock*", "verify-*"))
    yield Project(root, finished.environment)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def workspace(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Artifacts and settings of the finished run without git or DVC, as current folder, for stages in this process."""
    root = tmp_path / "a workspace"
    shutil.copytree(finished.root / "data", root / "data")
    shutil.copytree(finished.root / "stages", root / "stages")
    shutil.copyfile(finished.root / "params.yaml", root / "params.yaml")
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # DVC makes what it links to its cache read-only
    (root / "deepcluster").symlink_to(finished.root / "deepcluster")  # code, which no test changes
    monkeypatch.chdir(root)
    for name in ("DVC_STAGE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPCLUSTER_DEVICE", "cpu")
    yield Project(root, finished.environment)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle that was trained on nothing."""
    from bundles import noise_bundle

    from deepcluster.using.bundle import write_bundle

    folder = tmp_path_factory.mktemp("a bundle") / "noise"
    write_bundle(folder, noise_bundle())
    return folder


@pytest.fixture
def outcome(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs `deepcluster ARGUMENTS` in this process, by its real entry point: (exit code, stdout, stderr)."""
    import faiss  # noqa: F401  numeric libraries are limited to one thread only once they are loaded
    import sklearn.decomposition  # noqa: F401
    import torch
    from threadpoolctl import threadpool_limits

    from deepcluster.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deepcluster", *arguments])
        capsys.readouterr()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with pytest.raises(SystemExit) as exit_, threadpool_limits(1):  # as OMP_NUM_THREADS for processes
                main()
        finally:
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


@pytest.fixture
def here(outcome: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `deepcluster ARGUMENTS` in a project, in this process, which has loaded torch and DVC; what it prints.

    For tests of what a command does to a project, not of how a process of its own starts and ends.
    """
    import dvc.logger  # noqa: F401  gives DVC's log the streams of the test that imports it first

    monkeypatch.setattr(logging.getLogger("dvc"), "handlers", [])

    def run(project: Project, *arguments: str, status: int = 0) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project.root)
            for name in [name for name in os.environ if name.startswith(FOREIGN)]:
                patch.delenv(name)
            for name, value in (project.environment | {"DEEPCLUSTER_DEVICE": "cpu"}).items():
                patch.setenv(name, value)
            found, out, err = outcome(*arguments)
        assert found == status, f"{arguments}\n{out}\n{err}"
        return out if status == 0 else err

    return run
