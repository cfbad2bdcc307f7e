"""Text that comes from files and arguments, made safe to show: no control characters, no escape sequences, not long."""

from __future__ import annotations

_NAME_LENGTH = 120


def printable(text: str) -> str:
    """`text` with everything but line ends escaped that a terminal might obey: control and format characters.

    Unpaired surrogates, which cannot be written at all, are escaped too.
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def shown_name(name: str) -> str:
    """A name (of a tensor, a key, a file) for a message: on one line, printable, at most 120 characters and "..."."""
    cut = name if len(name) <= _NAME_LENGTH else name[:_NAME_LENGTH] + "..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in cut)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
