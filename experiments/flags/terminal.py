"""Conversion of text from files and errors to one safe line of a terminal."""

import re


def one_line(text: str) -> str:
    """Join lines, and escape control characters and others that a terminal cannot show.

    >>> one_line("a \\x1b[2J name\\n")
    'a \\\\x1b[2J name'
    """
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def with_flags(text: str) -> str:
    """Write arguments of the library, which a message names, as flags of the commands.

    >>> with_flags("Use binarize=dynamic, or grey_probabilities.")
    'Use --binarize=dynamic, or --grey-probabilities.'
    """
    arguments = r"(?<![-\w])(?:(?:likelihood|binarize|standardize)(?==)|grey_probabilities\b)"
    return re.sub(arguments, lambda found: f"--{found[0].replace('_', '-')}", text)
