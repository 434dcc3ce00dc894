"""Learning from labels: one fine-tuning, experiments of many, studies of several experiments."""
