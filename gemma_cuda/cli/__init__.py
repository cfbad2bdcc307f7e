"""The command `gemma-cuda`: one module per sub-command. Only `main` is here, so that Ctrl-C finds it at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0 done, 2 an error, 70 a bug, 130 interrupted, 141 its output has no reader.

    An error is one line on stderr. Wrong usage and --help raise SystemExit as argparse does. argv: without the
    program's name; None: that of the process, whose signals and closed streams are then handled too.
    """
    try:
        if argv is None:
            _stop_at_once_when_interrupted()
        from . import command  # imports the rest, NumPy and its peers apart

        return command.run_process() if argv is None else command.run(argv)
    except KeyboardInterrupt:
        return 130
    except (MemoryError, OSError) as error:  # no room for the imports themselves
        print(f"gemma-cuda: error: {error or 'out of memory'}", file=sys.stderr)
        return 2


def _stop_at_once_when_interrupted() -> None:
    """Ends the process at Ctrl-C during imports: they turn KeyboardInterrupt into other errors, and have no cleanup."""
    import os
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
