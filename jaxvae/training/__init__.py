"""The training state, the training step, and the step on several devices."""
