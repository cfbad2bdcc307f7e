"""embed on the emulator: equal to the reference, bit-stable, silent under every check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma_cuda.errors import InputError
from gemma_cuda.ops.embed import embed, feature_index_of
from gemma_cuda.reference.embed import embed as reference_embed
from tests.support import compulsory
from tests.support.compare import assert_within_rule
from tests.support.emulated import (
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

VOCABULARY = 23
# Odd and even, less and more than a vector, a warp, a block of 256 · 8; real hidden sizes.
WIDTHS = [1, 7, 8, 20, 256, 264, 640, 1152, 2044, 2048, 2056, 5376]


def draw_ids(tokens: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCABULARY, tokens).astype(np.int32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_reference(
    width: int, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    for i, schedule in enumerate(SCHEDULES):
        ids, table = draw_ids(5 * i + 1, i), values(i, VOCABULARY, width, dtype=dtype)
        ids[0] = (0, VOCABULARY - 1, 5)[i]
        device = device_of(kernel_test_device(schedule))
        placed = embed(device.from_host(ids), amid_nan(table, device), scale=width**0.5, device=device)
        x = device.to_host(placed)
        exact, rounded = bounds(dtype, lambda p, t=table, n=ids: reference_embed(n, t, scale=width**0.5, precision=p))
        assert_within_rule(x, exact, rounded, dtype=dtype)
        assert np.array_equal(x.astype(np.float32), rounded)  # one product, rounded: nothing is left to chance


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("hidden_size", "factor"), [(640, 25.25), (1152, 34.0), (2560, 50.5), (3072, 55.5), (3840, 62.0), (5376, 73.5)]
)
def test_the_scale_is_rounded_first(hidden_size: int, factor: float, kernel_test_device: KernelTestDevice) -> None:
    table = np.ones((2, 8), values(0, 1, dtype="bfloat16").dtype)
    x = embed(np.array([1], np.int32), table, scale=hidden_size**0.5, device=kernel_test_device())
    assert (x.astype(np.float64) == factor).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("width", [7, 640])
def test_features_take_the_places_of_their_tokens(
    width: int, dtype: str, device_of: DeviceOf, kernel_test_device: KernelTestDevice
) -> None:
    placeholder = 262_144  # outside the table, as in Gemma 3
    ids = draw_ids(12)
    ids[[2, 3, 4, 9, 11]] = placeholder
    table, features = values(0, VOCABULARY, width, dtype=dtype), values(1, 5, width, dtype=dtype)
    index = feature_index_of(ids, placeholder, 5)
    assert index.tolist() == [-1, -1, 0, 1, 2, -1, -1, -1, -1, 3, -1, 4]
    device = device_of(kernel_test_device("random"))
    rows, added = amid_nan(table, device), {"features": amid_nan(features, device)}
    added["feature_index"] = device.from_host(index)
    x = device.to_host(embed(device.from_host(ids), rows, scale=3.3, device=device, **added))
    is_feature = index >= 0
    assert np.array_equal(x[is_feature].view(np.uint16), features.view(np.uint16))
    alone = embed(ids[~is_feature], table, scale=3.3, device=kernel_test_device())
    assert np.array_equal(x[~is_feature].view(np.uint16), alone.view(np.uint16))


@pytest.mark.gpu
def test_every_schedule_build_and_batch_gives_the_same_bits(kernel_test_device: KernelTestDevice) -> None:
    ids, table = draw_ids(6), values(0, VOCABULARY, 712, dtype="bfloat16")
    expected = embed(ids, table, scale=5.0, device=kernel_test_device(workers=1)).tobytes()
    for schedule, seed, workers in (("reverse", 0, 2), ("random", 1, 1), ("random", 2, 2)):
        for options in ({}, {"checked": False}):
            device = kernel_test_device(schedule, seed=seed, workers=workers, **options)
            assert embed(ids, table, scale=5.0, device=device).tobytes() == expected
    alone = [embed(ids[i : i + 1], table, scale=5.0, device=kernel_test_device()).tobytes() for i in range(6)]
    assert b"".join(alone) == expected


@pytest.mark.parametrize("width", [256, 640, 2560, 5376])
def test_traffic_is_what_the_shapes_demand(width: int, kernel_test_device: KernelTestDevice) -> None:
    emulator, tokens = kernel_test_device(), 16
    ids = emulator.from_host(np.arange(tokens, dtype=np.int32))
    table = emulator.from_host(values(0, tokens, width, dtype="bfloat16"))
    x = embed(ids, table, scale=1.0, device=emulator)
    counters = counted(emulator)
    assert_moves_little_more(counters, compulsory.embed(x, ids, table))
    # All but one request of each warp, for the token's id, move 512 bytes; that is less in a row's last step only.
    warps = counters.threads // 32
    moves, asked = counters.global_requests - warps, counters.global_read_bytes + counters.global_write_bytes
    assert asked - counters.threads * 4 == 2 * table.nbytes
    assert moves == 2 * tokens * -(-width // (32 * 8))


def test_no_tokens(kernel_test_device: KernelTestDevice) -> None:
    assert embed(np.zeros(0, np.int32), np.zeros((2, 8), np.float16), scale=1.0, device=kernel_test_device()).shape == (
        0,
        8,
    )


IDS, TABLE = np.arange(4, dtype=np.int32), np.zeros((9, 8), np.float16)
FEATURES, INDEX = np.zeros((2, 8), np.float16), np.array([-1, 0, 1, -1], np.int32)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"table": np.zeros(8, np.float16)}, "table is [8], expected [V, E]"),
    ({"table": np.zeros((4, 0), np.float16)}, "table is [4, 0], expected [V, E]"),
    ({"table": np.zeros((4, 8), np.float32)}, "table is float32, expected bfloat16 or float16"),
    ({"table": np.zeros((9, 16), np.float16)[:, ::2]}, "table is not contiguous"),
    ({"ids": IDS.reshape(1, 4)}, "ids is [1, 4], expected [N]"),
    ({"ids": IDS.astype(np.int64)}, "ids is int64, expected int32"),
    ({"ids": IDS + 6}, "ids holds 9, outside the 9 rows of table"),
    ({"ids": IDS - 1}, "ids holds -1, outside the 9 rows of table"),
    ({"features": FEATURES}, "features and feature_index are needed together"),
    ({"feature_index": INDEX}, "features and feature_index are needed together"),
    ({"features": np.zeros(8, np.float16), "feature_index": INDEX}, "features is [8], expected [M, E]"),
    (
        {"features": np.zeros((2, 4), np.float16), "feature_index": INDEX},
        "features is [2, 4], expected [M, E] = [2, 8]",
    ),
    ({"features": FEATURES.astype(np.float32), "feature_index": INDEX}, "features is float32, expected float16"),
    ({"features": FEATURES, "feature_index": INDEX[:3]}, "feature_index is [3], expected [N] = [4]"),
    ({"features": FEATURES, "feature_index": INDEX + 1}, "feature_index holds 2, outside the 2 rows of features"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses(changes: dict[str, Any], message: str, kernel_test_device: KernelTestDevice) -> None:
    arguments = {"ids": IDS, "table": TABLE, **changes}
    device = kernel_test_device()
    with pytest.raises(InputError) as info:
        embed(arguments.pop("ids"), arguments.pop("table"), **arguments, scale=1.0, device=device)
    assert message in str(info.value) and str(info.value).startswith("embed: ")
    assert device.counters is None


def test_placeholders_and_features_must_match_in_number() -> None:
    with pytest.raises(InputError, match="embed: 2 ids are the placeholder 7, but there are 3 feature rows"):
        feature_index_of(np.array([7, 1, 7]), 7, 3)
