"""Everything with side effects: commands, files, data, clocks and pictures.

python -m experiments.train | evaluate | sample | encode | replay | torture | benchmark

Each has --help.
"""
