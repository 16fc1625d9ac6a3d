"""Named data sets and image folders as uint8 arrays."""

from deepcluster.datasets.load import DATA_NAMES, Dataset, load_dataset
from deepcluster.params.sections import DataName

__all__ = ["DATA_NAMES", "DataName", "Dataset", "load_dataset"]
