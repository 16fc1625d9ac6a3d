"""How much memory can still be taken, and the refusal of work that would take more."""

import math
import os
import resource
from pathlib import Path

from deepcluster.errors import ResourceError


def available_memory() -> float:
    """Bytes that can be taken without swapping: what the machine has, a container's limit and `ulimit -v` leave."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: all of it
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, _container_memory(Path("/sys/fs/cgroup")), _address_space())


def refuse_too_large(needed: float, what: str, remedy: str) -> None:
    """ResourceError before the work starts, if it needs more bytes than are available; says both numbers."""
    if problem := too_large(needed):
        raise ResourceError(f"{what} {problem}; {remedy}")


def too_large(needed: float) -> str | None:
    """`need about 9.00 GB of memory and 4.00 GB are available`, or None if they do not need more than there is."""
    available = available_memory()
    if needed <= available:
        return None
    return f"need about {needed / 1e9:.2f} GB of memory and {available / 1e9:.2f} GB are available"


def _container_memory(group: Path) -> float:
    """What a control group (version 2) may take beside what its processes hold; infinite without a limit."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" is no number
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - int(held["anon"]))
    except (OSError, KeyError, ValueError):
        return math.inf


def _address_space() -> float:
    """What RLIMIT_AS leaves of this process's address space; infinite without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return limit
    return max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
