"""DeepCluster (Caron et al. 2018, arXiv 1807.05520) as a pipeline of staged artifacts."""

__version__ = "0.1.0"
