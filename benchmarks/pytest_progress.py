"""A pytest plugin that tells another process how far the tests are: JSON lines to the file descriptor in the
environment variable PROGRESS_FD, "collected" once, "start" and "end" of each test, "compiled" in between."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from gemma_cuda.device.cuda import device as cuda

_compile = cuda.compile_kernel
_reports: list[pytest.TestReport] = []


def _tell(**message: object) -> None:
    os.write(int(os.environ["PROGRESS_FD"]), json.dumps(message).encode() + b"\n")


def _compile_and_tell(*arguments: Any, **options: Any) -> Any:
    compiled = _compile(*arguments, **options)
    _tell(event="compiled")
    return compiled


def pytest_configure() -> None:
    cuda.compile_kernel = _compile_and_tell


def pytest_collection_finish(session: pytest.Session) -> None:
    _tell(event="collected", tests=[item.nodeid for item in session.items])


def pytest_runtest_logstart(nodeid: str) -> None:
    _reports.clear()
    _tell(event="start", test=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _reports.append(report)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """One end of each test, after its teardown, in which it may still fail."""
    kinds = {report.outcome: report for report in reversed(_reports)}  # the first of each
    outcome = next(kind for kind in ("failed", "skipped", "passed") if kind in kinds)
    told = kinds[outcome]
    why = told.longrepr[2] if isinstance(told.longrepr, tuple) else told.longreprtext  # of a skip, and else
    detail = "" if told.passed else why.removeprefix("Skipped: ")
    _tell(event="end", test=nodeid, outcome=outcome, seconds=sum(r.duration for r in _reports), detail=detail)
