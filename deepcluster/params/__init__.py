"""params.yaml as frozen, typed sections."""

from deepcluster.params.data_defaults import flips, padding
from deepcluster.params.file import PARAMS_FILE, as_yaml, load_params
from deepcluster.params.fit import misfits
from deepcluster.params.listed import changed_params, listed
from deepcluster.params.refine import at_epoch, final_k, refined
from deepcluster.params.sections import (
    Arch,
    Augment,
    ClusterMethod,
    Collapse,
    Contrastive,
    DataName,
    Head,
    Optimizer,
    Params,
    Schedule,
    Spectral,
)

__all__ = [
    "PARAMS_FILE",
    "Arch",
    "Augment",
    "ClusterMethod",
    "Collapse",
    "Contrastive",
    "DataName",
    "Head",
    "Optimizer",
    "Params",
    "Schedule",
    "Spectral",
    "as_yaml",
    "at_epoch",
    "changed_params",
    "final_k",
    "flips",
    "listed",
    "load_params",
    "misfits",
    "padding",
    "refined",
]
