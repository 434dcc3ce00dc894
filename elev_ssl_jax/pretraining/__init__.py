"""Learning without labels: the methods, their compiled step, the loop, and the scores of a run."""
