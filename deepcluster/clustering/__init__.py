"""Clustering of reduced rows into pseudo-labels."""
