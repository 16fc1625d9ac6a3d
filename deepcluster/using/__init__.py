"""What a finished clustering is for: bundles, clusters of other images, folders sorted by cluster."""
