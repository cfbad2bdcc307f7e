"""The emulator's mma with the rounding of tensor cores, bit by bit against exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError
from tests.support import tensor_core
from tests.support.isa import layouts
from tests.support.isa.layouts import Array
from tests.support.isa.probes import CUTE, KERNELS, TYPES
from tests.support.tensor_core import TENSOR_CORES

TILES = 3
Problem = tuple[Array, Array, Array]  # a [16, 16], b [16, 8 TILES], c [16, 8 TILES]


def multiplied(a: Array, b: Array, c: Array, mma: Any) -> Array:
    """uint32 bits [16, N] of c + a · b on the emulator."""
    name = "half" if a.dtype == np.float16 else "bf16"
    (a_m, a_k), (b_k, b_n), (c_m, c_n) = (layouts.mma(operand, CUTE[name]) for operand in "abc")
    tiles = c.shape[1] // 8
    right = np.stack([b[b_k, 8 * tile + b_n] for tile in range(tiles)])
    d = np.stack([c[c_m, 8 * tile + c_n] for tile in range(tiles)])
    args = [d, np.ascontiguousarray(a[a_m, a_k]).view(np.uint32), right.view(np.uint32)]
    Emulator(kernels=KERNELS, mma=mma).launch(f"multiply<{name}, {tiles}>", (1,), (32,), 0, args)
    out = np.zeros(c.shape, np.uint32)
    for tile in range(tiles):
        out[c_m, 8 * tile + c_n] = d[tile].view(np.uint32)
    return out


# --- operands that go wrong where a rule is not kept ---


def shaped(rng: np.random.Generator, draw: Callable[..., Array], dtype: Any) -> Problem:
    """Operands that draw(shape, dtype) gives."""
    width = 8 * TILES
    return draw((16, 16), dtype), draw((16, width), dtype), draw((16, width), np.float32)


def of_bits(rng: np.random.Generator, shape: Any, dtype: Any, *, low: float = 0.0, high: float = 1.0) -> Array:
    """Any sign and fraction, exponents of the given part of the dtype's range."""
    kind = {"float16": (10, 31), "bfloat16": (7, 255), "float32": (23, 255)}[np.dtype(dtype).name]
    bits, exponents = kind
    exponent = rng.integers(round(low * exponents), round(high * exponents) + 1, shape)
    unsigned = rng.integers(0, 2, shape) << (8 * np.dtype(dtype).itemsize - 1) | exponent << bits
    unsigned |= rng.integers(0, 1 << bits, shape)
    return unsigned.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)


def normal(rng: np.random.Generator, dtype: Any) -> Problem:
    return shaped(rng, lambda shape, of: rng.standard_normal(shape).astype(of), dtype)


def any_bits(rng: np.random.Generator, dtype: Any) -> Problem:
    return shaped(rng, lambda shape, of: of_bits(rng, shape, of), dtype)


def any_finite(rng: np.random.Generator, dtype: Any) -> Problem:
    return shaped(rng, lambda shape, of: of_bits(rng, shape, of, high=0.99), dtype)


def few_exponents(rng: np.random.Generator, dtype: Any) -> Problem:
    """Products and sums some 2^±30 apart: where the last bits that are kept lie decides."""
    a, b, _ = shaped(rng, lambda shape, of: of_bits(rng, shape, of, low=0.4, high=0.6), dtype)
    return a, b, of_bits(rng, (16, 8 * TILES), np.float32, low=0.4, high=0.6)


def cancelling(rng: np.random.Generator, dtype: Any) -> Problem:
    """Great products that cancel in pairs and leave what alignment kept of the small ones; c may cancel, too."""
    a, b, c = few_exponents(rng, dtype)
    first = rng.permutation(16)[:4]
    a[:, first + 1 & 15] = -a[:, first]
    b[first + 1 & 15] = b[first]
    product = a[:, :1].astype(np.float32) * b[:1].astype(np.float32)
    return a, b, np.where(rng.random(c.shape) < 0.5, -product, c)


def tiny(rng: np.random.Generator, dtype: Any) -> Problem:
    """Subnormal operands, products and sums; zeros of both signs."""
    a, b, c = shaped(rng, lambda shape, of: of_bits(rng, shape, of, high=0.05), dtype)
    b = of_bits(rng, b.shape, dtype, low=0.35, high=0.5)
    if dtype is np.float16:  # whose smallest products lie far above those of float32
        c = of_bits(rng, c.shape, np.float32, low=0.3, high=0.4)
    for array in (a, b, c):
        array[rng.random(array.shape) < 0.3] *= 0
    return a, b, c


def greatest(rng: np.random.Generator, dtype: Any) -> Problem:
    """The greatest significands with one sign, so that sums are as long as they get; some overflow."""
    one = np.array(2, dtype) - np.array(np.finfo(np.float16).eps if dtype is np.float16 else 2.0**-7, dtype)
    a, b = np.full((16, 16), one, dtype), np.full((16, 8 * TILES), one, dtype)
    c = np.full((16, 8 * TILES), np.float32(4) - np.float32(2.0**-22))
    a[8:], c[12:] = -a[8:], -c[12:]
    if dtype is not np.float16:
        b[:, 8:16] *= np.array(2.0**125, dtype)
        a[:, 8:] *= np.array(4, dtype)
        c[:, 8:16] = np.float32(3.4e38)
    return a, b, c


CASES = [normal, any_bits, any_finite, few_exponents, cancelling, tiny, greatest]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("mma", TENSOR_CORES)
def test_sums_have_the_bits_of_exact_arithmetic(mma: Any, name: str, case: Any) -> None:
    a, b, c = case(np.random.default_rng(CASES.index(case)), TYPES[name])
    expected = tensor_core.product(TENSOR_CORES[mma], a, b, c)
    np.testing.assert_array_equal(multiplied(a, b, c, mma), expected)
    if case is any_finite:
        assert np.isfinite(expected.view(np.float32)).any()
    if case is not any_bits:  # there is something that rounding decides
        assert (expected != multiplied(a, b, c, "fast")).any()


# --- what the rules mean, by hand ---


def summed(mma: Any, products: list[float], c: float, name: str = "bf16") -> float:
    """c and up to 16 powers of two."""
    a, b = np.zeros((16, 16), TYPES[name]), np.zeros((16, 8), TYPES[name])
    for k, product in enumerate(products):
        half = 2.0 ** (np.frexp(abs(product))[1] // 2)
        a[0, k], b[k, 0] = half, product / half
    start = np.zeros((16, 8), np.float32)
    start[0, 0] = c
    return float(multiplied(a, b, start, mma)[0, 0].view(np.float32))


@pytest.mark.parametrize("name", TYPES)
def test_what_lies_below_the_largest_exponent_is_cut_off(name: str) -> None:
    """24 or 25 places below 1; float32 has 23."""
    for mma, fraction_bits in (("ampere", 24), ("hopper", 25)):
        last, lost = 2.0**-fraction_bits, 2.0 ** -(fraction_bits + 1)
        assert summed(mma, [last] * 8, 1.0, name) == 1 + 8 * last
        assert summed(mma, [lost] * 8, 1.0, name) == 1.0
        assert summed(mma, [-lost] * 8, 1.0, name) == 1.0
        assert summed(mma, [-last], 1.0, name) == 1 - 2.0**-24, "which is the float32 towards zero"
    assert summed("fast", [2.0**-24] * 8, 1.0, name) == 1.0


def test_a_sum_of_8_is_rounded_before_the_next_8_on_ampere_only() -> None:
    products = [2.0**-24] * 9
    assert summed("ampere", products[:1] + [0.0] * 7 + products[:1], 1.0) == 1.0
    assert summed("hopper", products[:1] + [0.0] * 7 + products[:1], 1.0) == 1 + 2.0**-23


def test_a_product_is_aligned_by_the_exponents_of_its_factors() -> None:
    """1.5 · 1.5 counts with exponent 0, so that 2^-24 is kept beside it; the accumulator 2.25 with exponent 1."""
    for mma, last in (("ampere", 2.0**-24), ("hopper", 2.0**-25)):
        a, b = np.zeros((16, 16), TYPES["bf16"]), np.zeros((16, 8), TYPES["bf16"])
        a[0, :3], b[:3, 0] = (1.5, 1.5, last), (1.5, -1.5, 1)
        c = np.zeros((16, 8), np.float32)
        assert multiplied(a, b, c, mma)[0, 0].view(np.float32) == last
        a[0, 0], c[0, 0] = 0, 2.25
        assert multiplied(a, b, c, mma)[0, 0] == 0


@pytest.mark.parametrize(("mma", "last"), [("ampere", 2.0**-156), ("hopper", 2.0**-158)])
def test_an_accumulator_of_zero_has_an_exponent(mma: Any, last: float) -> None:
    """2^-149 less a trifle is cut off to 0, unless the trifle has vanished below 2^-132 · 2^-24 or 2^-133 · 2^-25."""
    assert summed(mma, [2.0**-149, -last], 0.0) == 0.0
    assert summed(mma, [2.0**-149, -last / 2], 0.0) == 2.0**-149


@pytest.mark.parametrize(("mma", "last"), [("ampere", 2.0**-38), ("hopper", 2.0**-39)])
def test_a_subnormal_factor_has_the_least_exponent(mma: Any, last: float) -> None:
    """2^-24 is one of -14 in float16, so that beside it no more is kept than beside 2^-14."""
    a, b, c = np.zeros((16, 16), np.float16), np.zeros((16, 8), np.float16), np.zeros((16, 8), np.float32)
    a[:, 0], b[0] = 2.0**-24, 1
    c[0], c[1] = last, last / 2
    sums = multiplied(a, b, c, mma).view(np.float32)
    assert (sums[0] == 2.0**-24 + last).all() and (sums[1] == 2.0**-24).all()


@pytest.mark.parametrize("mma", TENSOR_CORES)
def test_zero_is_positive_and_nan_has_one_form(mma: Any) -> None:
    a, b, c = np.zeros((16, 16), np.float16), np.zeros((16, 8), np.float16), np.full((16, 8), -0.0, np.float32)
    a[:, 0] = -0.0
    a[1, 0], b[0, 1], c[1, 2] = np.inf, -0.0, -np.nan
    bits = multiplied(a, b, c, mma)
    assert not bits[[0, *range(2, 16)]].any()
    assert (bits[1] == tensor_core.NAN_BITS).all()


def test_sums_that_overflow_are_infinite() -> None:
    """As a result, and as the accumulator of the second 8 products."""
    big = [2.0**127] * 2
    for mma in TENSOR_CORES:
        assert summed(mma, big, 0.0) == np.inf and summed(mma, [-x for x in big], 0.0) == -np.inf
        assert summed(mma, [*big, -(2.0**127)], 0.0) == 2.0**127, "what is inside a sum cannot overflow"
    later = [*big, *[0.0] * 6, *(-x for x in big)]
    assert summed("ampere", later, 0.0) == np.inf and summed("hopper", later, 0.0) == 0.0


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(DeviceError, match="mma is 'volta', expected one of fast, ampere, hopper"):
        Emulator(mma="volta")  # type: ignore[arg-type]
