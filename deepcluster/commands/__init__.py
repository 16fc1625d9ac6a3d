"""Commands of `deepcluster` beside the stages, a module for each subject."""
