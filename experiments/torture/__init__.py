"""Torture tests: kills, damage and bad input that runs of the training command must survive."""
