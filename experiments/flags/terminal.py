"""Text from files and errors, made fit for one line of a terminal."""


def one_line(text: str) -> str:
    """Join lines, and escape what a terminal would obey or could not show.

    >>> one_line("a \\x1b[2J name\\n")
    'a \\\\x1b[2J name'
    """
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
