"""`deepcluster compare`: two clusterings of the same images, of two epochs or of two revisions."""
