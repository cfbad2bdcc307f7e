"""A pytest plugin that tells another process how far the tests are: JSON lines to the file descriptor in the
environment variable PROGRESS_FD, "collected" once, "start" and "end" of each test, "compiled" in between."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from gemma_cuda.device.cuda import launch


class Progress:
    """The hooks, and the reports of the test that runs."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._reports: list[pytest.TestReport] = []

    def tell(self, **message: object) -> None:
        os.write(self._descriptor, json.dumps(message).encode() + b"\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tell(event="collected", tests=[item.nodeid for item in session.items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._reports.clear()
        self.tell(event="start", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """One end of each test, after its teardown, in which it may still fail."""
        kinds = {report.outcome: report for report in reversed(self._reports)}  # the first of each
        outcome = next(kind for kind in ("failed", "skipped", "passed") if kind in kinds)
        told = kinds[outcome]
        why = told.longrepr[2] if isinstance(told.longrepr, tuple) else told.longreprtext  # of a skip, and else
        detail = "" if told.passed else why.removeprefix("Skipped: ")
        seconds = sum(report.duration for report in self._reports)
        self.tell(event="end", test=nodeid, outcome=outcome, seconds=seconds, detail=detail)


def pytest_configure(config: pytest.Config) -> None:
    progress, compile_kernel = Progress(int(os.environ["PROGRESS_FD"])), launch.compile_kernel

    def compile_and_tell(*arguments: Any, **options: Any) -> Any:
        compiled = compile_kernel(*arguments, **options)
        progress.tell(event="compiled")
        return compiled

    launch.compile_kernel = compile_and_tell
    config.pluginmanager.register(progress)
