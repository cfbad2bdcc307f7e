"""The other single ops for the arrays of NumPy, torch, CuPy and JAX."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from ..device.protocol import Array, Device
from ..errors import InputError
from ..ops.geglu import geglu as geglu_kernel
from ..ops.qk_norm_rope import qk_norm_rope as qk_norm_rope_kernel
from ..ops.rms_norm import rms_norm as rms_norm_kernel
from ..reference.geglu import geglu as reference_geglu
from ..reference.qk_norm_rope import qk_norm_rope as reference_qk_norm_rope
from ..reference.rms_norm import rms_norm as reference_rms_norm
from .arrays import Caller, address, caller_of, device_for, is_compiled, is_jax, overlap, to_host
from .attention_run import PRECISIONS, copy


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
    op = "rms_norm"
    if is_jax(x):
        from .jax import call

        function = partial(rms_norm, eps=eps, plus_one=plus_one, device=device)
        return call(op, function, {"x": x, "weight": weight}, out)
    if is_compiled(x):
        from .torch import rms_norm as custom_op

        return custom_op(x, weight, eps=eps, plus_one=plus_one, out=out, device=device)
    caller = caller_of(op, {"x": x, "weight": weight, "out": out})
    target = device_for(op, device, caller)
    with caller.stream():
        view, w = caller.view(x), None if weight is None else caller.view(weight)
        _check_float(op, "x", view, target)
        if view.ndim == 0 or view.shape[-1] == 0:
            raise InputError(f"{op}: x is {list(view.shape)}, expected [..., E]")
        _check_eps(op, eps)
        if w is not None:
            _check_like(op, "weight", w, (view.shape[-1],), view, "E")
        result, y = _result(op, caller, out, view)
        if target is None:
            precision = PRECISIONS[view.dtype.name]
            w = None if w is None else w.astype(precision.compute)
            rows = view.astype(precision.compute, copy=False)
            y[...] = reference_rms_norm(rows, w, eps=eps, precision=precision, plus_one=plus_one)
        else:
            w = None if w is None else _contiguous(caller, w)
            rows, into = _rows(caller, view), _written(caller, y, [view, w])
            rms_norm_kernel(rows, w, eps=eps, device=target, plus_one=plus_one, out=into.reshape(rows.shape))
            if into is not y:
                y[...] = into
    return result


def geglu(gate: Any, up: Any, *, out: Any = None, device: str | Device | None = None) -> Any:
    """y as gate = gelu_tanh(gate) · up, rounded once to gate's dtype.

    gate, up [..., F] of one dtype, arrays as of `gemma_cuda.attention`; rows of a 2-D array may lie apart, as the
    halves of one packed product do. out: takes the result; may be gate or up. device: as of `attention`.
    Raises InputError before anything is launched or written.
    """
    op = "geglu"
    if is_jax(gate):
        from .jax import call

        return call(op, partial(geglu, device=device), {"gate": gate, "up": up}, out)
    if is_compiled(gate):
        from .torch import geglu as custom_op

        return custom_op(gate, up, out=out, device=device)
    caller = caller_of(op, {"gate": gate, "up": up, "out": out})
    target = device_for(op, device, caller)
    with caller.stream():
        g, u = caller.view(gate), caller.view(up)
        _check_float(op, "gate", g, target, kernels="16 bit")
        if g.ndim == 0 or g.shape[-1] == 0:
            raise InputError(f"{op}: gate is {list(g.shape)}, expected [..., F]")
        _check_like(op, "up", u, tuple(g.shape), g, "..., F")
        result, y = _result(op, caller, out, g)
        if target is None:
            precision = PRECISIONS[g.dtype.name]
            flat = [x.reshape(-1, x.shape[-1]).astype(precision.compute, copy=False) for x in (g, u)]
            y[...] = reference_geglu(*flat, precision=precision).reshape(y.shape)
        else:
            rows = [_rows(caller, x, may_lie_apart=True) for x in (g, u)]
            into = _written(caller, y, [g, u])
            geglu_kernel(*rows, device=target, out=into.reshape(rows[0].shape))
            if into is not y:
                y[...] = into
    return result


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
    op = "qk_norm_rope"
    if is_jax(x):
        from .jax import call

        if k_cache is not None or v_cache is not None:
            raise InputError(f"{op}: k_cache and v_cache are written in place, which JAX's arrays do not allow")
        arrays = {"x": x, "cos": cos, "sin": sin, "q_weight": q_weight, "positions": positions}

        def of_arrays(*values: Any) -> Any:
            named = dict(zip(arrays, values, strict=True))
            return qk_norm_rope(**named, heads=heads, eps=eps, plus_one=plus_one, pairs=pairs, device=device)

        return call(op, of_arrays, arrays, None, shape=(x.shape[0], heads, 2 * cos.shape[1]))
    if is_compiled(x):
        from .torch import qk_norm_rope as custom_op

        return custom_op(
            x, heads=heads, cos=cos, sin=sin, eps=eps, q_weight=q_weight, k_weight=k_weight, plus_one=plus_one,
            v_norm=v_norm, k_cache=k_cache, v_cache=v_cache, slots=slots, positions=positions, pairs=pairs,
            k_eq_v=k_eq_v, device=device,
        )  # fmt: skip
    given = {
        "x": x, "cos": cos, "sin": sin, "q_weight": q_weight, "k_weight": k_weight, "k_cache": k_cache,
        "v_cache": v_cache, "slots": slots, "positions": positions,
    }  # fmt: skip
    caller = caller_of(op, given)
    target = device_for(op, device, caller)
    with caller.stream():
        views: dict[str, Any] = {name: None if x is None else caller.view(x) for name, x in given.items()}
        own, tables, caches = views["x"], (views["cos"], views["sin"]), (views["k_cache"], views["v_cache"])
        _check_float(op, "x", own, target, kernels="16 bit")
        _check_eps(op, eps)
        head_dim, kv_heads = _check_qk(views, heads, k_eq_v)
        if pairs is not None and not 0 <= pairs <= head_dim // 2:
            raise InputError(f"{op}: pairs is {pairs}, expected 0 to D/2 = {head_dim // 2}")
        result = caller.empty((own.shape[0], heads, head_dim), own.dtype)
        options: dict[str, Any] = {
            "heads": heads, "eps": eps, "plus_one": plus_one, "v_norm": v_norm, "k_eq_v": k_eq_v
        }  # fmt: skip
        weights = (views["q_weight"], views["k_weight"])
        if target is not None:
            qk_norm_rope_kernel(
                _rows(caller, own, may_lie_apart=True), cos=_contiguous(caller, tables[0]),
                sin=_contiguous(caller, tables[1]), q_weight=weights[0], k_weight=weights[1], k_cache=caches[0],
                v_cache=caches[1], slots=views["slots"], positions=views["positions"], pairs=pairs, device=target,
                out=caller.view(result), **options,
            )  # fmt: skip
            return result
        n = own.shape[0]
        rows = _index(op, "positions", views["positions"], n, tables[0].shape[0], "cos")
        slot = None if caches[0] is None else _index(op, "slots", views["slots"], n, caches[0].shape[0], "k_cache")
        _on_reference(own, tables, rows, weights, caches, slot, pairs, kv_heads, caller.view(result), options)
    return result


def _on_reference(
    x: Array,
    tables: tuple[Array, Array],
    positions: Array,
    weights: tuple[Array | None, Array | None],
    caches: tuple[Array | None, Array | None],
    slots: Array | None,
    pairs: int | None,
    kv_heads: int,
    q: Array,
    options: dict[str, Any],
) -> None:
    """Fills q and the slots of the caches."""
    precision = PRECISIONS[x.dtype.name]
    compute = precision.compute
    cos, sin = (table[positions].astype(compute) for table in tables)
    if pairs is not None:
        cos[:, pairs:], sin[:, pairs:] = 1, 0
    n, head_dim = len(x), 2 * cos.shape[1]
    fresh: list[Array | None] = [None, None]
    if slots is not None:
        fresh = [np.empty((n, kv_heads, head_dim), compute) for _ in range(2)]
    q[...] = reference_qk_norm_rope(
        x.astype(compute, copy=False), cos=cos, sin=sin, precision=precision,
        q_weight=None if weights[0] is None else weights[0].astype(compute),
        k_weight=None if weights[1] is None else weights[1].astype(compute),
        k_cache=fresh[0], v_cache=fresh[1], slots=None if slots is None else np.arange(n), **options,
    )  # fmt: skip
    for cache, values in zip(caches, fresh, strict=True):
        if cache is not None:
            cache[slots] = values


def _check_float(op: str, name: str, x: Array, target: Device | None, *, kernels: str = "float") -> None:
    allowed = ("float32", "float64", "bfloat16", "float16")
    if x.dtype.name not in allowed:
        raise InputError(f"{op}: {name} is {x.dtype.name}, expected one of {', '.join(allowed)}")
    taken = ("bfloat16", "float16") if kernels == "16 bit" else ("float32", "bfloat16", "float16")
    if target is not None and x.dtype.name not in taken:
        raise InputError(f"{op}: {name} is {x.dtype.name}, kernels take {', '.join(taken)}")


def _check_eps(op: str, eps: float) -> None:
    if not (math.isfinite(eps) and eps >= 0):
        raise InputError(f"{op}: eps is {eps}, expected 0 or more")


def _check_like(op: str, name: str, x: Array, shape: tuple[int, ...], first: Array, axes: str) -> None:
    if tuple(x.shape) != shape:
        raise InputError(f"{op}: {name} is {list(x.shape)}, expected [{axes}] = {list(shape)}")
    if x.dtype != first.dtype:
        raise InputError(f"{op}: {name} is {x.dtype.name}, expected {first.dtype.name} as the first argument")


def _check_qk(views: dict[str, Any], heads: int, k_eq_v: bool) -> tuple[int, int]:
    """(D, KH); raises InputError for shapes that do not fit."""
    op, x, cos, k_cache, v_cache = "qk_norm_rope", *(views[name] for name in ("x", "cos", "k_cache", "v_cache"))
    if cos.ndim != 2 or cos.shape[1] == 0:
        raise InputError(f"{op}: cos is {list(cos.shape)}, expected [P, D/2]")
    for name in ("cos", "sin"):
        if views[name].dtype.name != "float32" or views[name].shape != cos.shape:
            given = f"{views[name].dtype.name} {list(views[name].shape)}"
            raise InputError(f"{op}: {name} is {given}, expected float32 [P, D/2] = {list(cos.shape)}")
    head_dim, kv_heads = 2 * int(cos.shape[1]), 0
    if (k_cache is None) != (v_cache is None):
        raise InputError(f"{op}: k_cache and v_cache are needed together")
    if k_cache is not None:
        if k_cache.ndim != 3:
            raise InputError(f"{op}: k_cache is {list(k_cache.shape)}, expected [rows, KH, D]")
        kv_heads = int(k_cache.shape[1])
        for name in ("k_cache", "v_cache"):
            _check_like(op, name, views[name], (k_cache.shape[0], kv_heads, head_dim), x, "rows, KH, D")
    elif views["slots"] is not None:
        raise InputError(f"{op}: slots are given, but no k_cache and v_cache")
    if heads < 0 or heads + kv_heads == 0:
        raise InputError(f"{op}: heads is {heads} without a k_cache: there is nothing to do")
    width = (heads + (1 if k_eq_v else 2) * kv_heads) * head_dim
    if x.ndim != 2 or x.shape[1] != width:
        held = "keys that are values, too" if k_eq_v else "keys and values"
        raise InputError(
            f"{op}: x is {list(x.shape)}, expected [N, {width}] of {heads} query heads and {kv_heads} {held}, "
            f"D = {head_dim}"
        )
    for name in ("q_weight", "k_weight"):
        if views[name] is not None:
            _check_like(op, name, views[name], (head_dim,), x, "D")
    return head_dim, kv_heads


def _index(op: str, name: str, given: Array | None, n: int, rows: int, target: str) -> Array:
    """int64 [n], of rows 0 to n - 1 where nothing is given; raises InputError for what lies outside."""
    index = np.arange(n) if given is None else to_host(op, name, given)
    if index.shape != (n,):
        raise InputError(f"{op}: {name} is {list(index.shape)}, expected [N] = [{n}]")
    if n and (index.min() < 0 or index.max() >= rows):
        outside = index[(index < 0) | (index >= rows)][0]
        raise InputError(f"{op}: {name} holds {outside}, outside the {rows} rows of {target}")
    return index


def _result(op: str, caller: Caller, out: Any, like: Array) -> tuple[Any, Array]:
    """(memory for a result as the caller has it, its view)."""
    if out is None:
        out = caller.empty(tuple(like.shape), like.dtype)
        return out, caller.view(out)
    view = caller.view(out)
    _check_like(op, "out", view, tuple(like.shape), like, "as the first argument")
    return out, view


def _is_plain(x: Array) -> bool:
    return bool(x.flags.c_contiguous)


def _written(caller: Caller, y: Array, inputs: list[Array | None]) -> Array:
    """What a kernel may write: y, or other memory where y is not contiguous or overlaps what is still to be read."""
    if _is_plain(y) and not any(x is not None and overlap(address, y, x) for x in inputs):
        return y
    return caller.view(caller.empty(tuple(y.shape), y.dtype))


def _contiguous(caller: Caller, x: Array) -> Array:
    return x if _is_plain(x) else copy(caller, x)


def _rows(caller: Caller, x: Array, *, may_lie_apart: bool = False) -> Array:
    """[N, E] of [..., E], as it lies where the kernel can read that."""
    size = x.dtype.itemsize
    if may_lie_apart and x.ndim == 2 and x.strides[1] == size and x.strides[0] >= x.shape[1] * size:
        return x
    return _contiguous(caller, x).reshape(-1, x.shape[-1])
