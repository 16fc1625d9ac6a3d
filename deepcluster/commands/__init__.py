"""Commands of `deepcluster`, a module each."""
