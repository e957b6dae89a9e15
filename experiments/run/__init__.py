"""Life of a training run: building, training, saving, resuming, finishing, replaying."""
