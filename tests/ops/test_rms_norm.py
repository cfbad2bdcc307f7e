"""rms_norm and add_norm on the emulator: equal to the reference, bit-stable, silent under every check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma_cuda.device.emulator.device import Approximation, Schedule
from gemma_cuda.errors import InputError
from gemma_cuda.ops.rms_norm import add_norm, rms_norm
from gemma_cuda.precision import FLOAT32, FLOAT64, Precision
from gemma_cuda.reference.rms_norm import add_norm as reference_add_norm
from gemma_cuda.reference.rms_norm import rms_norm as reference_rms_norm
from tests.support import compulsory
from tests.support.compare import DTYPES, assert_within_rule
from tests.support.emulated import (
    APPROXIMATIONS,
    EPS_RATIOS,
    ROUNDING,
    SCHEDULES,
    Array,
    DeviceOf,
    KernelTestDevice,
    amid_nan,
    assert_moves_little_more,
    counted,
    near_eps,
    values,
)

KERNEL_DTYPES = ("bfloat16", "float16", "float32")
# Odd and even, less and more than a warp, a block, a vector; real hidden sizes.
WIDTHS = (1, 7, 8, 33, 257, 640, 1152, 4100)
EPS = 1e-6


def rounding(dtype: str) -> Precision:
    return FLOAT32 if dtype == "float32" else ROUNDING[dtype]


def approximation(i: int, dtype: str) -> Approximation:
    """One of the three errors of rsqrtf; in float32, whose rounding points are smaller than these, none."""
    return "exact" if dtype == "float32" else APPROXIMATIONS[i % 3]


def weights_of(weight: Array, plus_one: bool, dtype: Any) -> Array:
    return weight.astype(dtype) + (1 if plus_one else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_equals_the_reference(
    width: int, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    for i, schedule in enumerate(SCHEDULES):
        plus_one = i != 1
        x, weight = values(width + i, 5, width, dtype=dtype, scale=10.0**i), values(i, width, dtype=dtype)
        device = device_of(kernel_test_device(schedule, approx=approximation(i + width, dtype)))
        y = rms_norm(amid_nan(x, device), amid_nan(weight, device), eps=EPS, device=device, plus_one=plus_one)
        exact, rounded = (
            reference_rms_norm(x.astype(p.compute), weights_of(weight, plus_one, p.compute), eps=EPS, precision=p)
            for p in (FLOAT64, rounding(dtype))
        )
        assert_within_rule(device.to_host(y), exact, rounded, dtype=dtype, what=f"rms_norm {schedule}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_rms_norm_without_a_weight(dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice) -> None:
    x = values(1, 3, 130, dtype=dtype)
    device = device_of(kernel_test_device("random"))
    y = device.to_host(rms_norm(amid_nan(x, device), None, eps=EPS, device=device))
    exact, rounded = (
        reference_rms_norm(x.astype(p.compute), None, eps=EPS, precision=p) for p in (FLOAT64, rounding(dtype))
    )
    assert_within_rule(y, exact, rounded, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("width", WIDTHS[::2] + WIDTHS[-1:])
def test_add_norm_equals_the_reference(
    width: int, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    forms = [(post, pre, scalar) for post in (True, False) for pre in (True, False) for scalar in (1.0, 0.75)]
    for i, (has_post, has_pre, scalar) in enumerate(forms):
        plus_one = i % 2 == 0
        residual, branch = values(i, 3, width, dtype=dtype), values(i + 99, 3, width, dtype=dtype, scale=4.0)
        post = values(i + 1, width, dtype=dtype) if has_post else None
        pre = values(i + 2, width, dtype=dtype) if has_pre else None
        device = device_of(kernel_test_device(SCHEDULES[(i + width) % 3], approx=approximation(i, dtype)))
        stored, *weights = (None if array is None else amid_nan(array, device) for array in (residual, post, pre))
        h, y = add_norm(
            stored, amid_nan(branch, device), post_weight=weights[0], pre_weight=weights[1], eps=EPS,
            layer_scalar=scalar, plus_one=plus_one, device=device,
        )  # fmt: skip
        assert h is stored and (y is stored) == (not has_pre)
        results = [
            reference_add_norm(
                residual.astype(p.compute), branch.astype(p.compute), eps=EPS, precision=p, layer_scalar=scalar,
                post_weight=None if post is None else weights_of(post, plus_one, p.compute),
                pre_weight=None if pre is None else weights_of(pre, plus_one, p.compute),
            )
            for p in (FLOAT64, rounding(dtype))
        ]  # fmt: skip
        for y_or_h, exact, rounded, what in zip((h, y), *results, ("residual", "normed"), strict=True):
            assert_within_rule(device.to_host(y_or_h), exact, rounded, dtype=dtype, what=f"{what} {i}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_eps_decides_where_a_row_is_small(
    dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    """Rows whose mean square is eps times a ratio, or 0. Each is held to the rule by itself."""
    x, weight = near_eps(values(1, len(EPS_RATIOS), 640, dtype="float32"), EPS, dtype), values(2, 640, dtype=dtype)
    device = device_of(kernel_test_device("random"))
    y = device.to_host(rms_norm(device.from_host(x), device.from_host(weight), eps=EPS, device=device))
    exact, rounded = (
        reference_rms_norm(x.astype(p.compute), weight.astype(p.compute), eps=EPS, precision=p)
        for p in (FLOAT64, rounding(dtype))
    )
    for row, ratio in enumerate(EPS_RATIOS):
        assert_within_rule(y[row], exact[row], rounded[row], dtype=dtype, what=f"ratio {ratio}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("small", ["branch", "sum"])
def test_eps_decides_in_both_norms_of_add_norm(
    small: str, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    """The norm of a small branch, which a residual of 0 shows; and that of a small sum, of which the branch is 0."""
    zeros, part = np.zeros((len(EPS_RATIOS), 640), DTYPES[dtype]), values(1, len(EPS_RATIOS), 640, dtype="float32")
    near = near_eps(part, EPS, dtype)
    residual, branch = (zeros, near) if small == "branch" else (near, zeros)
    weight = values(2, 640, dtype=dtype)
    device = device_of(kernel_test_device("random"))
    h, y = add_norm(
        device.from_host(residual), device.from_host(branch), post_weight=device.from_host(weight),
        pre_weight=device.from_host(weight), eps=EPS, device=device,
    )  # fmt: skip
    results = [
        reference_add_norm(
            residual.astype(p.compute), branch.astype(p.compute), eps=EPS, precision=p,
            post_weight=weight.astype(p.compute), pre_weight=weight.astype(p.compute),
        )
        for p in (FLOAT64, rounding(dtype))
    ]  # fmt: skip
    for got, exact, rounded, what in zip((h, y), *results, ("residual", "normed"), strict=True):
        for row, ratio in enumerate(EPS_RATIOS):
            shown = f"{what}, ratio {ratio}"
            assert_within_rule(device.to_host(got)[row], exact[row], rounded[row], dtype=dtype, what=shown)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_any_alignment_gives_the_same_values(offset: int, dtype: str, kernel_test_device: KernelTestDevice) -> None:
    x, weight = values(0, 2, 64, dtype=dtype), values(1, 64, dtype=dtype)
    aligned = rms_norm(x, weight, eps=EPS, device=kernel_test_device())
    device = kernel_test_device()
    unaligned = [amid_nan(array, device, offset=offset) for array in (x, weight)]
    y = rms_norm(*unaligned, eps=EPS, device=device)
    # Threads take other elements, so sums differ in their last bits.
    difference = np.abs(y.astype(np.float64) - aligned.astype(np.float64))
    assert difference.max() <= 4 * np.abs(aligned.astype(np.float64)).max() * float(np.finfo(np.float32).eps) + (
        0 if dtype == "float32" else np.abs(aligned.astype(np.float64)).max() * 2.0**-7
    )


@pytest.mark.gpu
@pytest.mark.parametrize("is_checked", [True, False])
def test_every_schedule_and_batch_gives_the_same_bits(is_checked: bool, kernel_test_device: KernelTestDevice) -> None:
    residual, branch = values(0, 6, 640, dtype="bfloat16"), values(1, 6, 640, dtype="bfloat16")
    post, pre = values(2, 640, dtype="bfloat16"), values(3, 640, dtype="bfloat16")

    def run(rows: slice, schedule: Schedule, seed: int, workers: int) -> tuple[bytes, bytes]:
        h, y = add_norm(
            residual[rows].copy(), branch[rows].copy(), post_weight=post, pre_weight=pre, eps=EPS, plus_one=True,
            device=kernel_test_device(schedule, checked=is_checked, seed=seed, workers=workers),
        )  # fmt: skip
        return h.tobytes(), y.tobytes()

    together = run(slice(0, 6), "forward", 0, 1)
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        assert run(slice(0, 6), schedule, seed, workers) == together
    alone = [run(slice(i, i + 1), "forward", 0, 1) for i in range(6)]
    assert tuple(b"".join(parts) for parts in zip(*alone, strict=True)) == together


def test_the_error_of_rsqrtf_is_not_amplified(kernel_test_device: KernelTestDevice) -> None:
    x, weight = values(0, 3, 257, dtype="float32"), values(1, 257, dtype="float32")
    exact, up, down = (
        rms_norm(x, weight, eps=EPS, device=kernel_test_device(approx=approx)).astype(np.float64)
        for approx in APPROXIMATIONS
    )
    for off in (up, down):
        assert (off != exact).any() and (np.abs(off - exact) <= 4 * 2.0**-23 * np.abs(exact)).all()


def test_large_values_do_not_overflow(kernel_test_device: KernelTestDevice) -> None:
    x = np.full((1, 256), 60000, np.float16)
    np.testing.assert_allclose(
        rms_norm(x, None, eps=EPS, device=kernel_test_device()).astype(np.float32), 1.0, atol=1e-3
    )


def test_zero_rows_and_zero_values(kernel_test_device: KernelTestDevice) -> None:
    assert rms_norm(np.zeros((0, 8), np.float32), None, eps=EPS, device=kernel_test_device()).shape == (0, 8)
    assert not rms_norm(np.zeros((1, 8), np.float32), None, eps=EPS, device=kernel_test_device()).any()


@pytest.mark.parametrize(("dtype", "vector"), [("bfloat16", 8), ("float32", 4)])
def test_traffic_is_what_the_shapes_demand(dtype: str, vector: int, kernel_test_device: KernelTestDevice) -> None:
    rows, width = 7, 512
    emulator = kernel_test_device()
    x = emulator.from_host(values(0, rows, width, dtype=dtype))
    weight = emulator.from_host(values(1, width, dtype=dtype))
    y = rms_norm(x, weight, eps=EPS, device=emulator)
    counters = counted(emulator)
    assert_moves_little_more(counters, compulsory.moved([x, weight], [y]))
    assert counters.global_read_bytes == x.nbytes + rows * weight.nbytes
    assert counters.global_full_requests == counters.global_requests == 3 * rows * width // (32 * vector)
    assert counters.shared_bank_conflicts == 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": np.zeros((2, 3, 4), np.float32)}, "x is [2, 3, 4], expected [S, E]"),
    ({"x": np.zeros((2, 0), np.float32)}, "x is [2, 0], expected [S, E]"),
    ({"x": np.zeros((2, 8), np.float64)}, "x is float64, expected one of bfloat16, float16, float32"),
    ({"x": np.zeros((2, 16), np.float32)[:, ::2]}, "x is not contiguous"),
    ({"weight": np.zeros(7, np.float32)}, "weight is [7], expected [E] = [8]"),
    ({"weight": np.zeros(8, np.float16)}, "weight is float16, expected float32"),
    ({"weight": np.zeros(16, np.float32)[::2]}, "weight is not contiguous"),
    ({"x": np.zeros((1, 30_000), np.float32), "weight": None}, "takes 120000 bytes, a block has 101376"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_rms_norm_refuses(changes: dict[str, Any], message: str, kernel_test_device: KernelTestDevice) -> None:
    arguments = {"x": np.zeros((2, 8), np.float32), "weight": np.zeros(8, np.float32), **changes}
    with pytest.raises(InputError) as info:
        rms_norm(arguments["x"], arguments["weight"], eps=EPS, device=kernel_test_device())
    assert message in str(info.value) and str(info.value).startswith("rms_norm: ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("residual", np.zeros((2, 8), np.int32), "residual is int32"),
        ("branch", np.zeros((3, 8), np.float32), "branch is [3, 8], expected [S, E] = [2, 8]"),
        ("branch", np.zeros((2, 8), np.float16), "branch is float16"),
        ("post_weight", np.zeros(9, np.float32), "post_weight is [9], expected [E] = [8]"),
        ("pre_weight", np.zeros((1, 8), np.float32), "pre_weight is [1, 8], expected [E] = [8]"),
    ],
)
def test_add_norm_refuses(name: str, value: Array, message: str, kernel_test_device: KernelTestDevice) -> None:
    arguments: dict[str, Any] = {n: np.zeros((2, 8), np.float32) for n in ("residual", "branch")}
    arguments |= {n: np.zeros(8, np.float32) for n in ("post_weight", "pre_weight")} | {name: value}
    with pytest.raises(InputError) as info:
        add_norm(arguments.pop("residual"), arguments.pop("branch"), **arguments, eps=EPS, device=kernel_test_device())
    assert message in str(info.value) and str(info.value).startswith("add_norm: ")
