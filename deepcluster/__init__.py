"""DeepCluster (Caron et al. 2018, arXiv 1807.05520) as a pipeline of staged artifacts."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """DeepCluster, imported when it is asked for: it needs torch, and `deepcluster --help` must not wait for that."""
    if name == "DeepCluster":
        return import_module("deepcluster.estimator").DeepCluster
    raise AttributeError(f"module 'deepcluster' has no attribute {name!r}")
