"""Runs tests so that one that hangs or breaks the GPU costs no other: the next ones get a process of their own."""

from __future__ import annotations

import json
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import Child, where

_COLLECT_S = 90.0  # to import and to collect, with a GPU context and torch
_POLL_S = 0.25  # how late it is seen that a silent process has ended
_GRACE_S = 30.0  # after the last test's limit, for processes to be ended


@dataclass(frozen=True)
class Result:
    """outcome: passed, failed, skipped, hung (it ran past its limit and was killed), died (its process did), or not run
    (detail says why)."""

    test: str
    outcome: str
    seconds: float
    detail: str


def run_isolated(arguments: Sequence[str], *, limit_s: float, deadline: float, jobs: int = 1) -> Iterator[Result]:
    """Results of the tests that pytest collects with these arguments, as they come: one for each, in any case.

    Each of `jobs` processes goes on until a test fails or takes more than limit_s seconds, compilation apart; another
    one runs what is left. Tests that had not started at `deadline` (of time.monotonic) are not run; what runs then is
    ended limit_s later at the latest.
    """
    if time.monotonic() >= deadline:
        yield Result(" ".join(arguments), "not run", 0.0, "no time was left")
        return
    with _PytestChild(["--collect-only", *arguments], threading.Event()) as child:
        collected = child.next_event(min(_COLLECT_S, deadline + limit_s - time.monotonic()))
        code = child.exit_code()
        if collected is None or code not in (0, None):
            yield Result(" ".join(arguments), "died", 0.0, f"no tests were collected: {child.output()}")
            return
    tests, options = collected["tests"], [argument for argument in arguments if argument.startswith("--")]
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()
    is_over = threading.Event()
    workers = [
        threading.Thread(
            target=_run_all, args=(tests[i::jobs], options, limit_s, deadline, is_over, results.put), daemon=True
        )
        for i in range(jobs)
    ]
    left = dict.fromkeys(tests)
    try:
        for worker in workers:
            worker.start()
        while left:
            try:
                result = results.get(timeout=max(deadline + limit_s + _GRACE_S - time.monotonic(), 0.0))
            except queue.Empty:
                break
            left.pop(result.test, None)
            yield result
    finally:
        is_over.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join(_GRACE_S)
    for test in left:
        yield Result(test, "not run", 0.0, "the process that was to run it did not end")


def _run_all(
    tests: Sequence[str],
    options: Sequence[str],
    limit_s: float,
    deadline: float,
    is_over: threading.Event,
    report: Callable[[Result], None],
) -> None:
    """Reports every test."""
    left = list(tests)
    while left and time.monotonic() < deadline and not is_over.is_set():
        count = len(left)
        try:
            _run_some(left, options, limit_s, deadline, is_over, report)
        except Exception as error:  # of the machine, or of a process that says what we do not understand
            if len(left) == count:
                report(Result(left.pop(0), "died", 0.0, f"{type(error).__name__}: {error}"))
    for test in left:
        report(Result(test, "not run", 0.0, "no time was left"))


def _run_some(
    left: list[str],
    options: Sequence[str],
    limit_s: float,
    deadline: float,
    is_over: threading.Event,
    report: Callable[[Result], None],
) -> None:
    """Runs tests in one process, and takes those that it reports from `left`: one at least, or the time is over."""
    end = deadline + limit_s
    traceback = ("-o", f"faulthandler_timeout={0.9 * limit_s:g}")  # where a test hangs
    with _PytestChild([*traceback, *options, *left], is_over) as child:
        if child.next_event(min(_COLLECT_S, end - time.monotonic())) is None:
            if time.monotonic() < end:
                report(Result(left.pop(0), "died", 0.0, child.output()))
            return
        while left and time.monotonic() < deadline and not is_over.is_set():
            result = _one(child, left[0], limit_s, end)
            left.pop(0)
            report(result)
            if result.outcome in ("failed", "hung", "died"):
                return


def _one(child: _PytestChild, test: str, limit_s: float, end: float) -> Result:
    """The result of the next test."""
    began = time.monotonic()
    event = child.next_event(min(_COLLECT_S, end - began))
    while event is not None and event["event"] != "end":
        event = child.next_event(min(limit_s, end - time.monotonic()))
    seconds = time.monotonic() - began
    if event is not None:
        if event["test"] != test:
            return Result(test, "died", seconds, f"its process ran {event['test']} instead")
        return Result(test, event["outcome"], event["seconds"], event["detail"])
    if not child.has_ended():
        said, limit = "".join(child.printed()), min(limit_s, seconds)
        why = f"it took more than {limit:.0f} s and was ended{where(said)}"
        return Result(test, "hung", seconds, f"{said[-2000:]}\n{why}")
    return Result(test, "died", seconds, child.output())


class _PytestChild(Child):
    """A pytest process and the pipe through which benchmarks/pytest_progress.py speaks."""

    def __init__(self, arguments: Sequence[str], is_over: threading.Event) -> None:
        self._pipe, inner = os.pipe()
        self._is_over, self._text = is_over, b""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "benchmarks.pytest_progress", *arguments]
        try:
            super().__init__(command, environment={"PROGRESS_FD": str(inner)}, pass_fds=[inner])
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(inner)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        os.close(self._pipe)

    def exit_code(self) -> int | None:
        """Of a process that has nothing more to do: None if it does not end by itself."""
        is_over = self.wait(_GRACE_S)
        code = self.end()
        return code if is_over else None

    def next_event(self, limit_s: float) -> dict[str, Any] | None:
        """What it says next; None if it says nothing for so long, or has ended, or the run was stopped."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._text:
            # Asked for first: what it said before it ended is then in the pipe. The pipe's own end says nothing, since
            # whatever the process started may hold it open.
            has_ended, left = self.has_ended(), deadline - time.monotonic()
            if self._is_over.is_set() or left <= 0:
                return None
            if not select.select([self._pipe], [], [], 0 if has_ended else min(left, _POLL_S))[0]:
                if has_ended:
                    return None
                continue
            data = os.read(self._pipe, 1 << 16)
            if not data:  # closed: it cannot say anything any more
                self.wait(min(left, _GRACE_S))
                return None
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def output(self) -> str:
        """The end of what it printed, once it is over."""
        if not self.has_ended():
            return "it says nothing"
        return "".join(self.printed())[-2000:]
