"""attention where logits are as far from zero as numbers go: what Transformers' dense masks hold in place of -inf."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support.attention_cases import TILE, Problem, causal_problem
from tests.support.compare import DTYPES
from tests.support.emulated import ROUNDING, Array, DeviceOf, KernelTestDevice

KEYS = 2 * TILE + 3
LOWEST = {name: float(ml_dtypes.finfo(dtype).min) for name, dtype in DTYPES.items()}
BIASES = [
    *(("float32", value) for value in (-1e5, -1e9, -1e10, -1e30, float(np.finfo(np.float32).min))),
    *(("bfloat16", value) for value in (-1e10, LOWEST["bfloat16"])),
    ("float16", LOWEST["float16"]),
]


def masked(dtype: str, bias: str, value: float, softcap: float | None) -> Problem:
    """Five queries over more than two tiles of keys, with rows that a dense mask of `value` hides in every way."""
    given = causal_problem([5], KEYS, dtype=DTYPES[dtype])
    given.masks["key_end"][:] = KEYS
    rows = np.zeros((1, 1, 5, KEYS))
    rows[:, :, 0] = value  # all keys alike: their average
    rows[:, :, 1, : TILE + 1] = value  # left padding
    rows[:, :, 2, TILE + 1 :] = value  # the future
    rows[:, :, 3] = -np.inf
    rows[:, :, 3, TILE - 1 : TILE + 2] = value  # the average of three keys of two tiles
    given.bias, given.softcap = rows.astype(DTYPES.get(bias, np.float32)), softcap
    return given


def assert_equals_float32(given: Problem, device: Any, **options: Any) -> None:
    """Compares o and lse with the reference, which loses the same digits of a score beside a large bias."""
    lse, expected_lse = (np.zeros((len(given.q), given.q.shape[1]), np.float32) for _ in range(2))
    o = given.run(device, lse=lse, **options).astype(np.float32)
    expected = given.reference(ROUNDING[given.dtype], lse=expected_lse)
    np.testing.assert_allclose(o, expected, rtol=0, atol=2.0 ** (-7 if given.dtype == "bfloat16" else -9))
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, 64])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("bias", "value"), BIASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_finite_mask(
    dtype: str,
    bias: str,
    value: float,
    softcap: float | None,
    split_keys: int | None,
    device_of: DeviceOf,
    kernel_test_device: KernelTestDevice,
) -> None:
    device = device_of(kernel_test_device("random"))
    assert_equals_float32(masked(dtype, bias, value, softcap), device, split_keys=split_keys)


@pytest.mark.gpu
@pytest.mark.parametrize("split_keys", [None, 64])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("factor", [2.0**12, 2.0**20, 2.0**28, 2.0**60])
def test_large_products(
    factor: float, sign: int, split_keys: int | None, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    """All logits of a row are alike and far from zero, without a mask; float16 reaches 2^32 · 64."""
    dtype = "bfloat16" if factor > 2.0**28 else "float16"
    given = causal_problem([5], KEYS, dtype=DTYPES[dtype])
    given.q[:], given.k[:] = sign * np.sqrt(factor), np.sqrt(factor)
    assert_equals_float32(given, device_of(kernel_test_device("random")), split_keys=split_keys)


def test_a_row_far_from_zero_leaves_the_bits_of_its_neighbours(kernel_test_device: KernelTestDevice) -> None:
    """Rows of one warp: a row's bits depend on that row alone."""
    given = masked("bfloat16", "float32", -1e9, None)
    assert given.bias is not None
    o = given.run(kernel_test_device(checked=False))
    near: Array = given.bias.copy()
    near[:, :, [0, 3]] = 0
    given.bias = near
    assert (
        given.run(kernel_test_device(checked=False))[[1, 2, 4]].view(np.uint16) == o[[1, 2, 4]].view(np.uint16)
    ).all()
