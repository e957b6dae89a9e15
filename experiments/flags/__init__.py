"""Flags of the commands, and everything that is checked before any work."""
