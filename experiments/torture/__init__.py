"""What a run must survive, done to real runs of the training command."""
