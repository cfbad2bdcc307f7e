"""The CUDA host path on a fake GPU: what reaches a kernel, in which order, and what is refused in which words."""

from __future__ import annotations

import ast
import ctypes
import gc
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.cuda.compile import architecture_of
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.cuda.launch import PreparedLaunch
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError, KernelError, LaunchError, OutOfMemoryError
from tests.support.fake_cuda import DEFAULT_SHARED_BYTES, CUDADriverError, LaunchConfig, Machine, Status
from tests.support.numbers_kernel import NUMBERS, pack_numbers
from tests.support.paths import KERNELS, TESTS


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Emulator(workers=2, kernels=KERNELS), gpus=2)
    machine.install(monkeypatch)
    return machine


@pytest.fixture
def cuda(machine: Machine) -> Cuda:
    return Cuda(kernels=KERNELS)


def floats(n: int) -> np.ndarray[Any, Any]:
    return np.arange(n, dtype=np.float32)


# --- arguments ---


def test_every_type_arrives_as_it_was_given(cuda: Cuda) -> None:
    out = cuda.empty((len(NUMBERS),), np.float64)
    cuda.launch("numbers", (1,), (len(NUMBERS),), 0, [out, *pack_numbers()])
    assert cuda.to_host(out).tolist() == [expected for _, expected in NUMBERS]


def test_cuda_bindings_passes_on_what_it_is_given(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([*command, str(TESTS / "support" / "fake_libcuda.c")], check=True)
    command = [sys.executable, "-m", "tests.support.bound_launch", str(library)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [float(word) for word in done.stdout.split()] == [expected for _, expected in NUMBERS]


@pytest.mark.parametrize(
    ("letter", "value", "message"),
    [
        ("a", 128, "argument 1 (a) is 128"),
        ("f", -1, "argument 6 (f) is -1"),
        ("e", 1.0, "argument 5 (e) is float 1.0, the kernel wants int32"),
        ("e", True, "argument 5 (e) is bool True, the kernel wants int32"),
        ("i", 1, "argument 9 (i) is int 1, the kernel wants float32"),
        ("i", np.float64(1), "argument 9 (i) is float64, the kernel wants float32"),
        ("k", 1, "argument 11 (k) is int 1, the kernel wants bool"),
        ("l", bytes(15), "argument 12 (l) is bytes, expected 16 bytes, the kernel wants struct"),
        ("e", floats(1), "argument 5 (e) is ndarray, the kernel wants int32"),
    ],
)
def test_values_of_another_type_are_refused(cuda: Cuda, letter: str, value: Any, message: str) -> None:
    with pytest.raises(LaunchError) as info:
        cuda.launch("numbers", (1,), (1,), 0, [cuda.empty((1,), np.float64), *pack_numbers(**{letter: value})])
    assert message in str(info.value) and str(info.value).startswith("numbers")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (floats(4), "argument 1 (in) is numpy.ndarray, the kernel wants an array of float32 on the GPU"),
        (7, "argument 1 (in) is builtins.int, the kernel wants an array of float32 on the GPU"),
    ],
)
def test_pointers_need_arrays_on_the_gpu(cuda: Cuda, array: Any, message: str) -> None:
    with pytest.raises(LaunchError) as info:
        cuda.launch("pointers<float>", (1,), (1,), 0, [cuda.empty((4,), np.float32), array, None, 4, 1])
    assert message in str(info.value)


def test_arrays_of_another_dtype_device_or_layout_are_refused(cuda: Cuda, machine: Machine) -> None:
    out = cuda.empty((4,), np.float32)

    def refused(array: Any) -> str:
        with pytest.raises(LaunchError) as info:
            cuda.launch("pointers<float>", (1,), (4,), 0, [out, array, None, 4, 1])
        return str(info.value)

    assert "(in) is an array of bfloat16, the kernel wants a pointer to float32" in refused(
        cuda.empty((4,), ml_dtypes.bfloat16)
    )
    assert "(in) is on cuda:1, not on cuda:0" in refused(Cuda(1, kernels=KERNELS).empty((4,), np.float32))
    assert "(in) is a view whose last axis is not contiguous" in refused(cuda.empty((8,), np.float32)[::2])
    assert machine.launched == []


def test_null_pointers_and_views_reach_the_kernel(cuda: Cuda) -> None:
    rows = cuda.from_host(floats(20).reshape(4, 5).astype(ml_dtypes.bfloat16))
    column = rows[:, 2:3]  # last axis contiguous, rows 5 apart: the stride is an argument
    out = cuda.empty((4,), ml_dtypes.bfloat16)
    cuda.launch("pointers<bf16>", (2,), (2,), 0, [out, column, None, 4, 5])
    assert cuda.to_host(out).tolist() == [2.0, 7.0, 12.0, 17.0]
    cuda.launch("pointers<bf16>", (2,), (2,), 0, [out, column, rows[1, 1:], 4, 5])
    assert cuda.to_host(out).tolist() == [6.0, 7.0, 8.0, 9.0]


def test_grids_and_blocks_have_three_axes(cuda: Cuda) -> None:
    out = cuda.empty((6,), np.int32)
    cuda.launch("dimensions", (2, 3, 4), (5, 6, 7), 0, [out])
    assert cuda.to_host(out).tolist() == [2, 3, 4, 5, 6, 7]
    cuda.launch("dimensions", (2, 3), (5,), 0, [out])
    assert cuda.to_host(out).tolist() == [2, 3, 1, 5, 1, 1]


def test_a_kernel_without_parameters_is_launched(cuda: Cuda, machine: Machine) -> None:
    cuda.launch("nothing", (1,), (1,), 0, [])
    cuda.synchronize()
    assert machine.launched == ["nothing"]
    with pytest.raises(LaunchError, match=r"nothing takes 0 arguments \(\), not 1"):
        cuda.launch("nothing", (1,), (1,), 0, [1])


@pytest.mark.parametrize(("capability", "overlaps"), [("89", []), ("90", [True])])
def test_launches_overlap_where_gpus_can(machine: Machine, capability: str, overlaps: list[bool]) -> None:
    machine.capability = capability
    cuda = Cuda(kernels=KERNELS)
    cuda.launch("nothing", (1,), (1,), 0, [], overlap=True)
    assert machine.overlaps == overlaps
    cuda.launch("nothing", (1,), (1,), 0, [])
    assert machine.overlaps == []


# --- memory and streams ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int8", "bool", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_arrays_come_back_as_they_went(cuda: Cuda, shape: tuple[int, ...], dtype: Any) -> None:
    host = (np.random.default_rng(0).standard_normal(shape) * 9).astype(dtype)
    array = cuda.from_host(host)
    back = cuda.to_host(array)
    assert back.dtype == host.dtype and back.shape == host.shape and back.tobytes() == host.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_host_array_may_be_changed_once_it_was_copied(cuda: Cuda, order: Literal["C", "F"]) -> None:
    host = np.array(floats(6).reshape(2, 3), order=order)
    array = cuda.from_host(host)
    host[...] = -1
    assert cuda.to_host(array).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_launches_go_to_the_current_stream(cuda: Cuda, machine: Machine) -> None:
    stream = machine.new_stream()
    with stream:
        x = cuda.from_host(floats(4))
        cuda.launch("adds_one", (1,), (4,), 0, [x])
        cuda.launch("adds_one", (1,), (4,), 0, [x])
    assert [work.name for work in stream.queue] == [
        "memcpy",
        "event",
        "adds_one",
        "adds_one",
    ] and not machine.stream.queue
    with stream:
        assert cuda.to_host(x).tolist() == [2, 3, 4, 5]


def test_work_is_waited_for_in_its_own_stream_only(cuda: Cuda, machine: Machine) -> None:
    with machine.new_stream():
        x = cuda.from_host(floats(4))
    assert np.isnan(cuda.to_host(x)).all()  # the copy waits elsewhere: poison


def test_another_gpu_works_on_its_own_current_stream(machine: Machine) -> None:
    with Cuda(1, kernels=KERNELS).current():
        stream = machine.new_stream()
        stream.__enter__()  # as stream.use()
    first, second = Cuda(kernels=KERNELS), Cuda(1, kernels=KERNELS)
    other = machine.new_stream()
    with other:  # of the current GPU, which is not the one that works
        assert (first.stream, second.stream) == (other.ptr, stream.ptr)
        x = second.from_host(floats(8).reshape(2, 4))
        y = second.zeros((2, 4), np.float32)
        second.copy(y, x)
        second.copy(y[:, :3], x[:, 1:])
        second.launch("adds_one", (1,), (8,), 0, [y])
    assert [work.name for work in stream.queue] == ["memcpy", "event", "memset", "memcpy", "memcpy2D", "adds_one"]
    assert second.to_host(y).tolist() == [[2, 3, 4, 4], [6, 7, 8, 8]] and not other.queue


def test_memory_may_be_freed_behind_a_launch_in_its_stream(cuda: Cuda) -> None:
    out = cuda.empty((4,), np.float32)
    cuda.launch("pointers<float>", (1,), (4,), 0, [out, cuda.from_host(floats(4)), None, 4, 1])
    gc.collect()
    assert cuda.to_host(out).tolist() == [0, 1, 2, 3]


def test_memory_freed_while_another_stream_waits_for_it_is_found(cuda: Cuda, machine: Machine) -> None:
    x = cuda.from_host(floats(4))
    cuda.synchronize()
    with machine.new_stream():
        cuda.launch("adds_one", (1,), (4,), 0, [x])
        del x
        gc.collect()
        with pytest.raises(KernelError, match="adds_one: memory was freed while this waited for it in another stream"):
            cuda.synchronize()


def prepared(kernel: Any, block: tuple[int, int, int], shared_bytes: int, values: list[bytes]) -> PreparedLaunch:
    function = kernel.raw.kernel.ptr
    return PreparedLaunch(
        "kernel", function, (1, 1, 1), block, shared_bytes, values, overlap=False, describe=lambda: "its arguments"
    )


def test_a_pointer_to_freed_memory_is_found(cuda: Cuda, machine: Machine) -> None:
    x = cuda.from_host(floats(4))
    kernel = cuda._kernels.load("adds_one")
    address = struct.pack("<Q", cuda.address(x))
    del x
    gc.collect()
    prepared(kernel, (4, 1, 1), 0, [address])(cuda.stream)
    with pytest.raises(KernelError, match="is not the address of memory in use on this GPU"):
        cuda.synchronize()


def test_too_large_an_array_is_an_error_with_both_figures(cuda: Cuda) -> None:
    with pytest.raises(OutOfMemoryError, match="4,294,967,296 bytes asked for, 1,073,741,824 of 1,073,741,824"):
        cuda.empty((2**30,), np.float32)


def test_a_large_array_goes_through_pinned_memory(cuda: Cuda, machine: Machine) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, 20_000_003, np.uint16)
    kept = values.copy()
    placed = cuda.from_host(values.view(ml_dtypes.bfloat16))
    values[:] = 0  # the copy was taken before
    assert len(machine.pinned) == 2
    np.testing.assert_array_equal(cuda.to_host(placed).view(np.uint16), kept)


def test_pinned_memory_is_not_given_again_before_it_was_read(cuda: Cuda, machine: Machine) -> None:
    target, pinned = cuda.empty((4,), np.float32), cuda.pinned(16)
    pinned.data.view(np.float32)[:] = floats(4)
    cuda.upload_pinned(target, pinned, 16)
    del pinned
    gc.collect()
    assert cuda.to_host(target).tolist() == [0, 1, 2, 3]


def test_arrays_outlive_the_device_that_uploads_them(cuda: Cuda, machine: Machine) -> None:
    devices = [Cuda(kernels=KERNELS)]
    array = devices[0].from_host(floats(4))
    devices.clear()
    gc.collect()
    assert cuda.to_host(array).tolist() == [0, 1, 2, 3]


def test_many_small_arrays_share_pinned_memory(cuda: Cuda, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.device.cuda.memory._STAGED_BYTES", 4096)
    waits = machine.waits
    arrays = [cuda.from_host(np.full(8, i, np.float32)) for i in range(32)]  # each at a multiple of 256 bytes
    assert machine.waits == waits and len(machine.pinned) == 2
    arrays += [cuda.from_host(np.full(n, n, np.float32)) for n in (1, 1500, 700, 5000)]
    for i, array in enumerate(arrays):
        assert set(cuda.to_host(array).tolist()) == {i if i < 32 else len(array)}
    assert len(machine.pinned) == 2


def test_nothing_is_uploaded_into_a_graph_that_somebody_captures(cuda: Cuda, machine: Machine) -> None:
    machine.is_capturing = True
    with pytest.raises(
        DeviceError, match="a CUDA graph is being captured: it would copy what lies there at its replay"
    ):
        cuda.from_host(floats(4))
    assert not machine.stream.queue


# --- shared memory and limits ---


@pytest.mark.parametrize("size", [4096, DEFAULT_SHARED_BYTES, DEFAULT_SHARED_BYTES + 4, 232448])
def test_shared_memory_is_opted_into(cuda: Cuda, size: int) -> None:
    out = cuda.empty((32,), np.float32)
    for shared_bytes in (size, 4096, size):
        n = shared_bytes // 4
        cuda.launch("fills_shared", (1,), (32,), shared_bytes, [out, n])
        assert cuda.to_host(out).tolist() == [n - 1 - i for i in range(32)]


def test_the_fake_gpu_wants_the_opt_in(cuda: Cuda, machine: Machine) -> None:
    kernel = cuda._kernels.load("fills_shared")
    arguments = [cuda.address(out := cuda.empty((32,), np.float32)).to_bytes(8, "little"), struct.pack("<i", 32)]
    too_much = DEFAULT_SHARED_BYTES + 4
    launch = prepared(kernel, (32, 1, 1), too_much, arguments)
    with pytest.raises(LaunchError, match="kernel: CUDA refuses the launch with CUDA_ERROR_INVALID_VALUE: its arg"):
        launch(cuda.stream)
    kernel.raw.max_dynamic_shared_size_bytes = too_much
    launch(cuda.stream)
    with pytest.raises(CUDADriverError):
        kernel.raw.max_dynamic_shared_size_bytes = 232449
    del out


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "message"),
    [
        ((1, 65536), (32,), 0, "grid is (1, 65536, 1), at most (2147483647, 65535, 65535) is possible"),
        ((1,), (1025,), 0, "a block of (1025, 1, 1) has 1025 threads, at most 1024"),
        ((1,), (1, 1, 65), 0, "a block of (1, 1, 65) has 65 threads, at most 1024 (z at most 64)"),
        ((1,), (32, 33), 0, "a block of (32, 33, 1) has 1056 threads, at most 1024"),
        ((0,), (32,), 0, "grid is (0,), expected 1 to 3 positive sizes"),
        ((1, 1, 1, 1), (32,), 0, "grid is (1, 1, 1, 1), expected 1 to 3 positive sizes"),
        ((1,), (32,), 232449, "232449 bytes of shared memory asked for, a block has 0 to 232448"),
        ((1,), (32,), -1, "-1 bytes of shared memory asked for"),
    ],
)
def test_impossible_launches_are_refused(
    cuda: Cuda, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int, message: str
) -> None:
    with pytest.raises(LaunchError) as info:
        cuda.launch("nothing", grid, block, shared_bytes, [])
    assert str(info.value).startswith("nothing: ") and message in str(info.value)


def test_launch_bounds_are_kept(cuda: Cuda, machine: Machine) -> None:
    with pytest.raises(LaunchError) as info:
        cuda.launch("no_more_than<64>", (1,), (65,), 0, [])
    assert "no_more_than<64>: the block is (65, 1, 1), the kernel's launch bounds allow 64 threads" in str(info.value)
    cuda.launch("no_more_than<64>", (1,), (64,), 0, [])
    assert machine.launched == ["no_more_than<64>"]


def test_what_the_driver_refuses_is_told_with_all_that_was_asked(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.fake_cuda.REGISTERS", 64)
    x = cuda.from_host(floats(4))
    with pytest.raises(LaunchError) as info:
        cuda.launch("adds_one", (3,), (32,), 16, [x])
    for part in (
        "adds_one: CUDA refuses the launch with CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        *("grid (3, 1, 1)", "block (32, 1, 1)", "16 bytes of shared memory", "registers=", "x = float32[4] at 0x"),
    ):
        assert part in str(info.value)


# --- what goes wrong later ---


def test_a_failing_kernel_is_told_at_the_next_wait_and_after(cuda: Cuda, machine: Machine) -> None:
    machine.emulator.checked = True
    out = cuda.empty((4,), np.float32)
    cuda.launch("past_the_end", (1,), (4,), 0, [out, 4])
    cuda.launch("adds_one", (1,), (4,), 0, [out])
    for _ in range(2):
        with pytest.raises(KernelError) as info:
            cuda.to_host(out)
        assert info.value.kernel == "adds_one" and "past_the_end" in str(info.value)
        assert "or one launched before it: Cuda(wait=True) tells which" in str(info.value)
    with pytest.raises(LaunchError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        cuda.launch("adds_one", (1,), (4,), 0, [out])


def test_a_waiting_device_names_the_kernel_that_failed(machine: Machine) -> None:
    machine.emulator.checked = True
    cuda = Cuda(wait=True, kernels=KERNELS)
    out = cuda.empty((4,), np.float32)
    with pytest.raises(KernelError) as info:
        cuda.launch("past_the_end", (1,), (4,), 0, [out, 4])
    assert info.value.kernel == "past_the_end" and "tells which" not in str(info.value)


# --- devices ---


def test_a_gpu_is_chosen_by_its_index(machine: Machine) -> None:
    assert Cuda.named("cuda").index == 0
    second = Cuda.named("cuda:1", kernels=KERNELS)
    x = second.from_host(floats(4))
    assert x.device.id == 1 and machine.device == 0
    second.launch("adds_one", (1,), (4,), 0, [x])
    assert second.to_host(x).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "device 'cuda:2' does not exist: 2 GPUs are visible"),
        ("cuda:x", "device is 'cuda:x', expected 'cuda' or a GPU's index as in 'cuda:1'"),
        ("gpu", "device is 'gpu'"),
    ],
)
def test_other_devices_are_refused(machine: Machine, name: str, message: str) -> None:
    with pytest.raises(DeviceError) as info:
        Cuda.named(name)
    assert message in str(info.value)


def test_a_machine_without_a_gpu_or_cupy_says_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpus = 0
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: cudaErrorNoDevice"):
        Cuda()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"needs CuPy and cuda-bindings .* pip install 'gemma-cuda\[cuda13\]'"):
        Cuda()


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [("80", "sm_80"), ("86", "sm_86"), ("89", "sm_89"), ("90", "sm_90a"), ("100", "sm_100a"), ("120", "sm_120a")],
)
def test_kernels_are_compiled_for_the_gpu_at_hand(machine: Machine, capability: str, architecture: str) -> None:
    machine.capability = capability
    cuda = Cuda(kernels=KERNELS)
    assert cuda.architecture == architecture_of(cuda.compute_capability) == architecture
    x = cuda.from_host(floats(2))
    cuda.launch("adds_one", (1,), (2,), 0, [x])
    assert cuda.to_host(x).tolist() == [1, 2]


def test_a_driver_that_cannot_load_a_cubin_says_so(cuda: Cuda, machine: Machine) -> None:
    machine.capability = "80"
    with pytest.raises(DeviceError, match=r"nothing: the driver cannot load what NVRTC \d+\.\d+ made for sm_90a"):
        cuda.launch("nothing", (1,), (1,), 0, [])


def test_a_kernel_is_held_as_long_as_its_device(machine: Machine) -> None:
    cuda = Cuda(kernels=KERNELS)
    cuda.launch("nothing", (1,), (1,), 0, [])
    gc.collect()
    cuda.launch("nothing", (1,), (1,), 0, [])
    handle = cuda._kernels.loaded["nothing"].raw.kernel.ptr
    del cuda
    gc.collect()
    config = LaunchConfig()
    config.gridDimX = config.gridDimY = config.gridDimZ = config.blockDimX = config.blockDimY = config.blockDimZ = 1
    no_parameters = ctypes.addressof((ctypes.c_void_p * 1)())
    assert machine.launch(config, handle, no_parameters, 0) == (Status.CUDA_ERROR_INVALID_HANDLE,)


def test_the_stubs_name_what_cupy_has() -> None:
    cupy = pytest.importorskip("cupy", reason="compares our stubs with an installed CuPy")
    stubs = TESTS.parent / "stubs"
    for path in stubs.rglob("*.pyi"):
        parts = path.relative_to(stubs).with_suffix("").parts
        module = cupy
        for part in parts[1:]:
            module = module if part == "__init__" else getattr(module, part)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                assert hasattr(module, node.name), (module, node.name)
            if isinstance(node, ast.ClassDef):
                methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                missing = [name for name in methods if not hasattr(getattr(module, node.name), name)]
                assert not missing, (module, node.name, missing)
