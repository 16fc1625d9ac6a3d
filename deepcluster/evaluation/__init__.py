"""How good the features and pseudo-labels are, measured against true labels and honest baselines."""
