"""Flags of the commands, and every check that runs before any work starts."""
