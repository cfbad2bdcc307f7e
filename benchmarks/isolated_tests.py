"""Runs tests so that one that hangs or breaks the GPU costs no other: the next ones get a process of their own."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def run_isolated(arguments: Sequence[str], *, limit_s: float, deadline: float, jobs: int = 1) -> Iterator[Result]:
    """Results of the tests that pytest collects with these arguments, as they come.

    Each of `jobs` processes goes on until a test fails or takes more than limit_s seconds, compilation apart; another
    one runs what is left. Tests that had not started at `deadline` (of time.monotonic) are skipped.
    """
    with _Child(["--collect-only", *arguments]) as child:
        collected = child.next_event(_COLLECT_S)
        if collected is None or child.exit_code() != 0:
            yield Result(" ".join(arguments), "died", 0.0, f"no tests were collected: {child.output()}")
            return
    tests, options = collected["tests"], [argument for argument in arguments if argument.startswith("--")]
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()
    with ThreadPoolExecutor(jobs) as pool:
        for i in range(jobs):
            pool.submit(_run_all, tests[i::jobs], options, limit_s, deadline, results.put)
        for _ in tests:
            yield results.get()


def _run_all(
    tests: Sequence[str], options: Sequence[str], limit_s: float, deadline: float, report: Callable[[Result], None]
) -> None:
    left = list(tests)
    while left and time.monotonic() < deadline:
        with _Child([*options, *left]) as child:
            if child.next_event(_COLLECT_S) is None:
                report(Result(left.pop(0), "died", 0.0, child.output()))
                continue
            while left and time.monotonic() < deadline:
                result = _one(child, left[0], limit_s)
                left.pop(0)
                report(result)
                if result.outcome in ("failed", "hung", "died"):
                    break
    for test in left:
        report(Result(test, "skipped", 0.0, "no time was left"))


def _one(child: _Child, test: str, limit_s: float) -> Result:
    """The result of the next test."""
    began = time.monotonic()
    event = child.next_event(_COLLECT_S)
    while event is not None and event["event"] != "end":
        event = child.next_event(limit_s)
    if event is not None:
        return Result(event["test"], event["outcome"], event["seconds"], event["detail"])
    seconds = time.monotonic() - began
    if child.is_alive():
        return Result(test, "hung", seconds, f"it took more than {limit_s:.0f} s and was ended")
    return Result(test, "died", seconds, child.output())


class _Child:
    """A pytest process and the pipe through which benchmarks/pytest_progress.py speaks."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._pipe, inner = os.pipe()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "benchmarks.pytest_progress", *arguments],
            cwd=ROOT,
            env={**os.environ, "PROGRESS_FD": str(inner)},
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

    def exit_code(self) -> int:
        return self._process.wait()

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
