"""`deepcluster doctor`: what the machine and the project need, checked one by one, each with the remedy."""
