"""`deepcluster show`: what an artifact is, where it comes from, and what its numbers look like."""
