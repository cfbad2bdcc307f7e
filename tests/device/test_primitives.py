"""Each primitive of the emulator against a NumPy model written from its definition in the PTX ISA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.dry_run import Launch
from gemma_cuda.device.emulator.counters import Counters
from gemma_cuda.device.emulator.device import Approximation, Emulator
from gemma_cuda.device.emulator.memory import POISON
from gemma_cuda.errors import LaunchError
from tests.support.emulated import KernelTestDevice
from tests.support.golden import GoldenFile, GoldenLaunch
from tests.support.paths import KERNELS

DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "half": np.float16}
Array = np.ndarray[Any, Any]
LANE = np.arange(32)


Run = Callable[..., Any]


@pytest.fixture
def run(kernel_test_device: KernelTestDevice, golden_file: GoldenFile | None) -> Run:
    """Counters of a checked launch, whose results are the bits of an unchecked one; None on a GPU."""

    def launch(
        instance: str, args: list[Any], *, grid: Any = (1,), block: Any = (32,), shared: int = 0, **options: Any
    ) -> Any:
        arrays = [i for i, value in enumerate(args) if isinstance(value, np.ndarray) and value.flags.writeable]
        copies = [np.array(value) if i in arrays else value for i, value in enumerate(args)]
        given = [np.array(value) if i in arrays else value for i, value in enumerate(args)]
        options = {"kernels": KERNELS, "workers": None, **options}
        device = kernel_test_device(**options)
        kernel_test_device(**{**options, "checked": False}).launch(instance, grid, block, shared, copies)
        device.launch(instance, grid, block, shared, args)
        for i in arrays:
            assert args[i].tobytes() == copies[i].tobytes(), f"{instance}: two launches differ in argument {i}"
        if golden_file is not None:
            golden_file.add(GoldenLaunch(instance, grid, block, shared, given, {i: args[i] for i in arrays}))
        return device.counters

    return launch


def constant(array: Any) -> Array:
    """Read-only copy, so that `run` does not compare it."""
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


# --- numbers ---


def hard_floats(dtype: Any) -> Array:
    """float32 values around every rounding: all values of dtype, ties between them, their neighbours, specials."""
    values = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    ties = (values[:-1].astype(np.float64) + values[1:].astype(np.float64)).astype(np.float32) / 2
    around = np.concatenate([values, ties])
    beside = [np.nextafter(around, np.float32(side)) for side in (-np.inf, np.inf)]
    special = np.array(
        [np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, 65520, 65519.996], np.float32
    )
    return np.concatenate([around, *beside, special])


@pytest.mark.gpu
@pytest.mark.parametrize("name", DTYPES)
def test_rounding_is_to_nearest_even(name: str, run: Run) -> None:
    dtype = DTYPES[name]
    with np.errstate(over="ignore"):
        x = hard_floats(dtype)
        expected = x.astype(dtype)
    y = np.zeros(x.size, dtype)
    run(f"round_to<{name}>", [y, constant(x), x.size], grid=(-(-x.size // 256),), block=(256,))
    nan = np.isnan(x)
    assert (y[nan].view(np.uint16) == 0x7FFF).all()
    np.testing.assert_array_equal(y[~nan].view(np.uint16), expected[~nan].view(np.uint16))


@pytest.mark.gpu
@pytest.mark.parametrize("name", DTYPES)
def test_widening_is_exact(name: str, run: Run) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    bits[POISON] = 0  # stands for memory that nobody has written
    out = np.zeros(65536, np.float32)
    run(f"widen<{name}>", [out, constant(bits.view(DTYPES[name]))], grid=(256,), block=(256,))
    np.testing.assert_array_equal(out, bits.view(DTYPES[name]).astype(np.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("name", DTYPES)
def test_pack_puts_the_first_value_low(name: str, run: Run) -> None:
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    out = np.zeros(32, np.uint32)
    run(f"pack_pairs<{name}>", [out, constant(x)])
    np.testing.assert_array_equal(out, x.astype(DTYPES[name]).view(np.uint32))


SIGNS = {"exact": 0, "up": 1, "down": -1}


def approximated(run: Run, function: str, x: Array, approx: Approximation) -> Array:
    y = np.zeros(x.size, np.float32)
    run(f"approximate<{function}>", [y, constant(x), x.size], grid=(-(-x.size // 256),), block=(256,), approx=approx)
    return y


@pytest.mark.parametrize("approx", ["exact", "up", "down"])
def test_exp2_is_two_units_in_the_last_place_off_at_worst(approx: Approximation, run: Run) -> None:
    x = np.concatenate([np.linspace(-125, 127, 4001), np.linspace(-1, 1, 4000)]).astype(np.float32)
    x = x[x != 0]
    correctly_rounded = np.exp2(x.astype(np.float64)).astype(np.float32)
    assert (
        approximated(run, "Exp2", x, approx).view(np.int32) - correctly_rounded.view(np.int32) == 2 * SIGNS[approx]
    ).all()


@pytest.mark.parametrize("approx", ["exact", "up", "down"])
@pytest.mark.parametrize("name", ["Tanh", "Rsqrt", "Reciprocal"])
def test_approximations_carry_their_documented_worst_error(name: str, approx: Approximation, run: Run) -> None:
    if name == "Tanh":
        x, worst = np.linspace(-9, 9, 4000).astype(np.float32), 2.0**-11
        exact = np.tanh(x.astype(np.float64))
    elif name == "Rsqrt":
        x, worst = np.geomspace(1e-37, 3e38, 4000).astype(np.float32), 2.0**-22.9
        exact = 1 / np.sqrt(x.astype(np.float64))
    else:
        x, worst = np.geomspace(1e-37, 8e37, 4000).astype(np.float32), 2.0**-23
        x[::2] *= -1
        exact = 1 / x.astype(np.float64)
    y = approximated(run, name, x, approx)
    error = (y.astype(np.float64) - exact) / exact
    inside = np.abs(exact) < 0.999 if name == "Tanh" else np.full(x.shape, True)
    half_ulp = 2.0**-24
    assert np.abs(error[inside] - SIGNS[approx] * worst).max() <= 2.1 * half_ulp
    assert name != "Tanh" or np.abs(y).max() <= 1


# Maximum errors in units in the last place, beyond the correctly rounded result: CUDA C++ Programming Guide.
LIBRARY: dict[str, tuple[int, Any, Array]] = {
    "LibraryRsqrt": (2, lambda x: 1 / np.sqrt(x), np.geomspace(1e-44, 3e38, 4000)),
    "LibraryLog2": (1, np.log2, np.geomspace(1e-44, 3e38, 4000)),
    "LibraryTanh": (2, np.tanh, np.concatenate([np.linspace(-9, 9, 4000), np.geomspace(1e-3, 1, 4000)])),
}


@pytest.mark.parametrize("approx", ["exact", "up", "down"])
@pytest.mark.parametrize("name", LIBRARY)
def test_functions_of_cudas_math_library_carry_their_documented_worst_error(
    name: str, approx: Approximation, run: Run
) -> None:
    ulps, function, arguments = LIBRARY[name]
    x = arguments.astype(np.float32)
    exact = function(x.astype(np.float64))
    rounded = exact.astype(np.float32)
    size = np.abs(rounded).view(np.int32) + SIGNS[approx] * np.where(exact == rounded, 0, ulps)
    if name == "LibraryTanh":
        size = np.minimum(size, np.float32(1).view(np.int32))
    y = approximated(run, name, x, approx)
    # NumPy and the host's C library may round a double differently where it lies between two floats.
    assert (np.abs(np.abs(y).view(np.int32) - size) <= 1).all() and (np.abs(y).view(np.int32) == size).mean() > 0.999
    assert np.array_equal(np.signbit(y), np.signbit(rounded))


@pytest.mark.parametrize("approx", ["exact", "up", "down"])
def test_functions_of_cudas_math_library_keep_special_values(approx: Approximation, run: Run) -> None:
    inf, nan = np.inf, np.nan
    cases = {
        "LibraryRsqrt": [(0, inf), (-0.0, -inf), (inf, 0), (-1, nan), (nan, nan), (0.25, 2), (1, 1)],
        "LibraryLog2": [(0, -inf), (-0.0, -inf), (inf, inf), (-1, nan), (nan, nan), (1, 0), (8, 3), (2.0**-149, -149)],
        "LibraryTanh": [(0, 0), (-0.0, -0.0), (inf, 1), (-inf, -1), (nan, nan), (20, 1), (-20, -1)],
    }
    for name, pairs in cases.items():
        x, expected = np.array(pairs, np.float32).T
        np.testing.assert_array_equal(approximated(run, name, x, approx), expected, err_msg=name)


@pytest.mark.parametrize("approx", ["exact", "up", "down"])
def test_approximations_flush_subnormals_and_keep_special_values(approx: Approximation, run: Run) -> None:
    tiny = np.float32(1e-40)
    inf, nan = np.inf, np.nan
    cases = {
        "Exp2": [(tiny, 1), (-tiny, 1), (0, 1), (-0.0, 1), (-130, 0), (-inf, 0), (inf, inf), (200, inf), (nan, nan)],
        "Tanh": [(tiny, tiny), (-tiny, -tiny), (0, 0), (-0.0, -0.0), (inf, 1), (-inf, -1), (nan, nan)],
        "Rsqrt": [(tiny, inf), (-tiny, -inf), (0, inf), (-0.0, -inf), (inf, 0), (-1, nan), (nan, nan)],
        "Reciprocal": [
            *[(tiny, inf), (-tiny, -inf), (0, inf), (-0.0, -inf), (inf, 0), (-inf, -0.0), (nan, nan)],
            *[(3e38, 0), (-3e38, -0.0)],  # the result would be subnormal
        ],
    }
    for name, pairs in cases.items():
        x, expected = np.array(pairs, np.float32).T
        y = np.ones(x.size, np.float32)
        run(f"approximate<{name}>", [y, constant(x), x.size], approx=approx)
        np.testing.assert_array_equal(y, expected, err_msg=name)
        assert (np.signbit(y) == np.signbit(expected))[~np.isnan(y)].all(), name


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "x", "worst"),
    [
        ("Exp2", np.linspace(-125, 127, 8001), 2.0**-22),
        ("Tanh", np.linspace(-9, 9, 8001), 2.0**-11),
        ("Rsqrt", np.geomspace(1e-37, 3e38, 8001), 2.0**-22.9),
        ("Reciprocal", np.geomspace(1e-37, 1e37, 8001), 2.0**-23),
    ],
)
def test_no_approximation_is_worse_than_documented(name: str, x: Array, worst: float, run: Run) -> None:
    function = {"Exp2": np.exp2, "Tanh": np.tanh, "Rsqrt": lambda x: 1 / np.sqrt(x), "Reciprocal": lambda x: 1 / x}
    x = x.astype(np.float32)
    exact = function[name](x.astype(np.float64))
    error = np.abs(approximated(run, name, x, "exact") - exact)
    assert (error <= (worst + 2.0**-24) * np.abs(exact)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("valid", [0, 4, 16])
def test_async_copies_fill_with_zeros(valid: int, run: Run) -> None:
    source = 1 + np.arange(128, dtype=np.float32)
    out = np.zeros(32, np.float32)
    run("ok_async", [out, constant(source), valid], shared=512)
    expected = source.reshape(32, 4).copy()
    expected[:, valid // 4 :] = 0
    np.testing.assert_array_equal(out, expected.reshape(-1)[:32])


# --- threads and warps ---


@pytest.mark.gpu
def test_threads_know_where_they_are(run: Run) -> None:
    block, grid = (5, 3, 4), (2, 3, 2)
    out = np.zeros((12, 60, 12), np.int32)
    run("indices", [out], grid=grid, block=block)
    for b in range(12):
        for t in range(60):
            expected = [t % 5, t // 5 % 3, t // 15, b % 2, b // 2 % 3, b // 6, *block, *grid]
            assert out[b, t].tolist() == expected


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
def test_shuffles(width: int, schedule: Any, run: Run) -> None:
    random = np.random.default_rng(width)
    for argument in (random.integers(0, 32, 32), np.full(32, 1), random.integers(0, 64, 32)):
        out = np.zeros((4, 32), np.int32)
        run(f"shuffle<{width}>", [out, constant(argument.astype(np.int32))], schedule=schedule)
        first = LANE // width * width
        last = first + width - 1
        b = argument % 32
        source = {0: first + b % width, 1: LANE - b, 2: LANE + b, 3: LANE ^ b}
        inside = {0: LANE >= 0, 1: source[1] >= first, 2: source[2] <= last, 3: source[3] <= last}
        for op in range(4):
            np.testing.assert_array_equal(out[op], 100 + np.where(inside[op], source[op], LANE), err_msg=f"op {op}")


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x80000001, 0x00010000])
def test_votes(mask: int, run: Run) -> None:
    random = np.random.default_rng(mask)
    members = mask >> LANE & 1 == 1
    for predicate in (random.integers(0, 2, 32), np.zeros(32), np.ones(32), np.where(members, 3, 0)):
        out = np.zeros((3, 32), np.uint32)
        run("vote", [out, constant(predicate.astype(np.int32)), mask])
        ballot = sum(1 << int(lane) for lane in LANE[members & (predicate != 0)])
        expected = [ballot, int(ballot != 0), int(ballot == mask)]
        np.testing.assert_array_equal(
            out[:, members], np.repeat(np.array(expected, np.uint32)[:, None], members.sum(), 1)
        )


NUMBERS = [("int", np.int32), ("unsigned", np.uint32), ("unsigned long long", np.uint64), ("float", np.float32)]


@pytest.mark.gpu
@pytest.mark.parametrize(("cpp", "dtype"), NUMBERS)
def test_atomics(cpp: str, dtype: Any, run: Run) -> None:
    start = -7 if dtype in (np.int32, np.float32) else 7
    memory, old = np.full(2, start, dtype), np.zeros(2, dtype)
    run(f"atomics<{cpp}>", [memory, old, constant(np.array([3, 4], dtype))])
    assert old.tolist() == [start] * 2 and memory.tolist() == [start + 3, 4]
    if cpp == "float":
        return
    memory, old = np.full(4, start, dtype), np.zeros(4, dtype)
    value = constant(np.array([2, 9, start, 6, 1], dtype))
    run(f"compared_atomics<{cpp}>", [memory, old, value])
    assert old.tolist() == [start] * 4
    assert memory.tolist() == [min(start, 2), max(start, 9), 6, start]


@pytest.mark.parametrize("instance", ["compared_atomics<float>", "atomics<short>"])
def test_atomics_that_cuda_lacks_do_not_compile(instance: str) -> None:
    with pytest.raises(LaunchError, match="does not compile"):
        Emulator(kernels=KERNELS).launch(instance, (1,), (32,), 0, [None, None, None])


# --- matrices: fragments as the PTX ISA lays them out over lanes ---


def element(matrix: Array, lane: int, half: int) -> Any:
    """What lane `lane` holds of an 8 × 8 matrix: two neighbours of row lane / 4."""
    return matrix[lane // 4, 2 * (lane % 4) + half]


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["Straight", "Transposed"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, form: str, run: Run) -> None:
    random = np.random.default_rng(count)
    memory = random.integers(0, 65536, 1024).astype(np.uint16)
    rows = 8 * random.permutation(128)[:32].astype(np.int32)
    out = np.zeros((32, count), np.uint32)
    run(f"load_matrices<{count}, {form}>", [out, constant(memory), constant(rows), 1024], shared=2048)
    for i in range(count):
        matrix = np.stack([memory[row : row + 8] for row in rows[8 * i : 8 * i + 8]])
        matrix = matrix.T if form == "Transposed" else matrix
        for lane in range(32):
            assert out[lane, i] == int(element(matrix, lane, 0)) | int(element(matrix, lane, 1)) << 16


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["Straight", "Transposed"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count: int, form: str, run: Run) -> None:
    random = np.random.default_rng(count)
    registers = random.integers(0, 2**32, (32, count)).astype(np.uint32)
    rows = 8 * random.permutation(128)[:32].astype(np.int32)
    out = np.zeros(1024, np.uint16)
    run(f"store_matrices<{count}, {form}>", [out, constant(registers), constant(rows), 1024], shared=2048)
    expected = np.zeros(1024, np.uint16)
    for i in range(count):
        for lane in range(32):
            for half in range(2):
                r, c = lane // 4, 2 * (lane % 4) + half
                r, c = (c, r) if form == "Transposed" else (r, c)
                expected[rows[8 * i + r] + c] = registers[lane, i] >> 16 * half & 0xFFFF
    np.testing.assert_array_equal(out, expected)


def fragments(a: Array, b: Array, d: Array) -> tuple[Array, Array, Array]:
    """Elements per lane, a [32, 8], b [32, 4], d [32, 4], of a [16, 16], b [16, 8], d [16, 8] in m16n8k16."""
    group, member = LANE // 4, LANE % 4
    a_row = np.stack([group + 8 * (i // 2 % 2) for i in range(8)], 1)
    a_column = np.stack([2 * member + i % 2 + 8 * (i // 4) for i in range(8)], 1)
    b_row = np.stack([2 * member + i % 2 + 8 * (i // 2) for i in range(4)], 1)
    d_row = np.stack([group + 8 * (i // 2) for i in range(4)], 1)
    d_column = np.stack([2 * member + i % 2 for i in range(4)], 1)
    return a[a_row, a_column], b[b_row, group[:, None]], d[d_row, d_column]


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("name", DTYPES)
def test_mma(name: str, tiles: int, run: Run) -> None:
    random, dtype = np.random.default_rng(tiles), DTYPES[name]
    a = random.standard_normal((16, 16)).astype(dtype)
    b = random.standard_normal((tiles, 16, 8)).astype(dtype)
    start = random.standard_normal((tiles, 16, 8)).astype(np.float32)
    pieces = [fragments(a, b[n], start[n]) for n in range(tiles)]
    left = np.ascontiguousarray(pieces[0][0]).view(np.uint32)
    right = np.stack([np.ascontiguousarray(p[1]).view(np.uint32) for p in pieces])
    d = np.stack([p[2] for p in pieces])
    counters = run(f"multiply<{name}, {tiles}>", [d, constant(left), constant(right)])
    assert counters is None or counters.mma == tiles
    expected = start.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    magnitude = np.abs(start) + np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    for n in range(tiles):
        difference = np.abs(d[n] - fragments(a, b[n], expected[n])[2])
        assert (difference <= 17 * 2.0**-24 * fragments(a, b[n], magnitude[n])[2]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", DTYPES)
def test_mma_keeps_infinities_nan_and_subnormals(name: str, run: Run) -> None:
    dtype = DTYPES[name]
    a, b, d = np.zeros((16, 16), dtype), np.zeros((16, 8), dtype), np.zeros((16, 8), np.float32)
    tiny = np.uint16(1).view(dtype)
    a[0, 3], a[1, 4], a[2, 5], a[3, 6] = np.inf, np.nan, tiny, -np.inf
    b[3, :], b[4, :], b[5, :], b[6, :] = 2, 1, 1, 0
    left, right, sums = fragments(a, b, d)
    sums = np.ascontiguousarray(sums)
    run(
        f"multiply<{name}, 1>",
        [
            sums,
            constant(np.ascontiguousarray(left).view(np.uint32)),
            constant(np.ascontiguousarray(right).view(np.uint32)),
        ],
    )
    assert np.isposinf(sums[0:4, 0]).all() and np.isnan(sums[4:8, 0]).all()
    assert (sums[8:12, 0] == np.float32(tiny)).all() and np.isnan(sums[12:16, 0]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("threads", [32, 64, 128, 256, 1024])
def test_block_sum(threads: int, run: Run) -> None:
    x = np.random.default_rng(0).standard_normal(threads).astype(np.float32)
    out = np.zeros(threads, np.float32)
    run(f"sum_block<{threads}>", [out, constant(x)], block=(threads,), shared=4 * max(1, threads // 32))
    assert (out == out[0]).all() and abs(out[0] - x.astype(np.float64).sum()) < 1e-4


@pytest.mark.gpu
def test_dependent_launches_are_ordered(run: Run) -> None:
    out = np.zeros(32, np.float32)
    run("ordered_launches", [out])
    assert (out == 1).all()


# --- counters ---


def counted(instance: str, args: list[Any], *, schedule: Any = "forward", block: int = 32, shared: int = 0) -> Counters:
    device = Emulator(checked=True, kernels=KERNELS, schedule=schedule, seed=5)
    device.launch(
        instance, (1,), (block,), shared, [device.from_host(a) if isinstance(a, np.ndarray) else a for a in args]
    )
    assert device.counters is not None
    return device.counters


@pytest.mark.parametrize(
    ("size", "width", "stride", "sectors"),
    [(4, 1, 1, 4), (4, 1, 2, 8), (4, 1, 8, 32), (4, 1, 0, 1), (16, 4, 1, 16), (8, 2, 1, 8)],
)
def test_sectors_per_request_show_coalescing(size: int, width: int, stride: int, sectors: int) -> None:
    room = np.zeros(32 * max(stride, 1) * width, np.float32)
    counters = counted(f"copy_strided<float, {width}>", [np.zeros(32 * width, np.float32), room, stride])
    assert counters.global_read_bytes == counters.global_write_bytes == 32 * size
    assert counters.global_requests == 2
    assert counters.global_full_requests == (size == 16) * (1 + (sectors == size))
    assert counters.global_scalar_requests == (stride == 0)
    assert counters.global_request_sectors == sectors + size
    assert (counters.global_read_sectors, counters.global_write_sectors) == (sectors, size)


@pytest.mark.parametrize(
    ("width", "stride", "conflicts"),
    [(1, 1, 0), (1, 2, 1), (1, 3, 0), (1, 32, 31), (1, 0, 0), (2, 1, 0), (4, 1, 0), (4, 2, 4), (4, 8, 28)],
)
def test_bank_conflicts_per_request(width: int, stride: int, conflicts: int) -> None:
    floats = 32 * max(stride, 1) * width
    counters = counted(f"read_shared<{width}>", [np.zeros(32, np.float32), stride, floats], shared=4 * floats)
    fills = floats // 32
    assert counters.shared_requests == fills + 1
    assert counters.shared_bank_conflicts == conflicts
    assert counters.shared_wavefronts == fills + width + conflicts


@pytest.mark.parametrize(("pitch", "conflicts"), [(64, 7 * 4), (72, 0), (8, 0)])
def test_ldmatrix_rows_conflict_as_their_addresses_say(pitch: int, conflicts: int) -> None:
    rows = (np.arange(32) * pitch).astype(np.int32)
    elements = 32 * pitch
    counters = counted(
        "load_matrices<4, Straight>",
        [np.zeros(128, np.uint32), np.zeros(elements, np.uint16), rows, elements],
        shared=2 * elements,
    )
    assert counters.shared_bank_conflicts == conflicts


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_lanes_without_a_valid_byte_stay_in_step(schedule: Any) -> None:
    turns = 4
    valid = np.full((turns, 32), 16, np.int32)
    valid[0, 5:16] = valid[2] = 0
    arrays = [np.zeros((turns, 32, 4), np.float32) for _ in range(2)]
    counters = counted("copy_in_turns", [*arrays, valid, turns], schedule=schedule, shared=512 * turns)
    copies, others = 3, 2 * turns  # nobody asks for anything in the third turn
    assert counters.global_requests == copies + others
    assert counters.global_full_requests == 2 + turns
    assert counters.global_read_bytes == valid.sum() + valid.nbytes
    assert counters.global_request_sectors == (32 - 11 + 1) // 2 + 2 * 16 + turns * (4 + 16)
    assert counters.async_copies == turns * 32


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_counts_do_not_depend_on_the_schedule(schedule: Any) -> None:
    args = [np.zeros(96, np.float32), np.zeros(96, np.float32)]
    counters = counted("divergent_copy", args, schedule=schedule)
    assert counters == counted("divergent_copy", args)
    assert counters.global_requests == 6
    assert counters.global_read_bytes == (32 * 2 + 16) * 4


def test_every_launch_is_observed() -> None:
    seen: list[tuple[Launch, Counters]] = []
    device = Emulator(kernels=KERNELS, observe=lambda launch, counters: seen.append((launch, counters)))
    for blocks in (1, 3):
        device.launch("ordered_launches", (1,) * blocks, (32,), 0, [np.zeros(32, np.float32)])
    assert [launch for launch, _ in seen] == [Launch("ordered_launches", 32, 0)] * 2
    assert [counters.threads for _, counters in seen] == [32, 32]
    assert seen[-1][1] == device.counters


def test_blocks_threads_and_barriers_are_counted(run: Run) -> None:
    counters = run(
        "sum_block<64>", [np.zeros(64, np.float32), constant(np.zeros(64, np.float32))], block=(64,), shared=8
    )
    assert (counters.blocks, counters.threads, counters.barriers, counters.warp_collectives) == (1, 64, 1, 20)
