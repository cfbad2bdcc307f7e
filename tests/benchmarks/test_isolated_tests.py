"""Processes of the check-up that do not end as they should: each wait has a limit, and each test is reported."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import isolated_tests, processes
from benchmarks.isolated_tests import Result, run_isolated

PLANTED = "tests/support/planted_processes.py"


def is_alive(pid: int) -> bool:
    """Not a zombie either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, results: Any) -> list[Result]:
    """All results; a test that fails where they do not come in that time."""
    found: list[Result] = []
    reader = threading.Thread(target=lambda: found.extend(results), daemon=True)
    reader.start()
    reader.join(seconds)
    assert not reader.is_alive(), f"{found} after {seconds} s, and no end"
    return found


def clock_of(monkeypatch: pytest.MonkeyPatch, deadline: float) -> Callable[[], None]:
    """After a call of what is returned, the clock of isolated_tests.py stands at the deadline or goes on from there."""
    late = [0.0]
    monkeypatch.setattr(isolated_tests, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))

    def be_late() -> None:
        late[0] = max(late[0], deadline - time.monotonic())

    return be_late


def test_every_end_of_a_process_costs_one_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = tmp_path / "pid"
    monkeypatch.setenv("PLANTED_PID", str(pid_file))
    results = within(200, run_isolated([PLANTED], limit_s=2, deadline=time.monotonic() + 150))
    outcomes = {result.test.partition("::test_")[2]: result.outcome for result in results}
    assert len(results) == len(outcomes) and outcomes == {
        "right": "passed", "ignores_sigterm": "hung", "dies_silently": "died", "leaves_the_pipe_to_another": "died",
        "closes_the_pipe": "hung", "says_what_nobody_understands": "died", "fails_in_its_teardown": "failed",
        "right_afterwards": "passed",
    }  # fmt: skip
    details = {result.test.partition("::test_")[2]: result.detail for result in results}
    assert "the teardown failed" in details["fails_in_its_teardown"]
    last = details["ignores_sigterm"].splitlines()[-1]
    assert last.startswith("it took more than 2 s and was ended in test_ignores_sigterm, planted_processes.py:")
    assert not is_alive(int(pid_file.read_text()))


def test_what_is_left_at_the_deadline_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = run_isolated([PLANTED], limit_s=3, deadline=time.monotonic() - 1)
    assert (only.outcome, only.detail) == ("not run", "no time was left")
    deadline = time.monotonic() + 300
    be_late, one = clock_of(monkeypatch, deadline), isolated_tests._one

    def at_the_deadline(*arguments: Any) -> Result:
        result = one(*arguments)
        be_late()
        return result

    monkeypatch.setattr(isolated_tests, "_one", at_the_deadline)
    tests = [f"{PLANTED}::test_{name}" for name in ("ignores_sigterm", "right", "right_afterwards")]
    results = within(100, run_isolated(tests, limit_s=2, deadline=deadline))
    assert [result.test for result in results] == tests
    assert [result.outcome for result in results] == ["hung", "not run", "not run"]


@pytest.mark.parametrize("kind", ["raises", "never returns"])
def test_a_worker_that_breaks_leaves_no_test_unreported(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = time.monotonic() + 300
    be_late = clock_of(monkeypatch, deadline)

    def breaks(*arguments: Any) -> None:
        if kind == "raises":
            raise OSError("no more processes")
        be_late()
        time.sleep(1000)

    monkeypatch.setattr(isolated_tests, "_run_some", breaks)
    monkeypatch.setattr(isolated_tests, "_GRACE_S", 1.0)
    tests = [f"{PLANTED}::test_{name}" for name in ("right", "dies_silently")]
    results = within(60, run_isolated(tests, limit_s=1, deadline=deadline, jobs=2))
    expected = "died" if kind == "raises" else "not run"
    assert sorted((r.test, r.outcome) for r in results) == sorted((test, expected) for test in tests)
    said = {r.detail for r in results} - {"no time was left"}  # of a worker that began after the other one was late
    assert len(said) == 1 and ("no more processes" in min(said) or "did not end" in min(said))


def test_whoever_stops_listening_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at Ctrl-C."""
    children: list[Any] = []
    start = isolated_tests._PytestChild.__init__

    def spy(self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        children.append(self)

    monkeypatch.setattr(isolated_tests._PytestChild, "__init__", spy)
    tests = [f"{PLANTED}::test_{name}" for name in ("right", "ignores_sigterm")]
    results = run_isolated(tests, limit_s=100, deadline=time.monotonic() + 100)
    assert next(results).outcome == "passed"
    results.close()  # type: ignore[attr-defined]
    assert len(children) == 2 and not any(is_alive(child._process.pid) for child in children)


SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('began', flush=True); "


@pytest.mark.parametrize(
    ("script", "code", "out"),
    [
        ("print('well')", 0, "well"),
        ("import os, sys; sys.stderr.write('ill'); sys.stderr.flush(); os._exit(3)", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11, ""),
        (f"{SLEEPER} time.sleep(1000)", None, "began"),
        # The grandchild has the standard output, which a pipe's reader would wait for.
        ("import subprocess; print('began', flush=True); subprocess.Popen(['sleep', '1000'])", 0, "began"),
    ],
)  # fmt: skip
def test_a_program_has_its_limit(script: str, code: int | None, out: str) -> None:
    began = time.monotonic()
    ended = processes.run_for(5, [sys.executable, "-c", script])
    assert (ended.code, ended.out.strip()) == (code, out) and time.monotonic() - began < 30
    assert ended.error == ("ill" if code == 3 else "")


def test_a_group_dies_with_its_program(tmp_path: Path) -> None:
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"
    ended = processes.run_for(20, [sys.executable, "-c", script])
    deadline = time.monotonic() + 10
    while is_alive(int(ended.out)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.code == 0 and not is_alive(int(ended.out))
    with pytest.raises(OSError):
        processes.run_for(1, [os.fspath(tmp_path / "no such program")])
