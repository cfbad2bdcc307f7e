"""Untrusted text, from files and arguments, made safe for messages: printable characters only, on a short line."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with control characters, format characters and unpaired surrogates escaped, line ends excepted.

    A terminal may obey the first two; the last cannot be written at all.
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def shown_line(text: str, length: int = 120) -> str:
    """The first `length` characters of `text`, and "..." where there are more, on one line, all others escaped.

    For names of tensors, keys and files; `arguments.shown` is for values.
    """
    cut = text if len(text) <= length else text[:length] + "..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in cut)


def reason(error: Exception) -> str:
    """The system's message of an OSError without its number and path; the message of any other error."""
    return getattr(error, "strerror", None) or str(error)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
