"""Speed measurements: each subcommand answers one question, in interleaved rounds.

python -m experiments.benchmark step | peers | scaling | evaluate | startup | reading

Each variant of a comparison is a separate process (`workers`) that waits for its turn. In every
round each variant runs one timed segment, so that other load on the machine affects all variants
alike, and ratios are formed within a round.
"""
