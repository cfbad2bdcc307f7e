"""Standard output and error of a command: closed, full or a terminal, and what of a text may reach a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import GemmaError
from ..printable import reason

# Control characters move cursors, set titles and colours, or answer for the user; these format characters turn the
# order of what follows around. Line breaks and tabs are left to `one_line`.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 1000


class OutputError(GemmaError, OSError):
    """Standard output is closed or cannot be written."""


def escaped(text: str) -> str:
    r"""The text with control characters as \x1b, those that change the direction of writing as \u202e."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """The text without line breaks and control characters, its middle left out where it is very long."""
    line = escaped(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def say(kind: str, text: str) -> None:
    """A line on stderr, `gemma-cuda: error: ...`."""
    print(f"gemma-cuda: {kind}: {one_line(text)}", file=sys.stderr)


class _Wrapped:
    """A text stream that is like another in all but what a subclass says."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output(_Wrapped):
    """Standard output. Raises OutputError, BrokenPipeError as it is; a terminal gets no control characters."""

    def write(self, text: str) -> int:
        with _output_errors():
            return int(self._stream.write(escaped(text) if self._stream.isatty() else text))

    def flush(self) -> None:
        with _output_errors():
            self._stream.flush()


class _Messages(_Wrapped):
    """Standard error. Where it cannot be written, nobody can be told."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a file object that is closed
        raise OutputError(f"standard output: {reason(error)}") from error


@contextmanager
def guarded() -> Iterator[None]:
    """sys.stdout and sys.stderr as a command needs them, and the caller's own again afterwards."""
    stdout, stderr = sys.stdout, sys.stderr
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end a generation
    sys.stdout = _Output(io.StringIO() if stdout is None else stdout)
    sys.stderr = _Messages(io.StringIO() if stderr is None else stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr


def give_up_output() -> None:
    """Lets what is left in sys.stdout's buffer go nowhere: the interpreter flushes it once more at exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def reserve_descriptors() -> None:
    """Opens the null device as 0, 1 and 2 where they are closed: a file of ours would take the number, and the text."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
