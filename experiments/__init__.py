"""Everything with side effects: commands, files, data, clocks and pictures.

python -m experiments.train | evaluate | sample | encode    (each with --help)
"""
