"""The torch signatures against what they replace, over every pair of factors; the custom ops under torch's tools."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gemma_cuda
from gemma_cuda.errors import InputError
from gemma_cuda.interop import torch as ours
from gemma_cuda.interop.options import AttentionOptions
from gemma_cuda.interop.qk_norm_rope import QkNormRopeArguments
from tests.support.compare import assert_within_rule
from tests.support.interop_cases import dense, visible
from tests.support.pairwise import all_pairs, pairs_of, pairwise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
torch_attention = torch.nn.functional.scaled_dot_product_attention

SDPA: dict[str, tuple[Any, ...]] = {
    "lead": ((), (3,), (2, 4), (2, 1, 4), (2, 3, 2, 4)),  # axes before [S, D]
    "queries": (0, 1, 5, 33),
    "keys": (1, 5, 33, 70),
    "head_dim": (8, 64, 80),
    "kv_heads": ("as queries", "fewer", "one"),
    "mask": ("none", "causal", "bool", "bool of keys", "bool, rows hidden", "float", "float of heads"),
    "scale": (None, 0.3),
    "dtype": ("float32", "bfloat16", "float16"),
    "memory": ("contiguous", "tokens first", "sliced"),
}


def sdpa_runnable(values: dict[str, Any]) -> dict[str, Any]:
    return values | ({} if len(values["lead"]) >= 2 and values["lead"][-1] == 4 else {"kv_heads": "as queries"})


SDPA_CASES = pairwise(SDPA, sdpa_runnable)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, memory: str, generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    if memory == "tokens first" and x.dim() >= 3:
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if memory == "sliced":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    return x


def sdpa_mask(values: dict[str, Any], generator: torch.Generator) -> Tensor | None:
    kind, shape = values["mask"], (*values["lead"], values["queries"], values["keys"])
    if kind in ("none", "causal"):
        return None
    if kind == "bool of keys":
        shape = (*[1] * len(values["lead"]), 1, values["keys"])
    if kind == "float of heads":
        shape = shape[-3:]
    if kind.startswith("float"):
        return torch.randn(shape, generator=generator).to(DTYPES[values["dtype"]])
    mask = torch.rand(shape, generator=generator) < 0.7
    if kind == "bool, rows hidden":
        mask[..., ::3, :] = False
    return mask


def test_every_pair_of_factors_meets_in_some_case() -> None:
    missing = all_pairs(SDPA) - set().union(*map(pairs_of, SDPA_CASES))
    assert all({a, b} == {"lead", "kv_heads"} for a, _, b, _ in missing)
    assert not all_pairs(FLASH) - set().union(*map(pairs_of, FLASH_CASES))


@pytest.mark.parametrize("number", range(len(SDPA_CASES)))
def test_sdpa_equals_torch(number: int) -> None:
    values, generator = SDPA_CASES[number], torch.Generator().manual_seed(number)
    lead, d = values["lead"], values["head_dim"]
    kv_lead = lead if values["kv_heads"] == "as queries" else (*lead[:-1], 2 if values["kv_heads"] == "fewer" else 1)
    dtype = DTYPES[values["dtype"]]
    q = tensor((*lead, values["queries"], d), dtype, values["memory"], generator)
    k, v = (tensor((*kv_lead, values["keys"], d), dtype, values["memory"], generator) for _ in range(2))
    mask = sdpa_mask(values, generator)
    options = {"is_causal": values["mask"] == "causal", "scale": values["scale"]}
    options["enable_gqa"] = values["kv_heads"] != "as queries"
    o = ours.scaled_dot_product_attention(q, k, v, mask, **options)
    exact = mask if mask is None or mask.dtype == torch.bool else mask.double()
    r = torch_attention(q.double(), k.double(), v.double(), exact, **options)
    b = torch_attention(q, k, v, mask, **options)
    assert o.shape == r.shape == b.shape and o.dtype == q.dtype
    if o.numel():
        assert_within_rule(o, r, b, dtype=values["dtype"], what=str(values))


FLASH: dict[str, tuple[Any, ...]] = {
    "queries": (1, 5, 33, 70),
    "keys": (1, 5, 33, 70),
    "batch": (1, 3),
    "heads": ((1, 1), (4, 1), (2, 3)),  # of a group, KV heads
    "head_dim": (64, 128),
    "causal": (False, True),
    "window": ((-1, -1), (0, 0), (4, -1), (-1, 3), (6, 2)),
    "softcap": (0.0, 2.0),
    "scale": (None, 0.2),
    "dtype": ("float32", "bfloat16", "float16"),
    "packed": (False, True),
    "result": ("o", "probs", "lse"),
}
FLASH_CASES = pairwise(FLASH)


def flash_oracle(q: Tensor, k: Tensor, v: Tensor, values: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """(o [S, H, D], lse [S, H]) of one sequence, computed in `dtype`."""
    s, t = len(q), len(k)
    p = np.arange(s)[:, None] + t - s
    left, right = values["window"]
    right = 0 if values["causal"] else right
    near = np.arange(t)[None] - p
    seen = (near >= -left if left >= 0 else True) & (near <= right if right >= 0 else np.ones((s, t), bool))
    scale = values["scale"] or q.shape[-1] ** -0.5
    return dense(*(x.to(dtype).numpy() for x in (q, k, v)), seen, None, scale, values["softcap"] or None)


@pytest.mark.parametrize("number", range(len(FLASH_CASES)))
def test_flash_attention_equals_a_dense_computation(number: int) -> None:
    values, generator = FLASH_CASES[number], torch.Generator().manual_seed(number)
    (group, kv_heads), d, dtype = values["heads"], values["head_dim"], DTYPES[values["dtype"]]
    lengths = [(values["queries"], values["keys"])] * values["batch"]
    if values["packed"]:
        lengths += [(0, 4), (3, 0), (9, 11)]
    make = lambda n, h: torch.randn(n, h, d, generator=generator).to(dtype)  # noqa: E731
    parts = [(make(s, group * kv_heads), make(t, kv_heads), make(t, kv_heads)) for s, t in lengths]
    join: Any = torch.cat if values["packed"] else torch.stack
    q, k, v = (join([part[i] for part in parts]) for i in range(3))
    options: dict[str, Any] = {
        "softmax_scale": values["scale"], "causal": values["causal"], "window_size": values["window"],
        "softcap": values["softcap"], "return_attn_probs": values["result"] == "probs",
        "return_softmax_lse": values["result"] == "lse",
    }  # fmt: skip
    if number % 2:  # as flash-attn's own tests pass it
        options["window_size"] = torch.tensor(values["window"])
    if values["packed"]:
        cuts = [torch.tensor(np.cumsum([0, *(pair[i] for pair in lengths)]), dtype=torch.int32) for i in range(2)]
        most = [max(pair[i] for pair in lengths) for i in range(2)]
        got = ours.flash_attn_varlen_func(q, k, v, *cuts, *most, **options)
    else:
        got = ours.flash_attn_func(q, k, v, **options)
    o, lse = got[:2] if values["result"] != "o" else (got, None)
    assert isinstance(got, Tensor if values["result"] == "o" else tuple)
    results = [
        [flash_oracle(*part, values, precision) for part in parts] for precision in (torch.float64, torch.float32)
    ]
    (r, expected), (b, _) = (
        [join([torch.from_numpy(y) for y in x]) for x in zip(*exact, strict=True)] for exact in results
    )
    b, expected = b.to(dtype), expected.numpy()
    assert o.dtype == dtype
    assert_within_rule(o, r, b, dtype=values["dtype"], softcap=values["softcap"] > 0, what=str(values))
    if lse is not None:
        expected = np.swapaxes(expected, -1, -2)
        assert lse.shape == expected.shape and lse.dtype == torch.float32
        seen = np.isfinite(expected)
        assert np.array_equal(np.isfinite(lse.numpy()), seen)
        assert np.allclose(lse.numpy()[seen], expected[seen], rtol=1e-3, atol=1e-3)


X = torch.zeros(1, 4, 6, 64)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout": (
        lambda: ours.scaled_dot_product_attention(X, X, X, dropout_p=0.1),
        "scaled_dot_product_attention: dropout_p is not supported: it is for training; pass 0.0",
    ),
    "mask and causal": (
        lambda: ours.scaled_dot_product_attention(X, X, X, torch.ones(6, 6).bool(), is_causal=True),
        "scaled_dot_product_attention: attn_mask and is_causal are both given",
    ),
    "rank": (
        lambda: ours.scaled_dot_product_attention(X[0, 0, 0], X, X),
        "scaled_dot_product_attention: query is [64], expected [..., H, S, D] or [S, D]",
    ),
    "heads": (
        lambda: ours.scaled_dot_product_attention(X, X[:, :2], X[:, :2]),
        "[1, 2, 6, 64] do not match; enable_gqa=True lets key and value have fewer heads",
    ),
    "mask": (
        lambda: ours.scaled_dot_product_attention(X, X, X, torch.ones(5, 6).bool()),
        "attn_bias is [1, 1, 5, 6], which does not broadcast to [B, H, S, T] = [1, 4, 6, 6]",
    ),
    "mask of batches": (
        lambda: ours.scaled_dot_product_attention(X[None], X[None], X[None], torch.ones(3, 1, 1, 6, 6).bool()),
        "attn_mask is [3, 1, 1, 6, 6], which does not broadcast to [1, 1, 4, 6, 6]",
    ),
    "value": (
        lambda: ours.scaled_dot_product_attention(X, X, X[..., :5, :]),
        "attention: v is [1, 4, 5, 64], expected [B, KH, T, D] = [1, 4, 6, 64] (layout BHSD",
    ),
    "gradients": (
        lambda: ours.flash_attn_func(X.clone().requires_grad_(), X, X),
        "attention: an input requires gradients and there is no backward pass; call it inside torch.no_grad()",
    ),
    "alibi": (
        lambda: ours.flash_attn_func(X, X, X, alibi_slopes=torch.ones(6)),
        "flash_attn_func: alibi_slopes is not supported: pass the slopes' bias as attn_bias",
    ),
    "pages": (
        lambda: ours.flash_attn_varlen_func(X[0], X[0], X[0], None, None, 1, 1, block_table=torch.ones(1)),
        "flash_attn_varlen_func: block_table is not supported: gather the pages",
    ),
    "softcap": (
        lambda: ours.flash_attn_func(X, X, X, softcap=-1.0),
        "flash_attn: softcap is -1.0, expected a finite number of at least 0",
    ),
    "no such function": (lambda: ours.flash_attn_qkvpacked_func, "has no attribute 'flash_attn_qkvpacked_func'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises((InputError, AttributeError), match=re.escape(message)):
        call()


def half(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


OPS: dict[str, tuple[Any, ...]] = {
    "attention": (
        half(2, 4, 5, 64), half(2, 2, 7, 64), half(2, 2, 7, 64), torch.zeros(5, 7),
        torch.tensor([0, 0, -1, 1, 1, 1, -1]), None, None, None, [1], 0.1, 3, 0, 5.0, "BHSD", None,
    ),
    "attention packed": (
        half(5, 4, 64), half(7, 2, 64), half(7, 2, 64), None, None, None, torch.tensor([0, 2, 5]),
        torch.tensor([0, 3, 7]), None, None, None, None, None, "SHD", "emulator",
    ),
    "attention ranges": (
        half(1, 2, 4, 64), half(1, 4, 4, 64)[:, :, :1], half(1, 4, 4, 64)[:, :, :1], None, None,
        torch.tensor([[[[0, 1], [0, 4]]]], dtype=torch.int32), None, None, None, None, None, None, None, "BSHD", None,
    ),
    "rms_norm": (half(3, 96), half(96), 1e-6, True, None),
    "geglu": (half(3, 96), half(3, 96), "emulator"),
    "qk_norm_rope": (
        half(3, 256), torch.ones(3, 32), torch.zeros(3, 32), half(64), half(64), half(6, 1, 64), half(6, 1, 64),
        torch.tensor([4, 0, 1], dtype=torch.int32), None, 2, 1e-6, True, False, None, False, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("attention", ["q", "k", "v", *AttentionOptions.__dataclass_fields__]),
        ("qk_norm_rope", [*QkNormRopeArguments.__dataclass_fields__]),
    ],
)
def test_fields_are_in_the_order_of_the_schema(name: str, arguments: list[str]) -> None:
    schema = getattr(torch.ops.gemma_cuda, name).default._schema
    assert [argument.name for argument in schema.arguments] == arguments


@pytest.mark.parametrize("name", OPS)
def test_custom_ops_pass_torchs_own_check(name: str) -> None:
    op = getattr(torch.ops.gemma_cuda, name.split()[0]).default
    torch.library.opcheck(op, OPS[name])


def test_a_layer_compiles_as_one_graph() -> None:
    def layer(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        h = gemma_cuda.rms_norm(x, weight, plus_one=True, out=torch.empty_like(x))
        qkv = torch.cat([h, h[:, :128]], -1)
        q = gemma_cuda.qk_norm_rope(qkv, heads=2, cos=cos, sin=sin, k_cache=k_cache, v_cache=v_cache)
        n = len(x)
        keys, values = k_cache[None, :n], v_cache[None, :n]
        o = gemma_cuda.attention(q[None], keys, values, causal=True, sliding_window=3, softcap=5.0)
        p = ours.scaled_dot_product_attention(q[None], q[None], q[None], is_causal=True)
        return gemma_cuda.geglu(o.reshape(n, -1), p.reshape(n, -1))

    def arguments(n: int) -> list[Tensor]:
        return [half(n, 128, seed=n), half(128), torch.ones(n, 32), torch.zeros(n, 32), half(9, 1, 64), half(9, 1, 64)]

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 7):
        expected, got = layer(*(eager := arguments(n))), compiled(*(traced := arguments(n)))
        assert torch.equal(got, expected)
        assert torch.equal(eager[4], traced[4]) and not torch.equal(traced[4], half(9, 1, 64))


def test_no_grad_and_inference_mode_take_parameters() -> None:
    q = torch.nn.Parameter(half(1, 3, 1, 64))
    expected = gemma_cuda.attention(*[q.detach()] * 3)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert all(torch.equal(f(q * 1, q, q), expected) for f in (gemma_cuda.attention, ours.attention))


def test_offset_window_and_lse_of_the_op() -> None:
    q, k = half(1, 3, 2, 64).float(), half(1, 9, 1, 64).float()
    o, lse = ours.attention(q, k, k, causal=True, sliding_window=4, q_offset=2, return_lse=True)
    seen = visible(3, 9, 2, True, 4, None)
    r, expected = dense(*(x[0].double().numpy() for x in (q, k, k)), seen, None, 64**-0.5, None)
    assert np.allclose(o[0].numpy(), r, atol=1e-5) and np.allclose(lse[0].T.numpy(), expected, atol=1e-5)
