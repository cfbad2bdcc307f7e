"""Other programs, none of which is waited for without a limit.

A program has a process group of its own, which is killed as a whole, and prints to files: a pipe would be open for as
long as any process that it started, and a read to its end would wait for that one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).parent.parent
POLL_S = 0.05
_ENDING_S = 10.0  # a killed process that is not gone by then waits inside the kernel, for a driver above all


class Child:
    """A program that runs in a directory, ROOT by default, until it ends, or the `with` block does."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        directory: Path = ROOT,
    ) -> None:
        self._out, self._error = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._error,
            start_new_session=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._out.close()
        self._error.close()

    def has_ended(self) -> bool:
        """Whether the program has ended; what it started may go on."""
        try:  # It is left a zombie, so that no other group gets its id before end().
            state = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return state is not None

    def wait(self, limit_s: float) -> bool:
        """Whether it ends within limit_s seconds."""
        deadline = time.monotonic() + limit_s
        while not self.has_ended():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL_S, left))
        return True

    def end(self) -> int | None:
        """Kills it and all of its group. Its exit code, minus the signal that ended it; None if it cannot be ended."""
        with suppress(ProcessLookupError, PermissionError):  # of a group of zombies only
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            return self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            return None

    def printed(self) -> tuple[str, str]:
        """What is in its standard output and error by now."""
        return _text(self._out), _text(self._error)


@dataclass(frozen=True)
class Ended:
    """code: as of Child.end, but None if it was killed at the limit, too."""

    code: int | None
    out: str
    error: str


def run_for(limit_s: float, command: Sequence[str]) -> Ended:
    """Runs a program for at most limit_s seconds. Raises OSError where it cannot be started."""
    with Child(command) as child:
        is_over = child.wait(limit_s)
        code = child.end()
        return Ended(code if is_over else None, *child.printed())


def where(text: str) -> str:
    """Where the main thread was by the last traceback of faulthandler in a text, as " in f, file.py:3"; "" without one.

    Of what it lists, innermost call first, the first that is ours.
    """
    main = text.rpartition("(most recent call first):")[2]
    frames = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', main, re.MULTILINE)
    ours = [frame for frame in frames if Path(frame[0]).is_relative_to(ROOT) and "site-packages" not in frame[0]]
    return next((f" in {function}, {Path(file).name}:{line}" for file, line, function in [*ours, *frames]), "")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
