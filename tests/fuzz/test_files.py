"""Hostile files: whatever a file holds, there is a result or one error of the package, within a budget.

In a process of limited memory and CPU time, which a runaway ends without harm to other tests.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_hostile_files_are_results_or_one_error(request: pytest.FixtureRequest) -> None:
    times = request.config.getoption("--fuzz")
    ran = subprocess.run(
        ["timeout", str(60 + 30 * times), sys.executable, "-m", "tests.support.fuzz.files", str(times)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        preexec_fn=limit,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-6000:]
    assert "chat_templates" in ran.stdout
