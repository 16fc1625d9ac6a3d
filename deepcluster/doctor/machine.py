"""Checks of the machine: interpreter, libraries, devices, memory. Nothing is written and no network touched."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from deepcluster.doctor.checks import Check, Checks, one_line

LITTLE_MEMORY = 2e9  # less, and torch with faiss alone come near it
SHOWN = ("torch", "torchvision", "faiss-gpu", "dvc", "zarr")
DRIVER = "/proc/driver/nvidia/version"


def machine_checks() -> list[tuple[str, Checks]]:
    """All of them, by name."""
    return [
        ("python", python),
        ("libraries", libraries),
        ("python on PATH", python_on_path),
        ("git", git),
        ("processor", processor),
        ("memory", memory),
        ("torch", torch_devices),
        ("faiss", faiss_devices),
        ("environment", environment),
    ]


def python() -> Iterator[Check]:
    """The interpreter, and where it is."""
    yield Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def libraries() -> Iterator[Check]:
    """The versions of what deepcluster needs, against the ranges that it was tested with."""
    try:
        needed = requires("deepcluster") or []
    except PackageNotFoundError:
        yield Check("libraries", "warn", "deepcluster is not installed, only imported", "pip install it")
        return
    wrong = [found for line in needed if (found := requirement_problem(line))]
    for problem, remedy in wrong:
        yield Check("libraries", "fail", problem, remedy)
    if not wrong:
        yield Check("libraries", "ok", ", ".join(f"{name} {_version(name)}" for name in SHOWN))


def requirement_problem(line: str) -> tuple[str, str] | None:
    """What is wrong with a requirement as package metadata have it, and the remedy; None for extras, or if nothing."""
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return None
    found = _version(wanted.name)
    if found is not None and wanted.specifier.contains(found, prereleases=True):
        return None
    is_there = "not installed" if found is None else f"{found} installed"
    return f"{wanted.name}: {is_there}, {wanted.specifier} needed", f"pip install '{wanted.name}{wanted.specifier}'"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python_on_path() -> Iterator[Check]:
    """`dvc repro` starts the stages with the `python` on PATH, which must be the one that has deepcluster."""
    name, folder = "python on PATH", os.path.dirname(sys.executable)
    remedy = f"for `dvc repro` put {folder} first on PATH; `deepcluster run` needs no other python"
    found = shutil.which("python")
    if found is None:
        yield Check(name, "warn", "none", remedy)
        return
    prefix = subprocess.run(  # noqa: S603 - the program that was found
        [found, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, timeout=30, check=False
    ).stdout.strip()
    if os.path.realpath(prefix) == os.path.realpath(sys.prefix):
        yield Check(name, "ok", found)
    else:
        yield Check(name, "warn", f"{found} is another python than deepcluster's", remedy)


def git() -> Iterator[Check]:
    """The program; DVC wants it."""
    found = shutil.which("git")
    if found is None:
        yield Check("git", "fail", "not found", "install git; DVC keeps a project's history with it")
        return
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout  # noqa: S603
    yield Check("git", "ok", one_line(said).removeprefix("git version "))


def processor() -> Iterator[Check]:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    if limit is not None and limit.isdigit() and int(limit) < cores:
        found = f"{cores} cores, of which OMP_NUM_THREADS={limit} lets {limit} compute"
        yield Check("processor", "warn", found, "unset OMP_NUM_THREADS")
    else:
        yield Check("processor", "ok", f"{cores} core{'s' if cores > 1 else ''}")


def memory() -> Iterator[Check]:
    """What can still be taken."""
    from deepcluster.memory import available_memory

    free = available_memory()
    enough = free >= LITTLE_MEMORY
    remedy = "" if enough else "end other programs, or take a machine with more; `deepcluster estimate` says how much"
    yield Check("memory", "ok" if enough else "warn", f"{free / 1e9:.1f} GB available", remedy)


def torch_devices() -> Iterator[Check]:
    """Threads and CUDA devices as torch sees them."""
    import torch

    threads = torch.get_num_threads()
    base = f"{torch.__version__}, {threads} thread{'s' if threads > 1 else ''}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            yield Check("torch", "ok", f"{base}, cuda:{index} {name}")
    elif os.path.exists(DRIVER):
        built = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        yield Check(
            "torch", "warn", f"{base}, a GPU driver but no usable GPU ({built})", "install a torch for this driver"
        )
    else:
        yield Check("torch", "ok", f"{base}, no CUDA device: everything runs on the processor")


def faiss_devices() -> Iterator[Check]:
    """Whether k-means may run on GPUs."""
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    compiled = hasattr(faiss, "StandardGpuResources")
    how = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU" if compiled else "compiled without GPU"
    if gpus == 0 and _torch_has_gpu():
        remedy = "install faiss-gpu, else k-means runs on the processor beside an idle GPU"
        yield Check("faiss", "warn", f"{faiss.__version__}, {how}, though torch has one", remedy)
    else:
        yield Check("faiss", "ok", f"{faiss.__version__}, {how}")


def _torch_has_gpu() -> bool:
    try:
        import torch
    except ImportError:  # the check of torch says so
        return False
    return torch.cuda.is_available()


def environment() -> Iterator[Check]:
    """Variables of ours that are set; wrong ones fail, as they would in the middle of a run."""
    from deepcluster.errors import UserError
    from deepcluster.images import memory_share
    from stages.common import device

    for name, check in (("DEEPCLUSTER_DEVICE", device), ("DEEPCLUSTER_MEMORY_SHARE", memory_share)):
        if not os.environ.get(name):
            continue
        try:
            check()
            yield Check("environment", "ok", f"{name}={os.environ[name]}")
        except UserError as error:
            found = re.sub(rf"^{name}(=\S*)?: ", "", one_line(error))
            yield Check("environment", "fail", f"{name}={os.environ[name]}: {found}", f"unset or correct {name}")
