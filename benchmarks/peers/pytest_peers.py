"""A pytest plugin that runs a peer's tests with our attention, and tells what became of them.

JSON lines to the file in PEERS_REPORT: "collected" with the ids, "uncollected" for a file that cannot be imported,
"phase" for setup, call and teardown of a test. The environment says what is run, as setting.py has it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.refusals import LEFT_OUT
from benchmarks.peers.sample import thin_out
from benchmarks.peers.setting import Setting

_ROOT = Path(__file__).parents[2]
_MESSAGE = 2000  # characters of it that are kept


if os.environ.get("PYTEST_XDIST_WORKER"):
    # Ours is a checkout, too: its folders kernels and tests would be taken for packages of these names.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != _ROOT]


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if _is_worker(config):  # the process that hands out the tests has no need of torch
        setting, calls = Setting.from_environment(), _Calls()
        if setting.attention == "ours":
            calls.count(setting.device)
        importlib.import_module(f"{__package__}.{setting.module}").install(setting.attention == "ours")
        config.pluginmanager.register(calls)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> list[pytest.Item] | None:
    setting, node = Setting.from_environment(), f"{collector.nodeid}::{name}"
    if any(entry.covers(setting.suite, node) for entry in LEFT_OUT):
        return []
    if setting.sample and name.startswith("test"):
        thin_out(obj, node, setting)
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = Setting.from_environment().only
    if only:
        wanted = set(json.loads(Path(only).read_text()))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


class _Calls:
    """In a process that runs tests: the calls of our custom op since the last report."""

    def __init__(self) -> None:
        self._calls = 0

    def count(self, device: str) -> None:
        """Has our custom op counted, and run on `device`."""
        from gemma_cuda.interop import torch_ops

        attend = torch_ops.attend

        def counted(q: Any, k: Any, v: Any, options: Any) -> Any:
            self._calls += 1
            return attend(q, k, v, replace(options, device=None if device == "numpy" else device))

        torch_ops.attend = counted

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Adds what the report of another process does not hold: calls of our op, parameters, the error in one line."""
        report: Any = yield
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        plain = {name: value for name, value in parameters.items() if isinstance(value, (bool, int, float, str))}
        message = ""
        if call.excinfo is not None:
            message = f"{call.excinfo.typename}: {call.excinfo.value}"[:_MESSAGE]
        report.user_properties += [("peers", {"calls": self._calls, "parameters": plain, "message": message})]
        self._calls = 0
        return report


def _tell(**message: object) -> None:
    with open(os.environ["PEERS_REPORT"], "a") as file:
        file.write(json.dumps(message) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    _tell(event="collected", tests=list(ids))


class _Controller:
    """The hooks of the process that hands out the tests."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            _tell(event="uncollected", file=report.nodeid, message=(lines or ["?"])[-1].removeprefix("E").strip())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties).get("peers")
        if told is None:  # its process has died
            seconds = time.monotonic() - self._began.get(report.nodeid, time.monotonic())
            told = {"calls": 0, "parameters": {}, "message": f"its process ended after {seconds:.0f} s"}
        outcome = "skipped" if hasattr(report, "wasxfail") else report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            told["message"] = report.longrepr[2].removeprefix("Skipped: ")
        _tell(event="phase", test=report.nodeid, outcome=outcome, **told)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if not _is_worker(session.config):
        session.config.pluginmanager.register(_Controller())
