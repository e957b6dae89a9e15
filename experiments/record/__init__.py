"""Records of a run: metrics, files, and what the screen shows."""
