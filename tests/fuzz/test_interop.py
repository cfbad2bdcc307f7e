"""Drawn calls of the SDPA-shaped function against torch's own, and drawn intervals of keys against a dense mask."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from gemma_cuda.errors import InputError
from gemma_cuda.interop.torch import scaled_dot_product_attention
from tests.support.fuzz import examples

pytestmark = pytest.mark.usefixtures("no_warnings")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LENGTHS = st.sampled_from((0, 1, 2, 3, 5, 17, 40))
KINDS = ("none", "causal", "bool", "float", "least", "-inf", "upper left", "lower right", "both")


@st.composite
def calls(draw: Any) -> tuple[list[Tensor], Any, dict[str, Any]]:
    """(q, k, v), a mask and options: most of them fit each other, some do not."""
    s, t, d = draw(LENGTHS), draw(LENGTHS), draw(st.sampled_from((0, 1, 8, 64)))
    dims = [d, d, draw(st.sampled_from((d, d, 0, 3)))]
    gqa = draw(st.booleans())
    kv_heads = draw(st.sampled_from((0, 1, 2, 3) if not gqa else (1, 2, 3)))
    heads = kv_heads * draw(st.sampled_from((0, 1, 2, 4))) if gqa else kv_heads
    lead = draw(st.lists(st.sampled_from((0, 1, 2, 3)), max_size=2))
    shapes = []
    for x, length in enumerate((s, t, t)):
        own = [1 if draw(st.integers(0, 3)) == 0 else n for n in lead]  # a batch that broadcasts
        own = own[draw(st.integers(0, len(own))) :] if draw(st.integers(0, 5)) == 0 else own
        h = heads if x == 0 or not gqa else kv_heads
        own += [h if gqa or draw(st.integers(0, 5)) else 1]
        shapes.append((*own, length, dims[x]))
    if not gqa and draw(st.integers(0, 5)) == 0:
        shapes = [shape[-2:] for shape in shapes]
    if draw(st.integers(0, 9)) == 0:  # something that does not fit
        wrong = list(shapes[2])
        wrong[draw(st.integers(0, len(wrong) - 2))] += 1
        shapes[2] = tuple(wrong)
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if draw(st.booleans()):
        tensors = [x.mT.contiguous().mT for x in tensors]
    options: dict[str, Any] = {"scale": draw(st.sampled_from((None, None, 0.3, 0.0, -0.7, 2.0))), "enable_gqa": gqa}
    kind = draw(st.sampled_from(KINDS))
    if kind in ("causal", "both"):
        options["is_causal"] = True
    return tensors, _mask(draw, kind, shapes, (heads, s, t), dtype, generator), options


def _mask(draw: Any, kind: str, shapes: Any, own: tuple[int, ...], dtype: torch.dtype, generator: Any) -> Any:
    heads, s, t = own
    if kind in ("none", "causal"):
        return None
    if kind in ("upper left", "lower right"):
        return (causal_upper_left if kind == "upper left" else causal_lower_right)(s, t)
    shape = [n if draw(st.booleans()) else 1 for n in (heads, s)] + [t]
    shape = shape[draw(st.integers(0, 1)) if len(shapes[0]) > 2 else 1 :]
    seen = torch.rand(shape, generator=generator) < draw(st.sampled_from((0.0, 0.6, 1.0)))
    if kind in ("bool", "both"):
        return seen
    of_mask = draw(st.sampled_from((dtype, torch.float32))) if dtype != torch.float64 else dtype
    hidden = {"-inf": -torch.inf, "least": torch.finfo(of_mask).min}.get(kind, -1.5)
    return torch.randn(shape, generator=generator).to(of_mask).masked_fill(~seen, hidden)


def _expected(tensors: list[Tensor], mask: Any, options: dict[str, Any]) -> Tensor | None:
    """torch's own in float64, None where it refuses the call."""
    is_plain = isinstance(mask, Tensor) and type(mask) is Tensor
    exact = mask.double() if is_plain and mask.is_floating_point() else mask
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused one hides nothing where the scale is not positive
            torch.nn.functional.scaled_dot_product_attention(*tensors, mask, **options)
            return torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in tensors), exact, **options)
    except (RuntimeError, ValueError, IndexError):
        return None


def _fits(q: torch.Size, k: torch.Size, v: torch.Size, enable_gqa: bool) -> bool:
    """Whether the shapes fit; without elements torch also takes some that do not."""
    try:
        np.broadcast_shapes(*(x[:-3] if enable_gqa else x[:-2] for x in (q, k, v)))
    except ValueError:
        return False
    is_grouped = len(q) < 3 or not enable_gqa or q[-3] == 0 or all(n and q[-3] % n == 0 for n in (k[-3], v[-3]))
    return q[-1] == k[-1] and k[-2] == v[-2] and is_grouped


@given(calls())
@examples(150)
def test_sdpa_computes_what_torch_computes(call: tuple[list[Tensor], Any, dict[str, Any]]) -> None:
    tensors, mask, options = call
    if mask is not None and options.get("is_causal"):  # refused; torch does so unless there is nothing to compute
        with pytest.raises(InputError, match="attn_mask and is_causal are both given"):
            scaled_dot_product_attention(*tensors, mask, **options)
        return
    expected = _expected(tensors, mask, options)
    try:
        got = scaled_dot_product_attention(*tensors, mask, **options)
    except InputError:
        assert expected is None or not _fits(*(x.shape for x in tensors), options["enable_gqa"])
        return
    if expected is None:  # torch takes fewer masks: not of float64 beside float32, not of one axis
        return
    assert (got.shape, got.dtype) == (expected.shape, tensors[0].dtype)
    near = 3e-2 if tensors[0].dtype.itemsize == 2 else 1e-4
    coarse = isinstance(mask, Tensor) and mask.dtype == torch.float16  # the sum of a score and -65504 has few digits
    assert torch.allclose(got.double(), expected, atol=5e-2 if coarse else near, rtol=near)


@st.composite
def intervals(draw: Any) -> tuple[int, int, Any]:
    """(B, T, int [B or 1, 1, S, 2]), half of which are intervals of keys."""
    batch, s, t = draw(st.integers(1, 3)), draw(st.integers(0, 6)), draw(st.integers(0, 9))
    ends = st.integers(0, t) if draw(st.booleans()) else st.integers(-1, t + 1)
    pairs = st.tuples(ends, ends)
    rows = draw(st.integers(1, 2)) if draw(st.booleans()) else batch
    own = draw(st.lists(pairs.map(sorted) if draw(st.booleans()) else pairs, min_size=rows * s, max_size=rows * s))
    return batch, t, np.array(own, np.int32).reshape(rows, 1, s, 2)


@given(intervals())
@examples(150)
def test_intervals_are_the_dense_mask_or_refused(drawn: tuple[int, int, Any]) -> None:
    batch, t, ranges = drawn
    generator = torch.Generator().manual_seed(t)
    q, k = (torch.randn(batch, 2, n, 8, generator=generator) for n in (ranges.shape[2], t))
    begin, end = ranges[..., :1], ranges[..., 1:]
    is_valid = len(ranges) in (1, batch) and bool(((begin >= 0) & (end <= t) & (begin <= end)).all())

    def attend() -> Tensor:
        return torch.ops.gemma_cuda.attention(
            q, k, k, None, None, torch.from_numpy(ranges), *(None,) * 7, "BHSD", None
        )[0]

    if not is_valid:
        with pytest.raises(InputError, match=re.escape("attention: key_range")):
            attend()
        return
    seen = torch.from_numpy((np.arange(t) >= begin) & (np.arange(t) < end))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, k, seen)
    assert torch.allclose(attend(), expected, atol=1e-5)
