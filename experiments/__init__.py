"""Commands, and everything else with side effects: files, data, clocks and pictures.

python -m experiments.train | evaluate | sample | encode | score | replay | torture | benchmark

Each has --help.
"""
