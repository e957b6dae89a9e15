"""How fast it is: one question a subcommand, answered in interleaved rounds.

python -m experiments.benchmark step | peers | scaling | evaluate | startup

The variants of a comparison are processes of their own (`workers`) that are ready and wait; in
every round each runs one timed segment, so that what else the machine does hits all alike, and
ratios are formed within a round.
"""
