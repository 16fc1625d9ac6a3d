"""Commands of `deepcluster`, a module each; `deepcluster.cli` registers them."""
