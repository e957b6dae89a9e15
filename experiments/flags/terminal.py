"""Conversion of text from files and errors to one safe line of a terminal."""


def one_line(text: str) -> str:
    """Join lines, and escape control characters and others that a terminal cannot show.

    >>> one_line("a \\x1b[2J name\\n")
    'a \\\\x1b[2J name'
    """
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
