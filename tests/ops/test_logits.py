"""softcap, top_k and argmax on the emulator: equal to NumPy, bit-stable, silent under every check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma_cuda.errors import InputError
from gemma_cuda.ops.logits import argmax, softcap, top_k
from gemma_cuda.precision import FLOAT32, FLOAT64, Precision
from gemma_cuda.reference.logits import logits as reference_logits
from tests.support import compulsory
from tests.support.compare import assert_within_rule
from tests.support.emulated import (
    APPROXIMATIONS,
    SCHEDULES,
    Array,
    DeviceOf,
    KernelTestDevice,
    amid_nan,
    assert_moves_little_more,
    counted,
    values,
)

SLICE = 512 * 16


def capped(z: Array, cap: float, precision: Precision) -> Array:
    """The reference's softcap: its logits, with a head that changes nothing."""
    wide = z.reshape(-1, 1).astype(precision.compute)
    head = np.ones((1, 1), precision.compute)
    return reference_logits(wide, head, softcap=cap, precision=precision).reshape(z.shape)


def ranked(z: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row, NaN first, then the lowest index first."""
    order = np.lexsort((np.broadcast_to(np.arange(z.shape[1]), z.shape), -z, ~np.isnan(z)), axis=1)[:, :k]
    return np.take_along_axis(z, order, axis=1), order


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 1), (1, 1023), (1, 1024), (3, 1025), (2, 6), (5, 4100)])
def test_softcap_equals_the_reference(
    shape: tuple[int, int], device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    for i, (cap, scale) in enumerate(((30.0, 40.0), (30.0, 0.01), (5.0, 2.0))):
        more = values(i, 5 * 4100, dtype="float32", scale=scale)  # a few logits say little of the rounding error
        z = more[: np.prod(shape)].reshape(shape)
        device = device_of(kernel_test_device(SCHEDULES[i], approx=APPROXIMATIONS[(i + shape[1]) % 3]))
        placed = amid_nan(z, device)
        assert softcap(placed, cap, device=device) is placed
        y = device.to_host(placed)
        exact, rounded = capped(more, cap, FLOAT64), capped(more, cap, FLOAT32)
        assert_within_rule(y.reshape(-1), exact, rounded, dtype="float32", softcap=True, at=slice(y.size))
        # The rule looks at the largest logit only; tanh is accurate near 0, too.
        assert (np.abs(y.reshape(-1) - exact[: y.size]) <= 8 * 2.0**-24 * np.abs(exact[: y.size])).all()


@pytest.mark.gpu
def test_softcap_of_extremes(kernel_test_device: KernelTestDevice) -> None:
    z = np.array([[np.inf, -np.inf, 3e38, -0.0, np.nan, 1e-40]], np.float32)
    y = softcap(z, 30.0, device=kernel_test_device())
    assert y[0, :4].tolist() == [30.0, -30.0, 30.0, 0.0] and np.signbit(y[0, 3])
    assert np.isnan(y[0, 4]) and 0 <= y[0, 5] <= 1.1e-40


# One logit, fewer than a warp, a block's threads, a slice less one, exactly, more, several; one slice of keys and more.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "width", "k"),
    [
        (1, 1, 1), (3, 5, 5), (2, 31, 3), (2, 64, 64), (1, 513, 8), (2, SLICE - 1, 7), (1, SLICE, 5), (2, SLICE + 1, 3),
        (1, 3 * SLICE + 2, 64), (2, 5 * SLICE - 4, 1), (1, 129 * SLICE, 64),
    ],
)  # fmt: skip
def test_top_k_equals_numpy(
    rows: int, width: int, k: int, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    for i, schedule in enumerate(SCHEDULES if width < 3 * SLICE else SCHEDULES[2:]):
        z = values(i, rows, width, dtype="float32")
        device = device_of(kernel_test_device(schedule, checked=width < 5 * SLICE))
        placed = amid_nan(z, device)
        found, indices = (device.to_host(part) for part in top_k(placed, k, device=device))
        expected, order = ranked(z, k)
        assert np.array_equal(indices, order) and np.array_equal(found, expected)
        assert np.array_equal(device.to_host(argmax(placed, device=device)), z.argmax(axis=1))


@pytest.mark.gpu
def test_top_k_tells_values_apart_that_hardly_differ(kernel_test_device: KernelTestDevice) -> None:
    """Neighbours in float32, near zero and near one, of both signs."""
    steps, minus = np.arange(1, 41, dtype=np.uint32), np.uint32(1 << 31)
    for first in (0, np.float32(1).view(np.uint32)):
        bits = np.concatenate([steps + first, (steps + first) | minus]).astype(np.uint32)
        z = np.random.default_rng(0).permutation(bits.view(np.float32))[None]
        order = np.argsort(-z[0].astype(np.float64), kind="stable")
        values, indices = top_k(z, 64, device=kernel_test_device())
        assert indices[0].tolist() == order[:64].tolist() and values[0].tobytes() == z[0][order[:64]].tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("width", [40, SLICE + 9])
def test_ties_go_to_the_lowest_index(width: int, kernel_test_device: KernelTestDevice) -> None:
    z = np.random.default_rng(0).integers(-2, 3, (2, width)).astype(np.float32)
    z[z == 0] = np.random.default_rng(1).choice(np.array([0.0, -0.0], np.float32), int((z == 0).sum()))
    k = 33
    found, indices = top_k(z, k, device=kernel_test_device("random"))
    expected, order = ranked(z, k)
    assert np.array_equal(indices, order)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))  # -0 as -0
    same = np.zeros((1, width), np.float32)
    assert top_k(same, k, device=kernel_test_device())[1].tolist() == [list(range(k))]


@pytest.mark.gpu
def test_nan_and_infinities(kernel_test_device: KernelTestDevice) -> None:
    z = np.full((1, 70), -np.inf, np.float32)
    z[0, [60, 5]], z[0, [50, 9]], z[0, 30] = np.nan, np.inf, -1.0
    z[0, 61] = -np.float32(np.nan)
    found, indices = top_k(z, 8, device=kernel_test_device())
    assert indices.tolist() == [[5, 60, 61, 9, 50, 30, 0, 1]]
    assert np.array_equal(found, z[:, indices[0]], equal_nan=True)


@pytest.mark.gpu
def test_every_schedule_build_and_batch_gives_the_same_bits(kernel_test_device: KernelTestDevice) -> None:
    z = np.round(values(0, 3, SLICE + 300, dtype="float32"), 1)

    def run(device: Any, rows: slice = slice(None)) -> list[bytes]:
        y = softcap(z[rows].copy(), 2.0, device=device)
        return [part.tobytes() for part in (y, *top_k(y, 5, device=device))]

    expected = run(kernel_test_device(workers=1))
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        for options in ({}, {"checked": False}):
            assert run(kernel_test_device(schedule, seed=seed, workers=workers, **options)) == expected
    alone = [run(kernel_test_device(), slice(i, i + 1)) for i in range(3)]
    assert [b"".join(parts) for parts in zip(*alone, strict=True)] == expected


def test_traffic_is_what_the_shapes_demand(kernel_test_device: KernelTestDevice) -> None:
    emulator = kernel_test_device()
    z = emulator.from_host(values(0, 2, 2 * SLICE, dtype="float32"))
    softcap(z, 30.0, device=emulator)
    counters = counted(emulator)
    assert_moves_little_more(counters, compulsory.moved([z], [z]))
    assert counters.global_full_requests == counters.global_requests
    launches = []
    emulator._observe = lambda launch, counters: launches.append(counters)
    top_k(z, 4, device=emulator)
    first, last = launches
    assert first.global_read_sectors <= 1.02 * compulsory.sectors(z)
    reads = 2 * 2 * SLICE // 128
    assert first.global_requests == reads + 4 * first.blocks  # and k keys, by one thread of each block
    assert first.global_read_bytes == 512 * reads and first.shared_bank_conflicts == 0
    assert last.blocks == 2


def test_no_rows(kernel_test_device: KernelTestDevice) -> None:
    empty = np.zeros((0, 7), np.float32)
    assert softcap(empty, 1.0, device=kernel_test_device()).shape == (0, 7)
    assert [part.shape for part in top_k(empty, 3, device=kernel_test_device())] == [(0, 3), (0, 3)]


GOOD = np.zeros((2, 8), np.float32)
REFUSED: list[tuple[Array, float, str]] = [
    (np.zeros(8, np.float32), 1, "z is [8], expected [M, V]"),
    (np.zeros((2, 0), np.float32), 1, "z is [2, 0], expected [M, V]"),
    (np.zeros((2, 8), np.float16), 1, "z is float16, expected float32"),
    (np.zeros((2, 16), np.float32)[:, ::2], 1, "z is not contiguous"),
]


@pytest.mark.parametrize(("z", "number", "message"), REFUSED)
def test_both_refuse(z: Array, number: int, message: str, kernel_test_device: KernelTestDevice) -> None:
    device = kernel_test_device()
    for op, refused in (("softcap", softcap), ("top_k", top_k)):
        with pytest.raises(InputError) as info:
            refused(z, number, device=device)
        assert str(info.value).startswith(f"{op}: {message}")
    assert device.counters is None


@pytest.mark.parametrize("cap", [0.0, -30.0, np.inf, np.nan])
def test_softcap_refuses(cap: float, kernel_test_device: KernelTestDevice) -> None:
    with pytest.raises(InputError, match=r"softcap: cap is .*, expected a positive number"):
        softcap(GOOD.copy(), cap, device=kernel_test_device())


@pytest.mark.parametrize(("z", "k", "most"), [(GOOD, 0, 8), (GOOD, 9, 8), (np.zeros((1, 99), np.float32), 65, 64)])
def test_top_k_refuses(z: Array, k: int, most: int, kernel_test_device: KernelTestDevice) -> None:
    with pytest.raises(InputError, match=rf"top_k: k is {k}, expected 1 to {most} of {z.shape[1]} logits"):
        top_k(z, k, device=kernel_test_device())
    with pytest.raises(InputError, match="top_k: z has 65536 rows, at most 65535 are possible"):
        top_k(np.zeros((65536, 1), np.float32), 1, device=kernel_test_device())
