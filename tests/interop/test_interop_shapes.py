"""Shapes, scales and masks at the edge of what attention means, against torch's own in float64."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import gemma_cuda
from gemma_cuda.errors import InputError
from gemma_cuda.interop import torch as ours

pytestmark = pytest.mark.usefixtures("no_warnings")
torch_attention = torch.nn.functional.scaled_dot_product_attention


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_as_torch(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **options: Any) -> Tensor:
    got = ours.scaled_dot_product_attention(q, k, v, mask, **options)
    exact = mask.double() if isinstance(mask, Tensor) and type(mask) is Tensor and mask.is_floating_point() else mask
    with sdpa_kernel(SDPBackend.MATH):  # the fused one of torch hides nothing where the scale is not positive
        expected = torch_attention(q.double(), k.double(), v.double(), exact, **options)
    assert got.shape == expected.shape and got.dtype == q.dtype
    assert torch.allclose(got.double(), expected, atol=1e-5)
    return got


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.0, -0.3, -2.0, 1e-30, None])
def test_any_finite_scale(scale: float | None, causal: bool) -> None:
    q, k, v = normal(2, 4, 5, 8), normal(2, 4, 5, 8, seed=1), normal(2, 4, 5, 8, seed=2)
    assert_as_torch(q, k, v, scale=scale, is_causal=causal)
    capped = gemma_cuda.attention(q, k, v, scale=scale, softcap=2.0, layout="BHSD")
    scores = 2 * torch.tanh((q @ k.mT) * (8**-0.5 if scale is None else scale) / 2)
    assert torch.allclose(capped, scores.softmax(-1) @ v, atol=1e-5)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number(scale: float) -> None:
    with pytest.raises(InputError, match=f"attention: scale is {scale}, expected a finite number, or None"):
        gemma_cuda.attention(*[normal(1, 2, 3, 8)] * 3, scale=scale)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "D 0": ((2, 3, 4, 0), (2, 3, 5, 0), (2, 3, 5, 6)),
    "D 0, all": ((2, 3, 4, 0), (2, 3, 5, 0), (2, 3, 5, 0)),
    "value wider": ((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 12)),
    "value narrower": ((3, 4, 8), (3, 5, 8), (3, 5, 1)),
    "value 0": ((3, 4, 8), (3, 5, 8), (3, 5, 0)),
    "no heads": ((2, 0, 4, 8), (2, 0, 5, 8), (2, 0, 5, 8)),
    "no heads, wider": ((0, 4, 8), (0, 5, 8), (0, 5, 9)),
    "no batch": ((0, 3, 4, 8), (0, 3, 5, 8), (0, 3, 5, 8)),
    "no batch, broadcast": ((0, 3, 4, 8), (1, 3, 5, 8), (1, 1, 5, 8)),
    "no queries, broadcast": ((2, 3, 0, 8), (1, 1, 5, 8), (1, 3, 5, 8)),
    "no keys, broadcast": ((2, 3, 4, 8), (1, 3, 0, 8), (2, 1, 0, 8)),
    "no queries, no keys": ((2, 1, 3, 0, 8), (4, 1, 0, 8), (1, 3, 0, 8)),
    "keys of more batches": ((4, 8), (2, 3, 5, 8), (3, 5, 8)),
    "five axes": ((2, 1, 3, 4, 8), (1, 5, 3, 4, 8), (5, 1, 4, 8)),
}


@pytest.mark.parametrize("mask", ["none", "causal", "keys", "bool"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, mask: str) -> None:
    q, k, v = (normal(*shape, seed=i) for i, shape in enumerate(SHAPES[name]))
    s, t = q.shape[-2], k.shape[-2]
    given = {"keys": normal(1, t, seed=5), "bool": normal(s, t, seed=6) > 0}.get(mask)
    assert_as_torch(q, k, v, given, is_causal=mask == "causal")


@pytest.mark.parametrize(
    ("heads", "k_heads", "v_heads"), [(0, 2, 2), (0, 0, 0), (4, 2, 1), (4, 1, 4), (6, 2, 3), (6, 3, 3)]
)
def test_grouped_heads(heads: int, k_heads: int, v_heads: int) -> None:
    q, k, v = normal(2, heads, 4, 8), normal(2, k_heads, 5, 8, seed=1), normal(2, v_heads, 5, 7, seed=2)
    assert_as_torch(q, k, v, enable_gqa=True)
    assert_as_torch(q, k, v, normal(heads, 4, 5), enable_gqa=True)


@pytest.mark.parametrize("layout", ["BSHD", "BHSD", "SHD"])
def test_value_head_dim_in_every_layout(layout: str) -> None:
    q, k, v = normal(3, 4, 8), normal(5, 2, 8, seed=1), normal(5, 2, 12, seed=2)
    expected = torch_attention(*(x.transpose(0, 1) for x in (q, k, v)), enable_gqa=True).transpose(0, 1)
    if layout != "SHD":
        q, k, v, expected = q[None], k[None], v[None], expected[None]
    if layout == "BHSD":
        q, k, v, expected = (x.transpose(1, 2) for x in (q, k, v, expected))
    for f, args in ((gemma_cuda.attention, [x.numpy() for x in (q, k, v)]), (ours.attention, [q, k, v])):
        o, lse = f(*args, layout=layout, return_lse=True)
        assert torch.allclose(torch.as_tensor(o), expected, atol=1e-5)
        assert tuple(lse.shape) == ((4, 3) if layout == "SHD" else (1, 4, 3))
    out = torch.empty_like(expected)
    assert gemma_cuda.attention(q, k, v, layout=layout, out=out) is out and torch.allclose(out, expected, atol=1e-5)
    with pytest.raises(InputError, match=r"attention: out is float32 .*, expected float32 "):
        gemma_cuda.attention(q, k, v, layout=layout, out=torch.empty_like(q))


def test_value_head_dim_of_flash_and_jax() -> None:
    jax = pytest.importorskip("jax")
    q, k, v = normal(1, 3, 2, 8), normal(1, 5, 2, 8, seed=1), normal(1, 5, 2, 12, seed=2)
    expected = torch_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.allclose(ours.flash_attn_func(q, k, v), expected, atol=1e-5)
    o = jax.jit(gemma_cuda.attention)(*(jax.numpy.asarray(x.numpy()) for x in (q, k, v)))
    assert np.allclose(o, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"v": normal(1, 4, 2, 128).bfloat16()},
            "D of v is 128 and D of q and k 64, kernels take one; use device=None",
        ),
        ({"scale": 0.0}, "scale is 0.0, kernels take a positive one; use device=None, the NumPy reference"),
        ({"scale": -1.0}, "scale is -1.0, kernels take a positive one"),
    ],
)
def test_kernels_refuse(changes: dict[str, Any], message: str) -> None:
    x = normal(1, 4, 2, 64).bfloat16()
    given: dict[str, Any] = {"q": x, "k": x, "v": x} | changes
    assert torch.isfinite(gemma_cuda.attention(**given)).all()
    with pytest.raises(InputError, match=re.escape(f"attention: {message}")):
        gemma_cuda.attention(**given, device="emulator")


def test_kernels_with_no_heads() -> None:
    q, k = normal(1, 4, 0, 64).bfloat16(), normal(1, 4, 2, 64).bfloat16()
    for keys in (k, k[:, :, :0]):
        assert gemma_cuda.attention(q, keys, keys, device="emulator").shape == q.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_mask", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_masks_of_the_least_number(dtype: torch.dtype, of_mask: torch.dtype) -> None:
    """A row that is hidden by the least finite number throughout is the average of its values, as in float64."""
    q, k, v = (normal(1, 2, 4, 8, seed=i).to(dtype) for i in range(3))
    mask = torch.zeros(4, 4, dtype=of_mask).masked_fill(torch.ones(4, 4).triu(1).bool(), torch.finfo(of_mask).min)
    mask[1] = torch.finfo(of_mask).min
    got = ours.scaled_dot_product_attention(q, k, v, mask)
    exact = mask.double().clamp(min=-1e30)
    expected = torch_attention(q.double(), k.double(), v.double(), exact)
    is_coarse = of_mask == torch.float16 or dtype.itemsize == 2  # the sum of a score and -65504 has few digits left
    assert torch.allclose(got.double(), expected, atol=2e-2 if is_coarse else 1e-5)
    if of_mask != torch.float16:  # whose least number leaves a difference between scores
        assert torch.allclose(got[:, :, 1].double(), v.double().mean(2), atol=2e-2)


@pytest.mark.parametrize(("s", "t"), [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
def test_causal_bias(make: Any, s: int, t: int) -> None:
    q, k, v = normal(2, 4, s, 8), normal(2, 2, t, 8, seed=1), normal(2, 2, t, 8, seed=2)
    mask = make(s, t)
    torch.Tensor.fill_(mask.as_subclass(Tensor), torch.nan)  # what its memory holds is nobody's business
    expected = assert_as_torch(q, k, v, mask, enable_gqa=True)
    for f in (gemma_cuda.attention, ours.attention):
        assert torch.allclose(f(q, k, v, attn_bias=mask, layout="BHSD"), expected, atol=1e-6)
    raw = torch.ops.gemma_cuda.attention(q, k, v, mask, *(None,) * 9, "BHSD", None)[0].as_subclass(Tensor)
    assert torch.allclose(raw, expected, atol=1e-6)
    mapped = torch.vmap(ours.scaled_dot_product_attention, in_dims=(0, 0, 0, None))(q, q, q, make(s, s))
    assert torch.allclose(mapped, torch_attention(q, q, q, is_causal=True), atol=1e-6)


def test_causal_bias_of_another_length() -> None:
    """From the upper left, and of a square, torch asks for no length; elsewhere it must fit."""
    q, k = normal(1, 2, 3, 8), normal(1, 2, 5, 8, seed=1)
    for mask in (causal_upper_left(9, 8), causal_lower_right(9, 9)):
        assert_as_torch(q, k, k, mask)
    with pytest.raises(
        InputError, match=re.escape("the causal_lower_right bias is of [2, 5], expected [S, T] = [3, 5]")
    ):
        ours.scaled_dot_product_attention(q, k, k, causal_lower_right(2, 5))
    with pytest.raises(InputError, match="attn_mask and is_causal are both given"):
        ours.scaled_dot_product_attention(q, k, k, causal_upper_left(3, 5), is_causal=True)
    with pytest.raises(InputError, match="attn_bias is of torch, q of NumPy"):
        gemma_cuda.attention(q.numpy(), k.numpy(), k.numpy(), attn_bias=causal_upper_left(3, 5), layout="BHSD")


RANGES = torch.tensor([[[[0, 1], [0, 2], [1, 3]]]], dtype=torch.int32)


def attend(ranges: Tensor) -> Tensor:
    q, k = normal(2, 3, 1, 8), normal(2, 4, 1, 8, seed=1)
    return torch.ops.gemma_cuda.attention(q, k, k, None, None, ranges, *(None,) * 7, "BSHD", None)[0]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (RANGES.flip(-1), "key_range: query 0 of sequence 0 begins at key 1 and ends before key 0"),
        (
            torch.cat([RANGES, RANGES.roll(1, -1)]),
            "key_range: query 0 of sequence 1 begins at key 1 and ends before key 0",
        ),
        (RANGES - 1, "key_range reaches from -1 to 2, there are keys 0 to T = 4"),
        (RANGES + 2, "key_range reaches from 2 to 5, there are keys 0 to T = 4"),
        (RANGES[:, :, :2], "key_range is [1, 1, 2, 2], expected [B, 1, S, 2] = [2, 1, 3, 2]"),
        (torch.cat([RANGES, RANGES], -1), "key_range is [1, 1, 3, 4], expected [B, 1, S, 2] = [2, 1, 3, 2]"),
        (RANGES.float(), "key_range is float32, expected integers"),
    ],
)
def test_intervals_that_are_none(ranges: Tensor, message: str) -> None:
    assert torch.isfinite(attend(RANGES)).all()
    with pytest.raises(InputError, match=re.escape(f"attention: {message}")):
        attend(ranges)
