"""Settings every test shares: two threads, reproducible Hypothesis, no network."""

from __future__ import annotations

import os
import signal

# A shell's background job inherits an ignored SIGINT; the tests of Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402

hypothesis.settings.register_profile("project", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")

import pytest  # noqa: E402

from tests.emulated import DeviceOf, on_cuda  # noqa: E402


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> DeviceOf:
    """What launches on an emulator: the emulator itself or, if its schedule is random, CUDA's host path."""
    return lambda emulator: on_cuda(emulator, monkeypatch) if emulator.schedule == "random" else emulator
