"""Commands of `deepcluster` that are not stages, a module each; cli.py registers them."""
