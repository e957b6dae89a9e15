"""Devices, processes, signals and versions of the machine that a command runs on."""
