"""What tests/benchmarks/test_isolated_tests.py has run: tests whose processes end in every way but the usual one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def breaks_afterwards() -> Iterator[None]:
    yield
    raise OSError("the teardown failed")


def test_right() -> None:
    pass


def test_ignores_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def test_dies_silently() -> None:
    os._exit(0)


def test_leaves_the_pipe_to_another() -> None:
    other = subprocess.Popen(["sleep", "1000"], close_fds=False)
    Path(os.environ["PLANTED_PID"]).write_text(str(other.pid))
    os._exit(1)


def test_closes_the_pipe() -> None:
    os.close(int(os.environ["PROGRESS_FD"]))
    time.sleep(1000)


def test_says_what_nobody_understands() -> None:
    os.write(int(os.environ["PROGRESS_FD"]), b"out of place\n")


def test_fails_in_its_teardown(breaks_afterwards: None) -> None:
    pass


def test_right_afterwards() -> None:
    pass
