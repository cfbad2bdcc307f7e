"""geglu on the emulator: equal to the reference, bit-stable, silent under every check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma_cuda.errors import InputError
from gemma_cuda.ops.geglu import geglu
from gemma_cuda.precision import Precision
from gemma_cuda.reference.geglu import geglu as reference_geglu
from tests.support import compulsory
from tests.support.compare import DTYPES, assert_within_rule
from tests.support.emulated import (
    APPROXIMATIONS,
    HALF_DTYPES,
    SCHEDULES,
    Array,
    DeviceOf,
    KernelTestDevice,
    amid_nan,
    assert_moves_little_more,
    bounds,
    counted,
    values,
)

# [N, F]: one, a vector, a warp, a block of 256 · 8 less one, exactly, more, twice and three; real sizes.
SHAPES = [(1, 1), (3, 7), (1, 8), (5, 20), (3, 256), (1, 2040), (1, 2048), (1, 2056), (2, 2051), (3, 6912), (7, 640)]


def reference(gate: Array, up: Array, dtype: str) -> tuple[Any, Any]:
    def run(p: Precision) -> Array:
        return reference_geglu(gate.astype(p.compute), up.astype(p.compute), precision=p)

    return bounds(dtype, run)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(
    shape: tuple[int, int], dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    for i, (schedule, approx) in enumerate(zip(SCHEDULES, APPROXIMATIONS, strict=True)):
        gate = values(i, *shape, dtype=dtype, scale=(1.0, 4.0, 30.0)[i])
        up = values(i + 9, *shape, dtype=dtype)
        device = device_of(kernel_test_device(schedule, approx=approx))
        packed = amid_nan(np.concatenate([gate, up], axis=1), device, gap=64)
        y = geglu(packed[:, : shape[1]], packed[:, shape[1] :], device=device)
        assert_within_rule(
            device.to_host(y), *reference(gate, up, dtype), dtype=dtype, what=f"geglu {schedule} {approx}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_every_gate_value_there_is(dtype: str, kernel_test_device: KernelTestDevice) -> None:
    """All 2^16 values of the type, near zero relative to themselves: a small result is no less right than a large."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    gate = bits[np.isfinite(bits.astype(np.float32))].reshape(-1, 16)
    y = geglu(gate, np.ones_like(gate), device=kernel_test_device(checked=False)).astype(np.float64)
    with np.errstate(over="ignore"):  # of z² in float32, for the largest z of bfloat16
        exact, _ = reference(gate, np.ones_like(gate), dtype)
    stored = exact.astype(DTYPES[dtype]).astype(np.float64)
    spacing = np.maximum(np.abs(exact) * (2.0**-8 if dtype == "bfloat16" else 2.0**-11), 2.0**-25)
    assert np.isfinite(y).all()
    assert (np.abs(y - exact) <= np.maximum(np.abs(stored - exact), spacing) + 1e-5 * np.abs(exact)).all()


@pytest.mark.gpu
def test_infinities_and_nan_go_through(kernel_test_device: KernelTestDevice) -> None:
    gate = np.array([[np.inf, np.nan, -np.inf, 1.0]], np.float16)
    y = geglu(gate, np.ones_like(gate), device=kernel_test_device())
    assert y[0, 0] == np.inf and np.isnan(y[0, 1:3]).all() and np.isfinite(y[0, 3])


@pytest.mark.gpu
def test_up_as_one_layer_of_the_per_layer_inputs(kernel_test_device: KernelTestDevice) -> None:
    gate, inputs = values(0, 5, 256, dtype="bfloat16"), values(1, 5, 3, 256, dtype="bfloat16")
    y = geglu(gate, inputs[:, 1], device=kernel_test_device())
    assert_within_rule(y, *reference(gate, inputs[:, 1], "bfloat16"), dtype="bfloat16")


@pytest.mark.gpu
def test_every_schedule_build_batch_and_alignment_gives_the_same_bits(kernel_test_device: KernelTestDevice) -> None:
    packed = values(0, 5, 2 * 712, dtype="bfloat16")
    expected = geglu(packed[:, :712], packed[:, 712:], device=kernel_test_device(workers=1)).tobytes()
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        for options in ({}, {"checked": False}):
            device = kernel_test_device(schedule, seed=seed, workers=workers, **options)
            assert geglu(packed[:, :712], packed[:, 712:], device=device).tobytes() == expected
    alone = [geglu(packed[i : i + 1, :712], packed[i : i + 1, 712:], device=kernel_test_device()) for i in range(5)]
    assert b"".join(part.tobytes() for part in alone) == expected
    shifted = np.zeros((5, 2 * 712 + 3), packed.dtype)[:, 1:-2]
    shifted[...] = packed
    assert geglu(shifted[:, :712], shifted[:, 712:], device=kernel_test_device()).tobytes() == expected


@pytest.mark.parametrize(("rows", "width"), [(4, 2048), (3, 6912), (8, 256)])
def test_traffic_is_what_the_shapes_demand(rows: int, width: int, kernel_test_device: KernelTestDevice) -> None:
    emulator = kernel_test_device()
    packed = emulator.from_host(values(0, rows, 2 * width, dtype="bfloat16"))
    y = geglu(packed[:, :width], packed[:, width:], device=emulator)
    counters = counted(emulator)
    assert_moves_little_more(counters, compulsory.moved([packed], [y]))
    assert counters.global_requests == 3 * rows * width // (32 * 8)
    assert counters.global_full_requests == counters.global_requests


def test_no_rows(kernel_test_device: KernelTestDevice) -> None:
    assert geglu(np.zeros((0, 8), np.float16), np.zeros((0, 8), np.float16), device=kernel_test_device()).shape == (
        0,
        8,
    )


REFUSED: list[tuple[dict[str, Array], str]] = [
    ({"gate": np.zeros((2, 3, 4), np.float16)}, "gate is [2, 3, 4], expected [N, F]"),
    ({"gate": np.zeros((2, 0), np.float16)}, "gate is [2, 0], expected [N, F]"),
    ({"gate": np.zeros((2, 8), np.float32)}, "gate is float32, expected bfloat16 or float16"),
    ({"up": np.zeros((2, 4), np.float16)}, "up is [2, 4], expected [N, F] = [2, 8] as gate"),
    ({"up": np.zeros((2, 8), np.float32)}, "up is float32, expected float16 as gate"),
    ({"up": np.zeros((2, 16), np.float16)[:, ::2]}, "the rows of up are not contiguous"),
    ({"gate": np.broadcast_to(np.zeros(8, np.float16), (2, 8))}, "the rows of gate are 0 elements apart, less than"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses(changes: dict[str, Array], message: str, kernel_test_device: KernelTestDevice) -> None:
    arguments = {"gate": np.zeros((2, 8), np.float16), "up": np.zeros((2, 8), np.float16), **changes}
    device = kernel_test_device()
    with pytest.raises(InputError) as info:
        geglu(arguments["gate"], arguments["up"], device=device)
    assert message in str(info.value) and str(info.value).startswith("geglu: ")
    assert device.counters is None
