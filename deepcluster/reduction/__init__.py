"""PCA of features: in memory (faiss, scikit-learn) or streaming, with whitening and L2 normalisation."""
