"""The public functions `gemma_cuda.attention`, `rms_norm`, `geglu` and `qk_norm_rope` for arrays of any library.

Each dispatches: tensors that torch traces, autocasts or differentiates to the custom ops of `interop.torch`, arrays of
JAX to `interop.jax`, all others to the modules that read the memory of the arrays directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..device.foreign import is_jax, is_traced, needs_custom_op
from ..device.protocol import Device
from . import attention as direct_attention
from . import layers
from . import qk_norm_rope as direct_qk_norm_rope
from .attention_mask import check_max_seqlens
from .options import AttentionOptions, flag
from .qk_norm_rope import QkNormRopeArguments


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    causal: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attn_bias: Any = None,
    block_ids: Any = None,
    q_offset: int | Sequence[int] | None = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
    layout: str = "BSHD",
    out: Any = None,
    device: str | Device | None = None,
) -> Any:
    """o as q = softmax(cap(scale · q kᵀ) + attn_bias) v; query head h reads KV head h // (H // KH).

    q, k, v: arrays of NumPy, torch, CuPy, JAX or any library with DLPack or `__cuda_array_interface__`, all of one
    library, device and dtype (float32, float64, bfloat16, float16); the result is of the same library (NumPy's or
    CuPy's for others), written on its current stream. They are read in place; arrays that a kernel cannot read (a last
    axis that is not contiguous, rows off 16 bytes, q of layout BHSD with B > 1) are copied first.

    layout: "BSHD" is q [B, S, H, D], k and v [B, T, KH, D]; "BHSD" has the heads before the tokens; "SHD" is packed
    sequences, q [S, H, D], k and v [T, KH, D]: sequence b has queries cu_seqlens_q[b] : cu_seqlens_q[b + 1], and keys
    by cu_seqlens_k (None: as cu_seqlens_q; both None: one sequence). max_seqlen_q, max_seqlen_k: only checked.
    D of v and o may differ from D of q and k. scale: any finite number, None is D ** -0.5.
    softcap: logits become softcap · tanh(logit / softcap).
    q_offset: query i of a sequence has key position p = q_offset + i; one int, or one per sequence; None is T - S.
    causal: it sees keys up to p. sliding_window w: it sees w keys, itself included; without causal all |t - p| < w.
    block_ids: integers [T] or [B, T] ([T] of all keys in SHD). A query whose key has an id >= 0 also sees the later
    keys of that id, beyond causal and window; the window still cuts the past. An id is one run of tokens.
    attn_bias: added after the cap, of any float dtype, broadcast to [B, H, S, T] ([H, S, T] of all queries and keys in
    SHD, where elements between two sequences are not used); -inf hides.
    A query that sees no key gives 0, and lse -inf. Keys that a sequence sees must be finite (in SHD with a bias: all).
    return_lse: returns (o, lse), lse float32 [B, H, S] ([H, S] in SHD), the log of the sum of exp of the logits.
    out: gets the result and is returned; it may overlap q, k and v. Not for JAX.
    device: None is the NumPy reference for arrays on the CPU, and the kernels for those on a GPU; "emulator" runs the
    kernels on the CPU; or a Device. Kernels take one D of 64, 128 or 256, bfloat16 or float16, and a scale above 0.
    Raises InputError before anything is launched or written.
    """
    options = AttentionOptions.from_window(
        scale=scale, causal=causal, sliding_window=sliding_window, softcap=softcap, attn_bias=attn_bias,
        block_ids=block_ids, q_offset=q_offset, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, layout=layout,
        device=device,
    )  # fmt: skip
    return_lse = flag("attention", "return_lse", return_lse)
    if not is_traced(q, k, v, attn_bias):
        check_max_seqlens(options, max_seqlen_q, max_seqlen_k)
    home = _adapter(q, k, v, attn_bias) or direct_attention
    o, lse = home.attend(q, k, v, options, out)
    return (o, lse) if return_lse else o


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    eps: float = 1e-6,
    plus_one: bool = False,
    out: Any = None,
    device: str | Device | None = None,
) -> Any:
    """y as x = x / sqrt(mean(x²) + eps) · weight over the last axis, rounded once to x's dtype.

    x [..., E], weight [E] or None of one dtype (float32, float64, bfloat16, float16; kernels: not float64), arrays as
    of `gemma_cuda.attention`. plus_one: weight holds w of 1 + w, as Gemma 1 to 3 store it. out: takes the result; may
    be x. device: as of `attention`. Raises InputError before anything is launched or written.
    """
    home = _adapter(x, weight) or layers
    return home.rms_norm(x, weight, eps=eps, plus_one=plus_one, out=out, device=device)


def geglu(gate: Any, up: Any, *, out: Any = None, device: str | Device | None = None) -> Any:
    """y as gate = gelu_tanh(gate) · up, rounded once to gate's dtype.

    gate, up [..., F] of one dtype, arrays as of `gemma_cuda.attention`; rows of a 2-D array may lie apart, as the
    halves of one packed product do. out: takes the result; may be gate or up. device: as of `attention`.
    Raises InputError before anything is launched or written.
    """
    home = _adapter(gate, up) or layers
    return home.geglu(gate, up, out=out, device=device)


def qk_norm_rope(
    x: Any,
    *,
    heads: int,
    cos: Any,
    sin: Any,
    eps: float = 1e-6,
    q_weight: Any = None,
    k_weight: Any = None,
    plus_one: bool = False,
    v_norm: bool = False,
    k_cache: Any = None,
    v_cache: Any = None,
    slots: Any = None,
    positions: Any = None,
    pairs: int | None = None,
    k_eq_v: bool = False,
    device: str | Device | None = None,
) -> Any:
    """q [N, H, D] as attention reads it; k_cache[slots] and v_cache[slots] [N, KH, D] are written in place.

    x [N, (H + 2 KH) D] holds q | k | v of each token, or q | k with k_eq_v (V is the raw K), or q alone without caches,
    or k | v alone with heads = 0. q_weight, k_weight [D]: RMSNorm of each head (plus_one: they hold w of 1 + w). Then
    RoPE: pairs (i, i + D/2) with i < `pairs` (None: all) turn by row positions[n] of cos and sin [P, D/2] float32;
    positions int32 [N], None is row n. v_norm: v is divided by its root mean square. k_cache, v_cache [rows, KH, D],
    slots int32 [N], all different, None is row n. Arrays and device as of `gemma_cuda.attention`; JAX's take no caches.
    Raises InputError before anything is launched or written.
    """
    given = QkNormRopeArguments(
        x=x, cos=cos, sin=sin, q_weight=q_weight, k_weight=k_weight, k_cache=k_cache, v_cache=v_cache, slots=slots,
        positions=positions, heads=heads, eps=eps, plus_one=plus_one, v_norm=v_norm, pairs=pairs, k_eq_v=k_eq_v,
        device=device,
    )  # fmt: skip
    home = _adapter(*given.arrays().values()) or direct_qk_norm_rope
    return home.apply_qk_norm_rope(given)


def _adapter(*arrays: Any) -> Any:
    """The module interop.torch or interop.jax if these arrays need it, else None."""
    if needs_custom_op(*arrays):
        from . import torch as adapter
    elif is_jax(arrays[0]):
        from . import jax as adapter  # type: ignore[no-redef]
    else:
        return None
    return adapter
