"""Settings every test shares: few threads, reproducible Hypothesis, no network; cheap files first."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import shutil
import signal
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from typing import Any

# A shell's background job inherits an ignored SIGINT; the tests of Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# make test runs a process per processor. Libraries whose threads spin while they wait would take time from the others;
# ours, which OMP_NUM_THREADS limits, sleep. PyTorch's number is set in hf_forward.py.
for variable, threads in (("OMP_NUM_THREADS", "2"), ("OPENBLAS_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")):
    os.environ.setdefault(variable, threads)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

pytest.register_assert_rewrite("tests.support")

from gemma_cuda.device import foreign  # noqa: E402
from gemma_cuda.device.emulator.device import Emulator, Schedule  # noqa: E402
from gemma_cuda.device.protocol import Device  # noqa: E402
from gemma_cuda.errors import GemmaError  # noqa: E402
from gemma_cuda.host import files, private_directory  # noqa: E402
from tests.support.emulated import DeviceOf, KernelTestDevice, kernel_emulator, on_cuda  # noqa: E402
from tests.support.fake_cuda import Machine  # noqa: E402
from tests.support.golden import GoldenFile  # noqa: E402
from tests.support.host_backed_gpu import HostBackedGpu  # noqa: E402


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


@pytest.fixture(scope="session")
def kernel_test_device(pytestconfig: pytest.Config) -> KernelTestDevice:
    """Makes kernel_emulator, with --mma of that rounding; with --gpu the GPU, whatever options are asked for."""
    on_gpu, rounding = pytestconfig.getoption("--gpu") is not None, pytestconfig.getoption("--mma")

    @functools.cache
    def gpu(kernels: Path | None, shared_bytes: int | None) -> HostBackedGpu:
        return HostBackedGpu(kernels=kernels, shared_bytes=shared_bytes)

    def make(schedule: Schedule = "forward", **options: Any) -> Any:
        if on_gpu:
            return gpu(options.get("kernels"), options.get("shared_bytes"))
        return kernel_emulator(schedule, **{**options, **({} if rounding is None else {"mma": rounding})})

    return make


@pytest.fixture(scope="session")
def golden_file(pytestconfig: pytest.Config) -> GoldenFile | None:
    """The file that --golden names."""
    path = pytestconfig.getoption("--golden")
    return None if path is None else GoldenFile(path)


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> DeviceOf:
    """A device that launches on an emulator: the emulator or, if its schedule is random, CUDA's host path.

    With --gpu it is the GPU.
    """

    def device(emulator: Emulator) -> Device:
        is_emulated = isinstance(emulator, Emulator)
        return on_cuda(emulator, monkeypatch) if is_emulated and emulator.schedule == "random" else emulator

    return device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A fake machine with two GPUs."""
    gpus = Machine(Emulator(workers=2), gpus=2)
    gpus.install(monkeypatch)
    foreign._cuda.cache_clear()
    yield gpus
    foreign._cuda.cache_clear()


@pytest.fixture
def torch_on_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine, on whose first GPU torch allocates tensors, too."""
    import torch

    from tests.support.gpu_arrays import OnGpu

    empty, stream = torch.empty, machine.new_stream()
    monkeypatch.setattr(
        sys.modules["cupy"], "from_dlpack", lambda x: machine.adopt(x.as_subclass(torch.Tensor).numpy()), raising=False
    )
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: empty(shape, dtype=dtype).as_subclass(OnGpu))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=stream.ptr))
    return machine


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
    examples = 100 * config.getoption("--fuzz")
    hypothesis.settings.register_profile(
        "project", derandomize=True, deadline=None, print_blob=True, max_examples=examples
    )
    hypothesis.settings.load_profile("project")
    wanted = config.getoption("--gpu")
    if wanted is None:
        return
    if wanted != "real":
        from tests.support.fake_gpu import FAKES, install

        install(pytest.MonkeyPatch(), has_cublaslt=FAKES[wanted])
    elif config.getoption("--no-pool"):
        importlib.import_module("cupy").cuda.set_allocator(None)


# The longest files, in descending order of CPU seconds. Other files take some seconds each and come first; the last
# ones are short, so that all processes end at about the same time.
LONG = (
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
    return LONG.index(name) if name in LONG else -1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --gpu the tests marked gpu; without it all but those marked gpu(only=True). Cheap files come first."""
    on_gpu = config.getoption("--gpu") is not None

    def is_wanted(item: pytest.Item) -> bool:
        marker = item.get_closest_marker("gpu")
        return marker is not None if on_gpu else marker is None or not marker.kwargs.get("only")

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = sorted(filter(is_wanted, items), key=_cost)
