"""Named data sets and image folders as uint8 arrays."""

from deepcluster.datasets.load import DATA_NAMES, DataName, Dataset, load_dataset

__all__ = ["DATA_NAMES", "DataName", "Dataset", "load_dataset"]
