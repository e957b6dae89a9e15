"""Machine that a command runs on: devices, processes, signals and package versions."""
