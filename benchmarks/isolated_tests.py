"""Runs tests so that one that hangs or breaks the GPU costs no other: the next ones get a process of their own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_COLLECT_S = 90.0  # to import and to collect, with a GPU context and torch


@dataclass(frozen=True)
class Result:
    """outcome: passed, failed, skipped, hung (it ran past its limit and was killed), or died (its process did)."""

    test: str
    outcome: str
    seconds: float
    detail: str


def run_isolated(
    arguments: Sequence[str],
    *,
    limit_s: float,
    deadline: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Result]:
    """Results of the tests that pytest collects with these arguments, in order.

    A process goes on until a test fails or takes more than limit_s seconds; another one runs what is left. Tests that
    had not started at `deadline` (of time.monotonic) are skipped.
    """
    left: list[str] | None = None
    while left is None or left:
        with _Child([*arguments] if left is None else [*_options(arguments), *left], environment) as child:
            collected = child.next_event(min(_COLLECT_S, deadline - time.monotonic()))
            if collected is None or collected["event"] != "collected":
                yield Result(" ".join(arguments), "died", 0.0, f"no tests were collected: {child.output()}")
                return
            left = list(collected["tests"]) if left is None else left
            while left:
                if time.monotonic() > deadline:
                    yield from (Result(test, "skipped", 0.0, "no time was left") for test in left)
                    return
                result = _one(child, limit_s)
                if result is None:
                    yield Result(left.pop(0), "died", 0.0, child.output())
                    break
                left.remove(result.test)
                yield result
                if result.outcome in ("failed", "hung", "died"):
                    break


def _one(child: _Child, limit_s: float) -> Result | None:
    """The next test's result; None if the process ended before one began."""
    start = child.next_event(_COLLECT_S)
    if start is None:
        return None
    began = time.monotonic()
    end = child.next_event(limit_s)
    seconds = time.monotonic() - began
    if end is not None:
        return Result(end["test"], end["outcome"], end["seconds"], end["detail"])
    if child.is_alive():
        return Result(start["test"], "hung", seconds, f"it took more than {limit_s:.0f} s and was ended")
    return Result(start["test"], "died", seconds, child.output())


def _options(arguments: Sequence[str]) -> list[str]:
    """Of pytest's arguments those that choose no tests; options come as --name=value, but for -k."""
    return [argument for argument in arguments if argument.startswith("--")]


class _Child:
    """A pytest process and the pipe through which benchmarks/pytest_progress.py speaks."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None) -> None:
        self._pipe, inner = os.pipe()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "benchmarks.pytest_progress", *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {}), "PROGRESS_FD": str(inner)},
            pass_fds=[inner],
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(inner)
        self._text = b""

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pipe)
        self._printed.close()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def next_event(self, limit_s: float) -> dict[str, Any] | None:
        """What it says next; None if it says nothing for so long, or ends."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._text:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([self._pipe], [], [], wait)[0]:
                return None
            data = os.read(self._pipe, 1 << 16)
            if not data:
                self._process.wait(5)
                return None
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def output(self) -> str:
        """The end of what it printed, once it is over."""
        if self.is_alive():
            return "it says nothing"
        self._printed.seek(0)
        return self._printed.read().decode(errors="replace")[-2000:]
