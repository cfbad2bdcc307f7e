"""torch's transformations at our ops: autocast, forward and reverse gradients, vmap, traces, tensors without values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import gemma_cuda
from gemma_cuda.errors import InputError
from gemma_cuda.interop import torch as ours

torch_attention = torch.nn.functional.scaled_dot_product_attention


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, W = normal(3, 64, seed=1), normal(64, seed=2)
Q, K, V = normal(2, 5, 4, 64, seed=3), normal(2, 7, 2, 64, seed=4), normal(2, 7, 2, 64, seed=5)
COS, SIN = torch.cos(normal(3, 16, seed=6)), torch.sin(normal(3, 16, seed=6))
OPTIONS = (
    None,
    None,
    None,
    None,
    None,
    None,
    None,
    None,
    None,
    None,
    "BSHD",
    None,
)  # of torch.ops.gemma_cuda.attention
raw = torch.ops.gemma_cuda

OPS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "attention": (gemma_cuda.attention, (Q, K, V)),
    "attention of torch": (ours.attention, (Q, K, V)),
    "attention raw": (lambda q, k, v: raw.attention(q, k, v, *OPTIONS)[0], (Q, K, V)),
    "attention of a bias": (lambda bias: gemma_cuda.attention(Q, K, V, attn_bias=bias), (normal(5, 7),)),
    "sdpa": (ours.scaled_dot_product_attention, (Q, Q, Q)),
    "flash": (ours.flash_attn_func, (Q, K, V)),
    "flash varlen": (
        lambda q, k, v: ours.flash_attn_varlen_func(q, k, v, torch.tensor([0, 5]), torch.tensor([0, 7]), 5, 7),
        (Q[0], K[0], V[0]),
    ),
    "rms_norm": (gemma_cuda.rms_norm, (X, W)),
    "rms_norm of torch": (ours.rms_norm, (X, W)),
    "rms_norm raw": (lambda x, w: raw.rms_norm(x, w, 1e-6, False, None), (X, W)),
    "geglu": (gemma_cuda.geglu, (X, X)),
    "geglu of torch": (ours.geglu, (X, X)),
    "geglu raw": (lambda x, y: raw.geglu(x, y, None), (X, X)),
    "qk_norm_rope": (lambda x: gemma_cuda.qk_norm_rope(x, heads=2, cos=COS, sin=SIN), (X,)),
    "qk_norm_rope of torch": (lambda x: ours.qk_norm_rope(x, heads=2, cos=COS, sin=SIN), (X,)),
}


def differentiated(f: Callable[..., Any], arguments: tuple[Tensor, ...], way: str, which: int) -> Any:
    def one(x: Tensor) -> Any:
        return f(*arguments[:which], x, *arguments[which + 1 :])

    x = arguments[which]
    if way == "dual":
        with forward_ad.dual_level():
            return one(forward_ad.make_dual(x, torch.ones_like(x)))
    if way == "jvp":
        return torch.func.jvp(one, (x,), (torch.ones_like(x),))
    if way == "jacfwd":
        return torch.func.jacfwd(one)(x)
    if way == "grad":
        return torch.func.grad(lambda x: one(x).sum())(x)
    with torch.enable_grad():
        return one(x.clone().requires_grad_())


@pytest.mark.parametrize("way", ["dual", "jvp", "jacfwd", "grad", "requires_grad"])
@pytest.mark.parametrize("name", OPS)
def test_derivatives_are_refused(name: str, way: str) -> None:
    f, arguments = OPS[name]
    message = "forward-mode|forward mode" if way in ("dual", "jvp", "jacfwd") else "requires gradients"
    for which in range(len(arguments)):
        with pytest.raises(InputError, match=message):
            differentiated(f, arguments, way, which)


def test_tensors_without_a_tangent_pass_at_a_dual_level() -> None:
    with forward_ad.dual_level():
        assert torch.equal(gemma_cuda.rms_norm(X, W), gemma_cuda.rms_norm(X, W))
    assert torch.equal(torch.func.jvp(lambda x: x * gemma_cuda.geglu(X, X), (X,), (X,))[1], X * gemma_cuda.geglu(X, X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_autocast_computes_in_its_dtype(name: str, dtype: torch.dtype) -> None:
    f, arguments = OPS[name]
    with torch.autocast("cpu", dtype=dtype):
        got = f(*arguments)
        mixed = f(arguments[0].to(torch.bfloat16), *arguments[1:])
    assert got.dtype == mixed.dtype == dtype
    if name == "attention of a bias":
        expected = gemma_cuda.attention(Q.to(dtype), K.to(dtype), V.to(dtype), attn_bias=arguments[0].to(dtype))
    else:
        expected = f(*(x.to(dtype) for x in arguments))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("mask", [None, normal(5, 7), normal(5, 7) > 0])
def test_autocast_as_torch(mask: Tensor | None) -> None:
    q, k, v = Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)
    for arguments in ((q, k, v), (q.bfloat16(), k, v.half())):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, expected = (
                f(*arguments, mask, enable_gqa=True) for f in (ours.scaled_dot_product_attention, torch_attention)
            )
        assert got.dtype == expected.dtype and torch.allclose(got, expected, atol=3e-2, rtol=3e-2)
    doubles = [x.double() for x in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = (f(*doubles, enable_gqa=True) for f in (ours.scaled_dot_product_attention, torch_attention))
    assert got.dtype == expected.dtype == torch.float64 and torch.allclose(got, expected)


def test_autocast_of_caches_and_out() -> None:
    """What is written in place keeps its dtype: a cache says which one its rows have."""
    qkv = torch.cat([X, X], -1)
    for dtype in (torch.float32, torch.bfloat16):
        caches = [torch.zeros(3, 1, 32, dtype=dtype) for _ in range(2)]
        plain = [x.clone() for x in caches]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            q = gemma_cuda.qk_norm_rope(
                qkv.bfloat16(), heads=2, cos=COS, sin=SIN, k_weight=W[:32], k_cache=caches[0], v_cache=caches[1]
            )
        expected = gemma_cuda.qk_norm_rope(
            qkv.bfloat16().to(dtype), heads=2, cos=COS, sin=SIN, k_weight=W[:32].to(dtype), k_cache=plain[0],
            v_cache=plain[1],
        )  # fmt: skip
        assert torch.equal(q, expected) and all(
            torch.equal(a, b) and a.any() for a, b in zip(caches, plain, strict=True)
        )
    out = torch.empty_like(X).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gemma_cuda.rms_norm(X, W, out=out) is out
        with pytest.raises(InputError, match=r"rms_norm: out is float32 \[3, 64\], expected bfloat16"):
            gemma_cuda.rms_norm(X, W, out=torch.empty_like(X))


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def stacked(*xs: Tensor, count: int = 3, dim: int = 0) -> list[Tensor]:
    return [torch.stack([x.roll(i, 0) * (i + 1) for i in range(count)], dim) for x in xs]


KEY_RANGE = torch.tensor([[[[0, 1], [0, 4], [2, 4], [2, 7], [6, 7]]]], dtype=torch.int32)
packed = (Q[0], K[0], V[0])
BATCHED: dict[str, tuple[Callable[..., Any], list[Tensor], Any]] = {
    "all": (lambda q, k, v: gemma_cuda.attention(q, k, v, return_lse=True), stacked(Q, K, V), 0),
    "q": (lambda q, k, v: gemma_cuda.attention(q, k, v, causal=True), [*stacked(Q), K, V], (0, None, None)),
    "v, last axis": (gemma_cuda.attention, [Q, K, *stacked(V, dim=4)], (None, None, 4)),
    "heads first": (
        lambda q, k, v: gemma_cuda.attention(q, k, v, layout="BHSD", causal=True, q_offset=[1, 2], softcap=3.0),
        stacked(*(x.transpose(1, 2) for x in (Q, K, V))), 0,
    ),
    "bias [S, T]": (lambda q, b: gemma_cuda.attention(q, K, V, attn_bias=b), stacked(Q, normal(5, 7)), 0),
    "bias [B, 1, 1, T] alone": (lambda b: gemma_cuda.attention(Q, K, V, attn_bias=b), stacked(normal(2, 1, 1, 7)), 0),
    "bias for all": (
        lambda q, b: gemma_cuda.attention(q, K, V, attn_bias=b), [*stacked(Q), normal(2, 4, 1, 7)], (0, None),
    ),
    "block ids": (
        lambda q, ids: gemma_cuda.attention(q, K, V, causal=True, block_ids=ids),
        [*stacked(Q), torch.tensor([[0, 0, 0, 1, 1, -1, 2], [-1, 0, 0, 0, 1, 2, 2], [0] * 7])], 0,
    ),
    "block ids for all": (
        lambda q, ids: gemma_cuda.attention(q, K, V, causal=True, block_ids=ids),
        [*stacked(Q), torch.tensor([[0, 0, 0, 1, 1, -1, 2], [0] * 7])], (0, None),
    ),
    "ranges": (
        lambda q, r: raw.attention(q, K, V, None, None, r, *OPTIONS[3:])[0],
        [*stacked(Q), torch.cat([KEY_RANGE, KEY_RANGE.clamp(max=5), KEY_RANGE.clamp(min=1)])[:, None]], 0,
    ),
    "ranges for all": (
        lambda q, r: raw.attention(q, K, V, None, None, r, *OPTIONS[3:])[0], [*stacked(Q), KEY_RANGE], (0, None),
    ),
    "packed": (
        lambda q, k, v, cu: gemma_cuda.attention(
            q, k, v, layout="SHD", cu_seqlens_q=cu, cu_seqlens_k=torch.tensor([0, 2, 7]), return_lse=True
        ),
        [*stacked(*packed), torch.tensor([[0, 1, 5], [0, 4, 5], [0, 0, 5]])], 0,
    ),
    "sdpa": (ours.scaled_dot_product_attention, [*stacked(Q, Q), Q[0]], (0, 0, None)),
    "flash": (ours.flash_attn_func, stacked(Q, K, V), 0),
    "emulator": (
        lambda q: gemma_cuda.attention(q, K.bfloat16(), V.bfloat16(), device="emulator"), stacked(Q.bfloat16()), 0,
    ),
    "rms_norm": (gemma_cuda.rms_norm, [*stacked(X), W], (0, None)),
    "rms_norm of weights": (gemma_cuda.rms_norm, [X, *stacked(W, dim=1)], (None, 1)),
    "rms_norm, both": (
        lambda x, w: gemma_cuda.rms_norm(x, w, plus_one=True), [*stacked(X, dim=2), *stacked(W)], (2, 0),
    ),
    "geglu": (gemma_cuda.geglu, [X, *stacked(X, dim=1)], (None, 1)),
    "qk_norm_rope": (
        lambda x, cos: gemma_cuda.qk_norm_rope(x, heads=2, cos=cos, sin=SIN, q_weight=W[:32]), stacked(X, COS), 0,
    ),
}  # fmt: skip


def loop(f: Callable[..., Any], arguments: list[Tensor], dims: Any) -> Any:
    dims = dims if isinstance(dims, tuple) else (dims,) * len(arguments)
    own = [x.unbind(d) if d is not None else [x] * 3 for x, d in zip(arguments, dims, strict=True)]
    results = [f(*xs) for xs in zip(*own, strict=True)]
    return (
        torch.stack(results) if isinstance(results[0], Tensor) else tuple(map(torch.stack, zip(*results, strict=True)))
    )


@pytest.mark.parametrize("name", BATCHED)
def test_vmap_equals_a_loop(name: str, no_warnings: None) -> None:
    f, arguments, dims = BATCHED[name]
    got, expected = torch.vmap(f, in_dims=dims)(*arguments), loop(f, arguments, dims)
    pairs = [(got, expected)] if isinstance(got, Tensor) else list(zip(got, expected, strict=True))
    for a, b in pairs:
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_vmap_in_vmap(no_warnings: None) -> None:
    both = torch.vmap(torch.vmap(gemma_cuda.geglu, in_dims=(0, None)), in_dims=(None, 0))
    got = both(torch.stack([X, -X]), torch.stack([X, X * 2, X * 3]))
    assert torch.allclose(got[2, 1], gemma_cuda.geglu(-X, X * 3)) and got.shape == (3, 2, *X.shape)


def test_vmap_writes_the_caches_of_each(no_warnings: None) -> None:
    qkv = torch.stack([torch.cat([X, X * (i + 1)], -1) for i in range(3)])

    def step(x: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return gemma_cuda.qk_norm_rope(x, heads=2, cos=COS, sin=SIN, k_cache=k_cache, v_cache=v_cache, k_weight=W[:32])

    caches, expected = ([torch.zeros(3, 4, 1, 32) for _ in range(2)] for _ in range(2))
    got = torch.vmap(step)(qkv, *caches)
    rows = torch.stack([step(qkv[i], expected[0][i], expected[1][i]) for i in range(3)])
    assert torch.equal(got, rows) and all(torch.equal(a, b) and a.any() for a, b in zip(caches, expected, strict=True))
    shared = torch.zeros(4, 1, 32)
    with pytest.raises(InputError, match="qk_norm_rope: k_cache is one for all that vmap maps over"):
        torch.vmap(step, in_dims=(0, None, None))(qkv, shared, shared.clone())
    assert not shared.any()


CLOSED = ("attention of a bias", "flash varlen", "qk_norm_rope", "qk_norm_rope of torch")  # over tensors with values


@pytest.mark.parametrize("name", [name for name in OPS if name not in CLOSED])
def test_tensors_without_values_have_shape_and_dtype(name: str) -> None:
    f, arguments = OPS[name]
    real = f(*arguments)
    meta = f(*(x.to("meta") for x in arguments))
    with FakeTensorMode() as mode:
        fake = f(*(mode.from_tensor(x) for x in arguments))
    for x, place in ((meta, "meta"), (fake, "cpu")):
        assert (x.shape, x.dtype, x.stride(), x.device.type) == (real.shape, real.dtype, real.stride(), place)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("tracer", ["jit", "fx"])
def test_a_trace_computes_with_what_it_is_given(tracer: str, name: str) -> None:
    f, arguments = OPS[name]
    others = tuple(-2 * x.flip(0) for x in arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(f, arguments) if tracer == "jit" else make_fx(lambda *xs: f(*xs))(*arguments)
    assert torch.equal(traced(*others), f(*others)) and not torch.equal(traced(*others), f(*arguments))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("name", [name for name in OPS if name not in ("attention of a bias", "rms_norm raw")])
def test_nested_tensors_are_refused(name: str, layout: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([normal(2, 4, 64), normal(3, 4, 64)], layout=layout)
    f, arguments = OPS[name]
    with pytest.raises(InputError, match=r"is a nested tensor; join its parts, .* cu_seqlens \(layout SHD\)"):
        f(nested, *arguments[1:])


def test_other_memory() -> None:
    assert torch.equal(gemma_cuda.geglu(torch._neg_view(X), X), gemma_cuda.geglu(-X, X))
    for op in (gemma_cuda.geglu, ours.geglu, OPS["geglu raw"][0]):
        with pytest.raises(InputError, match=r"geglu: gate is torch\.sparse_coo, expected a dense tensor"):
            op(X.to_sparse(), X)
