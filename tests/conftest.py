"""Settings every test shares: few threads, reproducible Hypothesis, no network; cheap files first."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator

# A shell's background job inherits an ignored SIGINT; the tests of Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# make test runs a process per processor. Libraries whose threads spin while they wait would take time from the others;
# ours, which OMP_NUM_THREADS limits, sleep. PyTorch's number is set in hf_forward.py.
for variable, threads in (("OMP_NUM_THREADS", "2"), ("OPENBLAS_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")):
    os.environ.setdefault(variable, threads)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402

hypothesis.settings.register_profile("project", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from gemma_cuda.device.emulator.device import Emulator  # noqa: E402
from gemma_cuda.device.protocol import Device  # noqa: E402
from gemma_cuda.errors import GemmaError  # noqa: E402
from gemma_cuda.host import files, private_directory  # noqa: E402
from tests.support.emulated import DeviceOf, on_cuda  # noqa: E402


def _use_safe_cache() -> None:
    """Where the home directory is none that a cache may lie in, all processes of a run share one that ends with it."""
    try:
        private_directory.check(files.wanted_cache())
    except GemmaError:
        if not os.environ.get("GEMMA_CUDA_CACHE"):
            directory = tempfile.mkdtemp(prefix="gemma-cuda-tests-")
            os.environ["GEMMA_CUDA_CACHE"] = directory  # which pytest-xdist's processes inherit
            atexit.register(shutil.rmtree, directory, ignore_errors=True)


_use_safe_cache()


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> DeviceOf:
    """What launches on an emulator: the emulator itself or, if its schedule is random, CUDA's host path.

    With --gpu it is the GPU.
    """

    def device(emulator: Emulator) -> Device:
        is_emulated = isinstance(emulator, Emulator)
        return on_cuda(emulator, monkeypatch) if is_emulated and emulator.schedule == "random" else emulator

    return device


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: products as small as those of tiny models take longer on several."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """Warnings are errors, but for one of torch's own about a mask that it makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Lower right causal bias will produce NaNs")  # torch gives zeros
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu",
        choices=["real", "fake", "fake-without-cublaslt"],
        help="run the tests marked gpu, and no others, on a GPU or on our fake of one",
    )
    parser.addoption("--mma", choices=["fast", "ampere", "hopper"], help="how the emulator's mma rounds in every test")
    parser.addoption("--golden", type=Path, help="with --gpu: add what the primitives' kernels gave to this file")
    parser.addoption("--fuzz", type=int, default=1, help="draw so many times as many examples in tests/fuzz")
    parser.addoption("--no-pool", action="store_true", help="with --gpu: CuPy asks the driver for each array")


def pytest_configure(config: pytest.Config) -> None:
    from tests import fuzz
    from tests.support import emulated, golden

    fuzz.draw_times(config.getoption("--fuzz"))
    rounding = config.getoption("--mma")
    if rounding is not None:
        emulated.use_mma(rounding)
    wanted = config.getoption("--gpu")
    if wanted is None:
        return
    if wanted != "real":
        from tests.support.fake_gpu import FAKES, install

        install(pytest.MonkeyPatch(), has_cublaslt=FAKES[wanted])
    elif config.getoption("--no-pool"):
        importlib.import_module("cupy").cuda.set_allocator(None)
    emulated.use_gpu()
    golden.record_to(config.getoption("--golden"))


# What takes longest, in order of CPU seconds. The files that are not named take some seconds each and come first; what
# is left for the end is short, so that all processes end at about the same time.
_LONG = (
    *(
        "model_cuda",
        "attention",
        "cli_kernels",
        "checkup",
        "model_emulator",
        "linear",
        "model",
        "cli_demo",
        "packaging",
    ),
    *("compile", "bench", "bench_peers", "rms_norm", "model_cache", "compile_cache", "interop_transformers"),
    *("model_inputs", "primitives", "emulator", "reference", "interop_attention", "cublaslt", "hub"),
    *("tokenizer_gemma3", "embeddings"),
)


def _cost(item: pytest.Item) -> int:
    name = item.path.stem.removeprefix("test_")
    return _LONG.index(name) if name in _LONG else -1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --gpu the tests marked gpu; without it all but those marked gpu(only=True). Cheap files come first."""
    on_gpu = config.getoption("--gpu") is not None

    def is_wanted(item: pytest.Item) -> bool:
        marker = item.get_closest_marker("gpu")
        return marker is not None if on_gpu else marker is None or not marker.kwargs.get("only")

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = sorted(filter(is_wanted, items), key=_cost)
