"""`deepcluster new`: a folder of images looked at, settings chosen for it, and a project written around them."""
