"""Everything with side effects: commands, files, data, clocks and pictures.

python -m experiments.train | evaluate | sample | encode | benchmark    (each with --help)
"""
