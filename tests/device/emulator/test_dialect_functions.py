"""CUDA's functions in the emulator against NumPy and ml_dtypes: 16-bit floats exhaustively, others on drawn values."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Approximation
from gemma_cuda.errors import KernelError
from tests.support.dialect import emulator, fails
from tests.support.emulated import APPROXIMATIONS, SCHEDULES

Array = np.ndarray[Any, Any]
TYPES = {"half": np.float16, "__nv_bfloat16": ml_dtypes.bfloat16}
NAN = 0x7FFF


def bits(values: Array) -> Array:
    """The 16-bit patterns of values, every NaN the one that CUDA gives."""
    pattern = values.view(np.uint16).copy()
    pattern[np.isnan(values.astype(np.float64))] = NAN
    return pattern


@pytest.fixture(params=TYPES)
def cpp(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_functions_of_one_16_bit_value(cpp: str) -> None:
    dtype = TYPES[cpp]
    out, wide = np.zeros((10, 65536), np.uint16), np.zeros(65536, np.float32)
    emulator(checked=False).launch(f"unary<{cpp}>", (256,), (256,), 0, [out, wide])
    pattern = np.arange(65536).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        x = pattern.view(dtype).astype(np.float64)
    np.testing.assert_array_equal(wide, x)
    np.testing.assert_array_equal(out[0], pattern ^ 0x8000)
    np.testing.assert_array_equal(out[1], pattern & 0x7FFF)
    with np.errstate(all="ignore"):
        expected = [np.sqrt(x), np.floor(x), np.ceil(x), np.trunc(x), np.rint(x), 1 / x, x + x, x * x]
        for k, exact in enumerate(expected, 2):
            # Double to 16 bits by way of float rounds as once: these results have few bits or many more than float's.
            np.testing.assert_array_equal(out[k], bits(exact.astype(np.float32).astype(dtype)), err_msg=str(k))


def neighbours(dtype: Any) -> Array:
    """Every finite value of a 16-bit type, and around each the floats just beside it and beside its midpoints."""
    values = np.arange(65536).astype(np.uint16).view(dtype).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    middles = (values[1:] / 2 + values[:-1] / 2).astype(np.float32)
    around = np.concatenate([values, middles])
    beside = [np.nextafter(around, np.float32(to)) for to in (np.inf, -np.inf)]
    return np.concatenate([around, *beside, np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)])


def test_conversions_to_16_bits_in_every_direction(cpp: str) -> None:
    dtype = TYPES[cpp]
    x = neighbours(dtype)
    out = np.zeros((4, x.size), np.uint16)
    emulator(checked=False).launch(f"narrow<{cpp}>", (-(-x.size // 256),), (256,), 0, [out, x, x.size])
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(out[0], bits(x.astype(dtype)))
    with np.errstate(invalid="ignore"):
        grid = np.unique(np.arange(65536).astype(np.uint16).view(dtype).astype(np.float64))
    grid = grid[~np.isnan(grid)]
    number = ~np.isnan(x)
    below = grid[np.searchsorted(grid, x[number], "right") - 1]
    above = grid[np.searchsorted(grid, x[number], "left")]
    directed = out[:, number].view(dtype).astype(np.float64)
    largest = grid[-2]
    to_zero = np.clip(np.where(x[number] > 0, below, above), -largest, largest)
    to_zero = np.where(np.isinf(x[number]), x[number], to_zero)
    np.testing.assert_array_equal(directed[1], to_zero)
    np.testing.assert_array_equal(directed[2], above)
    np.testing.assert_array_equal(directed[3], below)
    assert (out[:, ~number] == NAN).all()


def fused(a: Array, b: Array, c: Array, dtype: Any) -> Array:
    """a · b + c of 16-bit values in float64, rounded once to dtype."""
    with np.errstate(all="ignore"):
        near = a * b + c
    for i in np.flatnonzero(np.isfinite(near)):
        near[i] = _odd(Fraction(a[i]) * Fraction(b[i]) + Fraction(c[i]))
    with np.errstate(all="ignore"):
        single = near.astype(np.float32)
        for i in np.flatnonzero(np.isfinite(single) & (single != near)):
            towards_zero = abs(single[i]) <= abs(near[i])
            pattern = single[i : i + 1].view(np.int32)
            pattern -= 0 if towards_zero else 1
            pattern |= 1
        return np.asarray(single.astype(dtype))


def _odd(exact: Fraction) -> float:
    """The float64 nearest to zero from an exact value, its last bit set if bits are lost.

    A rounding to fewer bits that follows then sees on which side of a tie the exact value lies.
    """
    near = np.array([float(exact)])
    if Fraction(near[0]) != exact and near[0] != 0:
        pattern = near.view(np.int64)
        pattern -= abs(Fraction(near[0])) > abs(exact)
        pattern |= 1
    return float(near[0])


def test_functions_of_two_and_three_16_bit_values(cpp: str) -> None:
    dtype = TYPES[cpp]
    random = np.random.default_rng(1)
    n = 20000
    a, b, c = random.integers(0, 65536, (3, n)).astype(np.uint16)
    half = n // 2  # values of like size, whose results are rounded rather than out of range
    for array in (a, b, c):
        array[:half] = (random.standard_normal(half) * 4).astype(dtype).view(np.uint16)
    out = np.zeros((8, n), np.uint16)
    emulator(checked=False).launch(f"binary<{cpp}>", (-(-n // 256),), (256,), 0, [out, a, b, c, n])
    with np.errstate(all="ignore"):
        x, y, z = (pattern.view(dtype).astype(np.float64) for pattern in (a, b, c))
        # Float has twice the bits and two more, so that its rounding of a sum or product changes no second one.
        for k, exact in enumerate([x + y, x - y, x * y]):
            np.testing.assert_array_equal(out[k], bits(exact.astype(np.float32).astype(dtype)), err_msg=str(k))
        np.testing.assert_array_equal(out[3], bits((x / y).astype(np.float32).astype(dtype)))
        np.testing.assert_array_equal(out[4], bits(fused(x, y, z, dtype)))
        np.testing.assert_array_equal(out[5].view(dtype).astype(np.float64), np.fmax(x, y))
        np.testing.assert_array_equal(out[6].view(dtype).astype(np.float64), np.fmin(x, y))
    relations = [x < y, x <= y, x == y, x != y, x > y, x >= y, np.isnan(x)]
    np.testing.assert_array_equal(out[7], sum(r.astype(np.uint16) << i for i, r in enumerate(relations)))


def test_functions_on_integers() -> None:
    random = np.random.default_rng(2)
    n = 2000
    x, y = random.integers(0, 2**32, (2, n), dtype=np.uint64) >> random.integers(0, 32, (2, n)).astype(np.uint64)
    x[:3], y[:3] = (0, 1, 2**32 - 1), (0, 2**31, 2**32 - 1)
    out = np.zeros((21, n), np.uint32)
    emulator().launch("integers", (8,), (256,), 0, [out, x.astype(np.uint32), y.astype(np.uint32), n])
    for i in range(n):
        np.testing.assert_array_equal(out[:, i], [v % 2**32 for v in _integers(int(x[i]), int(y[i]))], err_msg=str(i))


def _signed(x: int, width: int = 32) -> int:
    return x - (x >> (width - 1) << width)


def _integers(x: int, y: int) -> list[int]:
    a, b, wide = _signed(x), _signed(y), x << 32 | y
    octets = [(y << 32 | x) >> 8 * i & 255 for i in range(8)]
    selector = y >> 3
    permuted = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        octet = octets[nibble & 7]
        permuted |= ((255 if octet & 128 else 0) if nibble & 8 else octet) << 8 * i
    pair, shift = y << 32 | x, y % 40
    quarters = [(x >> 8 * i & 255, y >> 8 * i & 255) for i in range(4)]
    return [
        x.bit_count(),
        32 - x.bit_length(),
        (x & -x).bit_length(),
        int(f"{x:032b}"[::-1], 2),
        permuted,
        pair << shift % 32 >> 32,
        pair >> shift % 32,
        pair << min(shift, 32) >> 32,
        pair >> min(shift, 32),
        a * b >> 32,
        x * y >> 32,
        wide.bit_count(),
        64 - wide.bit_length(),
        (wide & -wide).bit_length(),
        5 + sum(_signed(p, 8) * _signed(q, 8) for p, q in quarters),
        5 + sum(p * q for p, q in quarters),
        _signed(x & 0xFFFFFF, 24) * _signed(y & 0xFFFFFF, 24),
        (x & 0xFFFFFF) * (y & 0xFFFFFF),
        abs(x - y) + 3,
        max(a, b),
        min(x, y),
    ]


def test_conversions_between_float_and_int() -> None:
    random = np.random.default_rng(3)
    x = np.concatenate([random.standard_normal(500) * 10.0 ** random.integers(-2, 12, 500), [0.5, 1.5, -2.5, -0.0]])
    x = np.concatenate([x, [np.inf, -np.inf, np.nan, 2.0**31, -(2.0**31), 2.0**32]]).astype(np.float32)
    out, back = np.zeros((6, x.size), np.int32), np.zeros((2, x.size), np.float32)
    emulator().launch("conversions", (2,), (256,), 0, [out, back, x, x.size])
    exact = np.where(np.isnan(x), 0, x).astype(np.float64)
    for k, whole in enumerate([np.rint(exact), np.trunc(exact), np.ceil(exact), np.floor(exact)]):
        np.testing.assert_array_equal(out[k], np.clip(whole, -(2**31), 2**31 - 1).astype(np.int64).astype(np.int32))
    unsigned = np.clip(np.trunc(exact), 0, 2**32 - 1).astype(np.uint64).astype(np.uint32)
    np.testing.assert_array_equal(out[4].view(np.uint32), unsigned)
    np.testing.assert_array_equal(out[5], x.view(np.int32))
    np.testing.assert_array_equal(back[0].view(np.int32), x.view(np.int32))
    np.testing.assert_array_equal(back[1], np.clip(exact, 0, 1))


def test_rounding_in_a_chosen_direction() -> None:
    random = np.random.default_rng(4)
    n = 4000
    x, y, z = (random.standard_normal((3, n)) * 2.0 ** random.integers(-20, 20, (3, n))).astype(np.float32)
    out = np.zeros((5, 4, n), np.float32)
    emulator().launch("directed", (16,), (256,), 0, [out, x, y, z, n])
    a, b, c = (v.astype(np.longdouble) for v in (x, y, z))
    for results, exact in zip(out, [a + b, a * b, a / b, a * b + c, np.sqrt(abs(a))], strict=True):
        nearest = exact.astype(np.float32)
        up = np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)
        down = np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        for result, expected in zip(results, [nearest, np.where(exact > 0, down, up), up, down], strict=True):
            np.testing.assert_array_equal(result, expected)


# CUDA's name -> (the exact function, its maximum error in units in the last place).
LIBRARY: dict[str, tuple[Any, int]] = {
    "expf": (np.exp, 2),
    "exp2f": (np.exp2, 2),
    "exp10f": (lambda x: 10.0**x, 2),
    "expm1f": (np.expm1, 1),
    "logf": (np.log, 1),
    "log2f": (np.log2, 1),
    "log10f": (np.log10, 2),
    "log1pf": (np.log1p, 1),
    "sinf": (np.sin, 2),
    "cosf": (np.cos, 2),
    "tanf": (np.tan, 4),
    "asinf": (np.arcsin, 2),
    "acosf": (np.arccos, 2),
    "atanf": (np.arctan, 2),
    "sinhf": (np.sinh, 3),
    "coshf": (np.cosh, 2),
    "tanhf": (np.tanh, 2),
    "asinhf": (np.arcsinh, 3),
    "acoshf": (np.arccosh, 4),
    "atanhf": (np.arctanh, 3),
    "cbrtf": (np.cbrt, 1),
    "erff": (np.vectorize(math.erf), 2),
    "erfcf": (np.vectorize(math.erfc), 4),
    "rsqrtf": (lambda x: 1 / np.sqrt(x), 2),
    "sinpif": (lambda x: np.sin(np.pi * x), 1),
    "cospif": (lambda x: np.cos(np.pi * x), 1),
    "powf": (None, 4),
    "atan2f": (None, 3),
    "hypotf": (None, 3),
    "exp": (np.exp, 2),
}


@pytest.mark.parametrize("approx", APPROXIMATIONS)
def test_the_math_library_is_off_by_its_documented_error(approx: Approximation) -> None:
    random = np.random.default_rng(5)
    x = np.concatenate([random.random(500), random.standard_normal(500) * 3, random.random(500) * 30]).astype(
        np.float32
    )
    y = (random.standard_normal(x.size) * 2).astype(np.float32)
    out = np.zeros((len(LIBRARY), x.size), np.float32)
    emulator(approx=approx).launch("library", (6,), (256,), 0, [out, x, y, x.size])
    a, b = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(all="ignore"):
        pairs = {"powf": np.power(a, b), "atan2f": np.arctan2(a, b), "hypotf": np.hypot(a, b)}
        for result, (name, (function, ulps)) in zip(out, LIBRARY.items(), strict=True):
            exact = np.asarray(pairs[name] if function is None else function(a))
            nearest = exact.astype(np.float32)
            np.testing.assert_array_equal(np.isnan(result), np.isnan(nearest), err_msg=name)
            usual = np.isfinite(nearest) & (nearest != exact) & (abs(nearest) < 1e38) & (abs(nearest) > 1e-37)
            off = (result.view(np.int32).astype(np.int64) - nearest.view(np.int32))[usual]
            sign = {"exact": 0, "up": 1, "down": -1}[approx]
            # One more where the test's own exact value rounds the other way.
            assert abs(off - sign * ulps).max() <= 1 or name in ("sinf", "cosf", "tanhf", "erff"), (name, off)
            assert abs(off).max() <= ulps + 1 and (sign == 0 or (sign * off > 0).mean() > 0.5), name


@pytest.mark.parametrize("approx", APPROXIMATIONS)
def test_fast_functions_are_off_by_their_documented_error(approx: Approximation) -> None:
    random = np.random.default_rng(6)
    x = np.concatenate([random.random(500) * 3 + 0.01, random.random(500) * 1.5 + 0.5]).astype(np.float32)
    y = (random.standard_normal(x.size) + 3).astype(np.float32)
    out = np.zeros((8, x.size), np.float32)
    emulator(approx=approx).launch("fast", (4,), (256,), 0, [out, x, y, x.size])
    a, b = x.astype(np.float64), y.astype(np.float64)
    in_range = (a >= 0.5) & (a <= 2)

    def ulp(exact: Array, ulps: Any) -> Array:
        return np.asarray(np.spacing(abs(exact).astype(np.float32)) * ulps)

    def either(exact: Array, log2_error: float, ulps: int) -> Array:
        return np.where(in_range, 2.0**log2_error, ulp(exact, ulps))

    expected = {
        "__expf": (np.exp(a), ulp(np.exp(a), 2 + np.floor(abs(1.173 * a)))),
        "__logf": (np.log(a), either(np.log(a), -21.41, 3)),
        "__log2f": (np.log2(a), either(np.log2(a), -22, 2)),
        "__log10f": (np.log10(a), either(np.log10(a), -24, 3)),
        "__sinf": (np.sin(a), np.where(a <= np.pi, 2.0**-21.41 * np.maximum(1, a), 1)),
        "__cosf": (np.cos(a), np.where(a <= np.pi, 2.0**-21.19 * np.maximum(1, a), 1)),
        "__fdividef": (a / b, ulp(a / b, 2)),
        "__frcp_rn": (1 / a, np.zeros(a.size)),
    }
    for result, (name, (exact, error)) in zip(out, expected.items(), strict=True):
        slack = np.spacing(abs(exact).astype(np.float32))
        assert (abs(result - exact) <= error + slack).all(), name
        if approx == "exact":
            assert (abs(result - exact) <= slack).all(), name
        elif name != "__frcp_rn":
            assert (abs(result - exact) > error / 2).mean() > 0.8, name


# --- collectives ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_functions_of_a_warp(schedule: Any) -> None:
    x = np.random.default_rng(7).integers(-3, 4, 32).astype(np.int32)
    out = np.zeros((12, 32), np.uint32)
    emulator(schedule).launch("warp_functions", (1,), (32,), 0, [out, x])
    lanes = np.uint64(1) << np.arange(32, dtype=np.uint64)
    np.testing.assert_array_equal(out[0], [int(lanes[x == value].sum()) for value in x])
    unsigned = x.view(np.uint32)
    uniform = [0, 0, 2**32 - 1, x.sum(), x.min(), x.max(), np.bitwise_and.reduce(unsigned)]
    uniform += [np.bitwise_or.reduce(unsigned), np.bitwise_xor.reduce(unsigned)]
    for k, value in enumerate(uniform, 1):
        assert (out[k] == int(value) % 2**32).all(), k
    assert (out[10] >> np.arange(32) & 1).all()
    assert schedule == "random" or (out[10] == 2**32 - 1).all()
    assert (out[11] == int(lanes[x > 0].sum())).all()


def test_shuffles_of_other_sizes() -> None:
    a, b = np.random.default_rng(8).standard_normal(32), np.arange(32, dtype=np.int64) << 33
    c = np.arange(32).astype(np.float16)
    d = np.arange(64).astype(ml_dtypes.bfloat16)
    results = [array.copy() for array in (a, b, c, d)]
    emulator().launch("wide_shuffles", (1,), (32,), 0, results)
    expected = [a[::-1], np.concatenate([b[:1], b[:-1]]), c.reshape(16, 2)[:, ::-1].reshape(-1)]
    expected.append(np.concatenate([d[4:], d[-4:]]))
    for result, values in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_votes_of_a_block(schedule: Any) -> None:
    for n in (0, 40, 96, 200):
        out = np.zeros((3, 96), np.int32)
        emulator(schedule).launch("block_votes", (1,), (96,), 0, [out, n])
        for turn in range(3):
            thread = np.arange(96) + turn
            expected = (thread < n).sum() * 4 + (thread == 0).any() * 2 + (thread < n).all()
            assert (out[turn] == expected).all(), (n, turn)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [2, 8, 32])
def test_tiles_of_a_block(schedule: Any, size: int) -> None:
    x = np.random.default_rng(9).integers(-5, 6, 64).astype(np.int32)
    out = np.zeros((13, 64), np.int32)
    emulator(schedule).launch(f"tiles<{size}>", (1,), (16, 4), 0, [out, x])
    rank = np.arange(64) % size
    tiles = x.reshape(-1, size)

    def all_of(values: Array) -> Array:
        return np.repeat(values, size)

    ballots = ((tiles > 0).astype(np.int64) << np.arange(size)).sum(1).astype(np.uint32).view(np.int32)
    scans = np.cumsum(tiles, axis=1).reshape(-1)
    expected = [
        rank,
        np.arange(64) // size,
        np.full(64, 64 // size),
        all_of(tiles[:, 0]),
        np.concatenate([tiles[:, 1:], tiles[:, -1:]], axis=1).reshape(-1),
        x[np.arange(64) ^ size // 2],
        all_of(ballots),
        all_of((tiles > 0).any(1)),
        all_of((tiles > 0).all(1)),
        all_of(tiles.sum(1)),
        all_of(tiles.max(1)),
        scans,
        scans - x,
    ]
    for k, values in enumerate(expected):
        np.testing.assert_array_equal(out[k], values, err_msg=str(k))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_partitions_of_a_warp(schedule: Any) -> None:
    x = np.random.default_rng(10).integers(0, 4, 32).astype(np.int32)
    out = np.zeros((3, 32), np.int32)
    emulator(schedule).launch("partitions", (1,), (32,), 0, [out, x])
    lane = np.arange(32)
    for i in range(32):
        group = lane[x == x[i]]
        assert out[:, i].tolist() == [group.sum(), group.size, (group < i).sum()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomic_functions(schedule: Any) -> None:
    i = np.array([100, 5, 3, 0, 0], np.int32)
    u = np.array([4, 4, 2**32 - 1, 0], np.uint32)
    w, f, d = np.zeros(2, np.uint64), np.zeros(1, np.float32), np.zeros(1, np.float64)
    b, h = np.zeros(1, ml_dtypes.bfloat16), np.zeros(2, np.float16)
    emulator(schedule).launch("atomics", (1,), (32,), 0, [i, u, w, f, d, b, h])
    toggled = int(np.bitwise_xor.reduce(1 << (np.arange(32) % 31)))
    assert i.tolist() == [100 - 64, -31, 31, toggled, 32]
    assert u.tolist() == [(4 + 32) % 10, (4 - 32) % 10, 0, 2**32 - 1]
    assert w.tolist() == [32 << 40, 31 << 33]
    assert (f[0], d[0], float(b[0])) == (32, 16, 32) and h.tolist() == [32, 64]
    short, won = np.array([7, 1], np.uint16), np.zeros(1, np.int32)
    emulator(schedule).launch("short_swap", (1,), (64,), 0, [short, won])
    assert 100 <= short[0] < 164 and short[1] == 1 and won[0] == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_memory_orders_of_atomic_references(schedule: Any, workers: int) -> None:
    def args() -> list[Array]:
        return [np.zeros(6, np.float32), np.zeros(1, np.uint32), np.zeros(1, np.float32)]

    good = args()
    emulator(schedule, workers=workers).launch("last_by_reference", (6,), (32,), 0, good)
    assert good[2][0] == 21
    name = "last_by_relaxed_reference"
    error = fails(name, args(), file="collectives.cu", grid=6, block=32, schedule=schedule, workers=workers)
    assert error.kind == "data race"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nanosleep_lets_others_go_on(schedule: Any) -> None:
    out = np.zeros(70, np.int32)
    emulator(schedule).launch("waits_with_nanosleep", (1,), (70,), 0, [out])
    np.testing.assert_array_equal(out, np.arange(70))


def test_printing_and_clocks(capsys: pytest.CaptureFixture[str]) -> None:
    out = np.zeros(32, np.int64)
    emulator().launch("prints", (1,), (32,), 0, [out])
    assert capsys.readouterr().out == "lane 1 of warp: 0.5\n"
    assert (out > 0).all() and (out == out[0]).all()


def test_shapes_of_blocks_and_grids() -> None:
    out = np.zeros(48, np.uint32)
    emulator().launch("grid_shape", (2, 3), (4, 2), 0, [out])
    assert (out == 4800 + 8 * 6 + 32).all()


def test_copying_and_filling_memory() -> None:
    source, out = np.arange(40, dtype=np.int8), np.zeros(84, np.int8)
    emulator().launch("copies", (1,), (32,), 0, [out, source, 40])
    np.testing.assert_array_equal(out, [*source, *[5] * 40, *source[:4]])


def test_a_lane_that_a_match_waits_for_is_named() -> None:
    with pytest.raises(KernelError, match=r"threads 0-15 wait at __match_any_sync with mask 0xffffffff"):
        emulator().launch("histogram_match_of_some", (1,), (32,), 0, [np.zeros(4, np.int32)])
