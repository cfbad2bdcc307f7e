"""Kernels as people write them for nvcc, in the emulator: they compile as they are and give NumPy's results."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.emulator.device import Emulator, Schedule
from gemma_cuda.errors import KernelError, LaunchError
from tests.support.dialect import DIALECT, bug_lines, emulator, fails
from tests.support.emulated import APPROXIMATIONS, SCHEDULES, counted

BFLOAT16 = ml_dtypes.bfloat16
Array = np.ndarray[Any, Any]


@pytest.fixture(params=[*((schedule, True) for schedule in SCHEDULES), ("forward", False), ("random", False)], ids=str)
def device(request: pytest.FixtureRequest) -> Emulator:
    """Every schedule with checks, and two of them without."""
    schedule, checked = request.param
    return emulator(schedule, checked=checked)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- kernels as they are found in samples and in other people's repositories ---


@pytest.mark.parametrize(("width", "height"), [(64, 32), (50, 33)])
def test_transpose(device: Emulator, width: int, height: int) -> None:
    x = normal(height, width)
    out = device.empty((width, height), np.float32)
    device.launch("transpose<1>", (-(-width // 32), -(-height // 32)), (32, 8), 0, [out, x, width, height])
    np.testing.assert_array_equal(out, x.T)


def test_padding_of_a_shared_tile_spares_bank_conflicts() -> None:
    device = emulator()
    x, out = normal(64, 64), np.zeros((64, 64), np.float32)
    conflicts = {}
    for instance in ("transpose", "transpose<0>"):  # the default of its template parameter is 1
        device.launch(instance, (2, 2), (32, 8), 0, [out, x, 64, 64])
        conflicts[instance] = counted(device).shared_bank_conflicts
    # Without padding the 32 lanes of a warp read one bank: 31 wavefronts too many in each of 4 x 8 x 4 reads.
    assert conflicts == {"transpose": 0, "transpose<0>": 31 * 4 * 8 * 4}


def test_sums_of_a_block_and_of_a_grid(device: Emulator) -> None:
    x = np.random.default_rng(1).integers(-8, 8, 1000).astype(np.float32)  # exact in any order
    partial = device.empty((4,), np.float32)
    device.launch("reduce_tree", (4,), (128,), 512, [x, partial, 1000])
    np.testing.assert_array_equal(partial, np.pad(x, (0, 24)).reshape(4, 256).sum(1))
    for instance, args in (("reduce_shuffle", [x]), ("reduce_groups", [x])):
        out = np.zeros(1, np.float32)
        n = 250 if instance == "reduce_groups" else 1000
        device.launch(instance, (3,), (96,), 0, [*args, out, n])
        assert out[0] == x.sum(), instance


def test_a_device_variable_counts_blocks_from_launch_to_launch(device: Emulator) -> None:
    x = np.random.default_rng(2).integers(-8, 8, 777).astype(np.float32)
    for _ in range(3):
        partial, out = np.zeros(5, np.float32), np.zeros(1, np.float32)
        device.launch("reduce_last_block", (5,), (64,), 0, [x, partial, out, 777])
        assert out[0] == x.sum()
    assert device.read_variable("reduce_last_block", "retirementCount", np.uint32).tolist() == [0]


def test_lanes_that_are_together_share_one_atomic(device: Emulator) -> None:
    x = np.random.default_rng(3).integers(-5, 6, 300).astype(np.int32)
    out, count = np.zeros(300, np.int32), np.zeros(1, np.int32)
    device.launch("filter_positive", (4,), (96,), 0, [out, count, x, 300])
    assert sorted(out[: count[0]]) == sorted(x[x > 0]) and not out[count[0] :].any()


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("approx", APPROXIMATIONS)
def test_softmax(device: Emulator, approx: Any) -> None:
    device.approx = approx
    x, out = normal(5, 100), device.empty((5, 100), np.float32)
    device.launch("softmax_forward", (5,), (64,), 256, [out, x, 5, 100])
    np.testing.assert_allclose(out, softmax(x), rtol=2e-6)
    online = device.empty((5, 100), np.float32)
    device.launch("online_softmax<64>", (5,), (64,), 0, [x, online, 100])
    np.testing.assert_allclose(online, softmax(x), rtol=5e-6)


def test_layernorm(device: Emulator) -> None:
    x, weight, bias = normal(7, 70), normal(70, seed=1), normal(70, seed=2)
    out, mean, rstd = (device.empty(shape, np.float32) for shape in ((7, 70), (7,), (7,)))
    device.launch("layernorm_forward", (4,), (64,), 0, [out, mean, rstd, x, weight, bias, 7, 70])
    exact = x.astype(np.float64)
    scale = 1 / np.sqrt(exact.var(1) + 1e-5)
    np.testing.assert_allclose(mean, exact.mean(1), atol=1e-6)
    np.testing.assert_allclose(rstd, scale, rtol=1e-6)
    expected = (exact - exact.mean(1, keepdims=True)) * scale[:, None] * weight + bias
    np.testing.assert_allclose(out, expected, atol=2e-6)
    device.launch("layernorm_forward", (4,), (64,), 0, [out, None, None, x, weight, bias, 7, 70])


def test_rmsnorm_in_bfloat16(device: Emulator) -> None:
    x, weight = normal(3, 200).astype(BFLOAT16), normal(200, seed=1).astype(BFLOAT16)
    out = device.empty((3, 200), BFLOAT16)
    device.launch("rmsnorm_bf16", (3,), (64,), 0, [out, x, weight, 100, 1e-6])
    exact = x.astype(np.float64)
    normed = (exact / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-6)).astype(BFLOAT16)
    expected = (normed.astype(np.float32) * weight.astype(np.float32)).astype(BFLOAT16)
    np.testing.assert_allclose(out.astype(np.float32), expected.astype(np.float32), rtol=2**-7)


def test_histograms(device: Emulator) -> None:
    data = np.random.default_rng(4).integers(0, 40, 1000).astype(np.uint8)
    bins = np.zeros(256, np.uint32)
    device.launch("histogram", (3,), (96,), 0, [bins, data, 1000])
    np.testing.assert_array_equal(bins, np.bincount(data, minlength=256))
    matched = np.zeros(40, np.int32)
    device.launch("histogram_match", (8,), (128,), 0, [matched, data.astype(np.int32), 1000])
    np.testing.assert_array_equal(matched, np.bincount(data, minlength=40))


def test_scans(device: Emulator) -> None:
    x = np.random.default_rng(5).integers(0, 9, 256).astype(np.float32)
    out = device.empty((256,), np.float32)
    device.launch("scan_exclusive", (1,), (128,), 4 * (256 + 8), [out, x, 256])
    np.testing.assert_array_equal(out, np.cumsum(x) - x)
    data = x.astype(np.int32)
    device.launch("scan_inclusive", (1,), (256,), 0, [data])
    np.testing.assert_array_equal(data, np.cumsum(x))


def test_matrix_products(device: Emulator) -> None:
    a, b = normal(64, 32), normal(32, 64, seed=1)
    exact = a.astype(np.float64) @ b
    out = device.empty((64, 64), np.float32)
    device.launch("matrixMul<16>", (4, 4), (16, 16), 0, [out, a, b, 32, 64])
    np.testing.assert_allclose(out, exact, atol=1e-5)
    out = device.empty((64, 64), np.float32)
    device.launch("tiled::sgemm_vectorized", (1, 1), (256,), 0, [64, 64, 32, a, b, out])
    np.testing.assert_allclose(out, exact, atol=1e-5)


def test_products_in_half(device: Emulator) -> None:
    a, x = normal(6, 128).astype(np.float16), normal(128, seed=1).astype(np.float16)
    out = device.empty((6,), np.float16)
    device.launch("hgemv", (6,), (32,), 0, [out, a, x, 64])
    exact = a.astype(np.float64) @ x.astype(np.float64)
    np.testing.assert_allclose(out.astype(np.float64), exact, atol=0.1)


@pytest.mark.parametrize("n", [64, 1000, 1003])
def test_vectors_of_bfloat16(device: Emulator, n: int) -> None:
    x, y = device.from_host(normal(n).astype(BFLOAT16)), device.from_host(normal(n, seed=1).astype(BFLOAT16))
    out = device.empty((n,), BFLOAT16)
    device.launch("add_bf16", (-(-n // 512),), (64,), 0, [out, x, y, n])
    np.testing.assert_array_equal(out, (x.astype(np.float32) + y.astype(np.float32)).astype(BFLOAT16))


def test_a_vector_is_one_access() -> None:
    device = emulator()
    x, y = (device.from_host(normal(1024, seed=i).astype(BFLOAT16)) for i in range(2))
    device.launch("add_bf16", (1,), (128,), 0, [device.empty((1024,), BFLOAT16), x, y, 1024])
    counters = counted(device)
    # Four warps read two arrays and write one, 16 bytes per lane.
    assert counters.global_requests == counters.global_full_requests == 4 * 3


# --- what a source may declare ---


@pytest.mark.parametrize(("cpp", "dtype"), [("float", np.float32), ("double", np.float64), ("short", np.int16)])
def test_dynamic_shared_memory_in_a_template(device: Emulator, cpp: str, dtype: Any) -> None:
    x = np.arange(100).astype(dtype)
    out = np.zeros(100, dtype)
    device.launch(f"dynamic_in_a_template<{cpp}>", (1,), (64,), x.nbytes, [out, x, 100])
    np.testing.assert_array_equal(out, x[::-1])


def test_forms_of_static_shared_memory(device: Emulator) -> None:
    x, i = np.random.default_rng(6).integers(-9, 9, 64).astype(np.float32), np.arange(64)
    out = device.empty((64,), np.float32)
    device.launch("static_forms", (1,), (64,), 0, [out, x])
    back = x[::-1]
    expected = 10 * back + 2 * i[::-1] + 7 + np.roll(x, -1) + np.roll(i, -1)
    np.testing.assert_array_equal(out, expected)


def test_all_names_of_dynamic_shared_memory_are_one(device: Emulator) -> None:
    x = np.random.default_rng(7).integers(-9, 9, 64).astype(np.float32)
    out = device.empty((64,), np.float32)
    device.launch("dynamic_forms", (1,), (64,), 256, [out, x])
    expected = x.reshape(16, 4)[:, ::-1].reshape(-1).copy()
    expected[3::4] += 1
    np.testing.assert_array_equal(out, expected + np.arange(64) % 32)


def test_static_and_dynamic_shared_memory_share_a_blocks_limit() -> None:
    device, out = emulator(), np.zeros(32, np.int32)
    device.launch("takes_shared<49152>", (1,), (32,), device.shared_bytes - 49152, [out])
    assert out.all()
    with pytest.raises(LaunchError, match="declares 49153 bytes of __shared__ variables, a GPU has 49152"):
        device.launch("takes_shared<49153>", (1,), (32,), 0, [out])
    with pytest.raises(LaunchError, match="49152 bytes of __shared__ variables and 183297 of dynamic"):
        device.launch("takes_shared<49152>", (1,), (32,), device.shared_bytes - 49152 + 1, [out])


def test_what_a_kernel_does_not_reach_takes_no_shared_memory() -> None:
    seen: list[int] = []
    device = emulator(observe=lambda launch, counters: seen.append(launch.shared_bytes))
    device.launch("takes_shared<1000>", (1,), (32,), 24, [np.zeros(32, np.int32)])
    assert seen == [1024]


def test_variables_keep_their_values_and_can_be_set(device: Emulator) -> None:
    x, out = normal(8), np.zeros(8, np.float32)
    expected = (np.roll(x, 1) + 2 * x + np.roll(x, -1)) / 4
    device.launch("uses_variables", (1,), (8,), 0, [out, x, 8])
    np.testing.assert_allclose(out, expected, atol=1e-6)
    device.write_variable("uses_variables", "table", np.arange(4, dtype=np.float32))
    device.launch("uses_variables", (1,), (8,), 0, [out, x, 8])
    np.testing.assert_allclose(out, expected + np.arange(8) % 4, atol=1e-6)
    # Another kernel of the file sees what the first one wrote; another emulator has variables of its own.
    counts = np.zeros(5, np.int32)
    device.launch("reads_variables", (1,), (8,), 0, [counts])
    assert counts.tolist() == [8, 8, 0, 0, 2]
    emulator(checked=device.checked).launch("reads_variables", (1,), (8,), 0, [counts])
    assert counts.tolist() == [0, 0, 0, 0, 0]
    assert device.read_variable("reads_variables", "history", np.int32).tolist() == [8, 8, 0, 0]
    with pytest.raises(LaunchError, match=r"uses no variable nothing of shared\.cu; there are calls, coefficients"):
        device.write_variable("uses_variables", "nothing", counts)
    with pytest.raises(LaunchError, match=r"table of shared\.cu has 16 bytes, the array 20"):
        device.write_variable("uses_variables", "table", counts)


# --- bugs in memory that a source declares ---


def floats(n: int = 64) -> Array:
    return np.arange(n, dtype=np.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_races_in_shared_variables_are_found(schedule: Schedule) -> None:
    error = fails("race", [floats(), floats()], schedule=schedule)
    assert error.kind == "data race" and "of __shared__ tile" in str(error) and error.threads[0] != error.threads[1]
    error = fails("scalar_race", [floats()], schedule=schedule)
    assert error.kind == "data race" and "byte 0 of __shared__ sum" in str(error)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reads_of_unwritten_shared_variables_are_found(schedule: Schedule) -> None:
    error = fails("uninitialized", [floats(), floats(), 60], schedule=schedule)
    assert error.kind == "uninitialized read" and re.search(r"byte 2(40|44|48|52) of __shared__ tile", str(error))
    error = fails("leftover", [floats(128)], grid=2, schedule=schedule, workers=1)
    assert error.kind == "uninitialized read" and error.block == (1, 0, 0)


def test_the_compiler_sees_an_index_past_the_end_of_a_shared_array() -> None:
    emulator().launch("index_past_end", (1,), (64,), 0, [floats(), 0])
    assert fails("index_past_end", [floats(), 1]).kind == "array index"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shift", [1, 8, 16])
def test_a_pointer_past_the_end_of_a_shared_variable_is_found(schedule: Schedule, shift: int) -> None:
    emulator(schedule=schedule).launch("pointer_past_end", (1,), (64,), 0, [floats(), 0])
    with pytest.raises(KernelError) as info:
        emulator(schedule=schedule).launch("pointer_past_end", (1,), (64,), 0, [floats(), shift])
    error = info.value
    assert error.kind == "out of bounds" and error.source in bug_lines("planted.cu", "pointer_past_end")
    assert re.search(
        r"writes 4 bytes of shared memory .* bytes past the end of __shared__ (tile|next) \(256", str(error)
    )
    error = fails("pointer_before_start", [floats(), shift], schedule=schedule)
    assert error.kind == "out of bounds" and "__shared__" in str(error)


def test_dynamic_memory_ends_where_the_launch_says() -> None:
    error = fails("dynamic_past_end", [floats()], shared=256)
    assert error.kind == "out of bounds" and "0 bytes past the end of the block's 256 bytes of dynamic" in str(error)


def test_a_vector_in_shared_memory_must_be_aligned() -> None:
    error = fails("misaligned", [floats()], block=32)
    assert error.kind == "misaligned access" and "not a multiple of 16" in str(error)


@pytest.mark.parametrize("checked", [True, False])
def test_an_assertion_says_where_and_who(checked: bool) -> None:
    args: list[Any] = [np.arange(64, dtype=np.int32), 64]
    emulator(checked=checked).launch("failing_assert", (1,), (64,), 0, args)
    error = fails("failing_assert", [args[0], 63], checked=checked)
    assert error.kind == "assertion" and 'thread 63 fails assert(in[threadIdx.x] < n && "an index")' in str(error)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variables_of_a_source_are_checked(schedule: Schedule) -> None:
    ints = np.zeros(64, np.int32)
    error = fails("writes_constant", [ints], schedule=schedule)
    assert error.kind == "read-only memory" and "byte 4 of __constant__ fixed" in str(error)
    error = fails("variable_race", [ints], schedule=schedule)
    assert error.kind == "data race" and "byte 0 of __device__ counter" in str(error)
    with pytest.raises(KernelError, match=r"out of bounds.*bytes past the end of __device__ values \(32 bytes\)"):
        emulator(schedule=schedule).launch("variable_past_end", (1,), (64,), 0, [floats(), floats()])


def test_activemask_promises_nothing_of_other_lanes() -> None:
    for schedule in ("forward", "reverse"):
        emulator(schedule).launch("believes_in_activemask", (1,), (32,), 0, [np.zeros(32, np.int32)])
    error = fails("believes_in_activemask", [np.zeros(32, np.int32)], block=32, schedule="random")
    assert error.kind == "divergence" and "that lane does not take part" in str(error)


def test_memory_functions_are_checked() -> None:
    source, out = (np.arange(n, dtype=np.int8) for n in (100, 80))
    emulator().launch("memcpy_past_end", (1,), (1,), 0, [out, source, 80])
    np.testing.assert_array_equal(out, source[:80])
    error = fails("memcpy_past_end", [out, source, 81], block=1)
    assert error.kind == "out of bounds" and "argument 0 (out)" in str(error)


# --- what is refused, and what is CUDA ---

REFUSED = {
    "allocation": ("allocates", "allocation.cu:2: memory cannot be allocated in a kernel here"),
    "cluster": ("cluster", "cluster.cu:1: thread block clusters are not emulated"),
    "cub": ("uses_cub", "cub.cu:1: <cub/cub.cuh> is not among the emulator's headers"),
    "grid_sync": ("grid_sync", "grid_sync.cu:5: grid.sync() is not emulated: a block runs to its end"),
    "initialised": ("initialised", "initialised.cu:2: CUDA has no __shared__ variables with an initialiser"),
    "large_tile": ("large_tile", "large_tile.cu:6: static assertion failed: a tile has 1, 2, 4, 8, 16 or 32 threads"),
    "launches": ("launched", "launches.cu:7: the file holds host code"),
    "managed": ("managed", "managed.cu:1: __managed__ variables are not emulated"),
    "mistake": ("mistake", "mistake.cu:2: error: ‘undeclared’ was not declared in this scope"),
    "overloaded": ("overloaded", "kernel overloaded is defined twice in overloaded.cu"),
    "ptx": ("ptx", "ptx.cu:3: PTX is not emulated: inline asm has no meaning on a CPU. Use CUDA's functions, or the"),
    "ptx_spelled_otherwise": ("ptx_spelled_otherwise", "PTX is not emulated"),
    "texture": ("texture_read", "texture.cu:1: textures and surfaces are not emulated"),
    "too_much": ("too_much", "too_much declares 262144 bytes of __shared__ variables, a GPU has 49152 for them"),
    "unknown": ("unknown", "unknown.cu:1: __vabsdiffu4 is not among the functions that the emulator has"),
    "wmma": ("wmma", "wmma.cu:1: wmma is not emulated: use ldmatrix and mma of <mma.cuh>"),
}


def test_every_refused_file_has_its_message() -> None:
    assert {path.stem for path in (DIALECT / "refused").glob("*.cu")} == set(REFUSED)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("file", REFUSED)
def test_what_is_not_supported_is_refused_in_one_sentence(file: str, checked: bool, tmp_path: Path) -> None:
    kernel, words = REFUSED[file]
    shutil.copy(DIALECT / "refused" / f"{file}.cu", tmp_path)
    device = Emulator(kernels=tmp_path, checked=checked)
    with pytest.raises(LaunchError) as info:
        device.launch(kernel, (1,), (32,), 0, [np.zeros(32, np.float32)])
    assert words in str(info.value) and len(str(info.value).splitlines()) == 1, info.value


def test_kernels_are_found_where_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text(
        """
        // __global__ void commented(int* out) {}
        namespace outer { namespace {
        struct Plus { static constexpr int value = 1; };
        template <typename T, class Op = Plus, int N = (2 > 1 ? 3 : 4)>
        __launch_bounds__(N * 32) static __global__ void inside(T* __restrict__ out) {
          out[threadIdx.x] = N + Op::value;
        }
        } }
        extern "C" { __global__ void declared(int* out); }
        extern "C" __global__ void declared(int* out) { out[threadIdx.x] = 5; }
        template <typename T> __global__ void special(T* out) { out[threadIdx.x] = 6; }
        template <> __global__ void special<int>(int* out) { out[threadIdx.x] = 7; }
        __global__ void array(int out[32], const int unused[2][2] = nullptr) { out[threadIdx.x] = 8; }
        """
    )
    for instance, value in {
        "outer::inside<int>": 4,
        "inside<int, Plus, 7>": 8,
        "declared": 5,
        "special<int>": 7,
        "special<float>": 6,
    }.items():
        out = np.zeros(32, np.float32 if "float" in instance else np.int32)
        Emulator(kernels=tmp_path, checked=True).launch(instance, (1,), (32,), 0, [out])
        assert (out == value).all(), instance
    out = np.zeros(32, np.int32)
    Emulator(kernels=tmp_path, checked=True).launch("array", (1,), (32,), 0, [out, out])
    with pytest.raises(LaunchError, match=r"argument 1 \(unused\) is int, the kernel wants an array of int32"):
        Emulator(kernels=tmp_path).launch("array", (1,), (32,), 0, [out, 3])
    with pytest.raises(LaunchError, match="no kernel is called commented; there are array, declared, inside, special"):
        Emulator(kernels=tmp_path).launch("commented", (1,), (32,), 0, [out])


def test_a_file_beside_the_kernel_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "inner.h").write_text("#define VALUE 3\n")
    (tmp_path / "outer.h").write_text('#include "inner.h"\n')
    (tmp_path / "k.cu").write_text('#include "outer.h"\n__global__ void k(int* out) { out[threadIdx.x] = VALUE; }\n')
    device, out = Emulator(kernels=tmp_path), np.zeros(1, np.int32)
    device.launch("k", (1,), (1,), 0, [out])
    assert out[0] == 3
    (tmp_path / "inner.h").write_text("#define VALUE 4444\n")
    device.launch("k", (1,), (1,), 0, [out])
    assert out[0] == 4444


def test_our_primitives_and_cudas_words_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text(
        """
        #include <cuda_runtime.h>
        #include <mma.cuh>
        __global__ void k(unsigned* out, const unsigned short* in) {
          __shared__ __align__(16) unsigned short tile[8][8];
          for (int i = threadIdx.x; i < 64; i += 32) tile[i / 8][i % 8] = in[i];
          __syncthreads();
          uint32_t registers[1];
          ldmatrix_x1(registers, tile[threadIdx.x % 8]);
          out[threadIdx.x] = registers[0];
        }
        """
    )
    x, out = np.arange(64, dtype=np.uint16), np.zeros(32, np.uint32)
    Emulator(kernels=tmp_path, checked=True).launch("k", (1,), (32,), 0, [out, x])
    np.testing.assert_array_equal(out.view(np.uint16), x)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc to say what CUDA is")
@pytest.mark.parametrize("file", sorted(path.name for path in DIALECT.glob("*.cu")))
def test_what_we_call_cuda_is_cuda(file: str, tmp_path: Path) -> None:
    command = ["nvcc", "-arch=sm_80", "-ptx", "-o", str(tmp_path / "out.ptx"), str(DIALECT / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_on_your_own_kernel_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (DIALECT.parents[2] / "docs" / "your-kernel.md").read_text()
    (kernel,) = re.findall(r"```cuda\n(.*?)```", page, re.DOTALL)
    program, report = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_kernels").mkdir()
    file = tmp_path / "my_kernels" / "row_sums.cu"
    file.write_text(kernel)
    program = program.replace('Path("my_kernels")', f'Path("{file.parent}")')
    names: dict[str, Any] = {}
    exec(compile(program, "your-kernel.md", "exec"), names)
    assert capsys.readouterr().out == "ok\n"
    # The kernel without its barrier gets the report that the page shows, in whichever block it comes first.
    file.write_text(kernel.replace("  __syncthreads();\n", "", 1))
    with pytest.raises(KernelError) as info:
        exec(compile(program, "your-kernel.md", "exec"), {})
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    in_any_block = re.compile(r"(?<=block \()\d|(?<=thread )\d+|(?<=byte )\d+")
    assert in_any_block.sub("N", str(info.value)) == in_any_block.sub("N", " ".join(shown.split()))
    exec(compile(report, "your-kernel.md", "exec"), {"device": names["device"], "error": info.value})


def test_the_page_names_the_headers_that_there_are() -> None:
    page = (DIALECT.parents[2] / "docs" / "your-kernel.md").read_text()
    seam = sources.emulator_directory()
    for path in sources.cuda_headers(seam):
        name = path.relative_to(seam / "cuda").as_posix()
        forwards = path.read_text().startswith('#pragma once\n#include "cuda_runtime.h"\n') and path.suffix == ".h"
        if path.name.startswith("emulator_") or name in ("mma.h", "assert.h") or forwards:
            continue
        assert f"`{name}`" in page or (name.startswith("cuda/std/") and f"`{path.name}`" in page), name
