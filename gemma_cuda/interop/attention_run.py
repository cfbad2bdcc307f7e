"""One attention call over views [B, S, H, D] or [S, H, D]: by the NumPy reference, or by kernels with a cached plan."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..device.cuda.device import Cuda
from ..device.foreign import ArrayLibrary, address, overlap
from ..device.protocol import Array, Device
from ..errors import DeviceError
from ..ops.attention import attend
from ..ops.attention_plan import AttentionPlan, plan_attention
from ..precision import PRECISIONS
from ..reference.attention import attention as reference
from ..reference.attention import saturated
from .key_ranges import Mask

_ROW_BYTES = 16  # alignment of one vector load
_MOST_PLANS = 256
_lock = threading.Lock()
_plans: OrderedDict[Any, AttentionPlan] = OrderedDict()
_captured: list[AttentionPlan] = []  # never freed: a captured CUDA graph may be replayed at any time


@dataclass(frozen=True)
class AttentionCall:
    """A checked call over views; without the axis B, and S and T over all sequences, for packed sequences."""

    bias: Array | None  # [B or 1, H or 1, S, T]
    mask: Mask
    scale: float
    softcap: float | None
    q: Array  # [B, S, H, D]
    k: Array  # [B, T, KH, D]
    v: Array  # [B, T, KH, D]
    out: Array  # shape of q and D of v; may overlap the inputs
    lse: Array  # [B, S, H]


def run(library: ArrayLibrary, device: Device | None, call: AttentionCall) -> None:
    """Fills call.out and call.lse, on the NumPy reference where device is None."""
    out, written = call.out, call.out
    is_shared = any(x is not None and overlap(out, x) for x in (call.q, call.k, call.v, call.bias))
    if is_shared or (device is not None and not _readable(out, is_flat=True)):
        written = library.view(library.empty(tuple(out.shape), out.dtype))
        call = replace(call, out=written)
    if device is None:
        _on_reference(call)
    else:
        _on_kernels(library, device, call)
    if written is not out:
        out[...] = written


def _on_reference(call: AttentionCall) -> None:
    q, mask, bias = call.q, call.mask, call.bias
    precision = PRECISIONS[q.dtype.name]
    compute = precision.compute
    key_begin, key_end = mask.key_range()
    is_packed = q.ndim == 3
    for b, (start, stop) in enumerate(zip(mask.queries[:-1], mask.queries[1:], strict=True)):
        own = slice(start, stop) if is_packed else b
        keys = slice(mask.keys[b], mask.keys[b + 1]) if is_packed else b
        own_bias = None if bias is None else saturated(bias[b % len(bias)][None], compute)
        call.out[own] = reference(
            q[own].astype(compute, copy=False), *(x[keys][None].astype(compute, copy=False) for x in (call.k, call.v)),
            key_begin=key_begin[start:stop], key_end=key_end[start:stop],
            cu_seqlens=np.array([0, stop - start], np.int32), scale=call.scale, softcap=call.softcap, bias=own_bias,
            precision=precision, lse=call.lse[own],
        )  # fmt: skip


def _on_kernels(library: ArrayLibrary, device: Device, call: AttentionCall) -> None:
    q, bias = call.q, call.bias
    heads, head_dim, kv_heads = q.shape[-2], q.shape[-1], call.k.shape[-2]
    is_packed = q.ndim == 3
    if q.size == 0:
        return
    q = _flat(q if _readable(q, is_flat=True) else copy(library, q))
    k, v = (x if _readable(x) else copy(library, x) for x in (call.k, call.v))
    if bias is not None and bias.shape[-1] > 1 and bias.strides[-1] != bias.dtype.itemsize:
        bias = copy(library, bias)
    is_plain = call.softcap is None and bias is None
    plan = _plan(call.mask, is_packed, heads // kv_heads, head_dim, is_plain, device)
    if is_packed:
        k, v = k[None], v[None]
    attend(
        plan, q, k, v, scale=call.scale, softcap=call.softcap, bias=bias, device=device,
        out=_flat(call.out), lse=call.lse.reshape(-1, heads),
    )  # fmt: skip


def _plan(mask: Mask, is_packed: bool, group: int, head_dim: int, is_plain: bool, device: Device) -> AttentionPlan:
    """The plan on the device, made at the first call with this mask; plans in captured CUDA graphs are never freed."""
    with _lock:
        return _find_or_make((mask, is_packed, group, head_dim, is_plain, device))


def _find_or_make(key: tuple[Mask, bool, int, int, bool, Device]) -> AttentionPlan:
    mask, is_packed, group, head_dim, is_plain, device = key
    is_capturing = isinstance(device, Cuda) and device.is_capturing()
    if key in _plans:
        _plans.move_to_end(key)
        if is_capturing:
            _captured.append(_plans[key])
        return _plans[key]
    if is_capturing:
        raise DeviceError(
            "attention: a CUDA graph is being captured and the plan of this mask is not on the GPU yet; "
            "call attention once with the same shapes and mask before the capture"
        )
    key_begin, key_end = mask.key_range()
    _plans[key] = plan_attention(
        key_begin, key_end, mask.queries,
        group=group, head_dim=head_dim, is_plain=is_plain, device=device, cu_seqlens_k=mask.keys if is_packed else None,
    )  # fmt: skip
    if isinstance(device, Cuda):
        device.synchronize()  # the plan may be read on any stream
    if len(_plans) > _MOST_PLANS:
        if isinstance(device, Cuda):
            device.synchronize(all_streams=True)  # kernels may still read the plans removed below
        while len(_plans) > _MOST_PLANS // 2:
            _plans.popitem(last=False)
    return _plans[key]


def _flat(x: Array) -> Array:
    """[N, H, D] of [B, S, H, D] or [S, H, D]."""
    if x.ndim == 3:
        return x
    return x[0] if x.shape[0] == 1 else x.reshape(-1, *x.shape[-2:])


def _readable(x: Array, *, is_flat: bool = False) -> bool:
    """Whether a kernel can read x in place: rows aligned to 16 bytes; is_flat: one token stride over all sequences."""
    steps = list(zip(x.shape, x.strides, strict=True))
    if x.size == 0 or (x.shape[-1] > 1 and x.strides[-1] != x.dtype.itemsize):
        return bool(x.size == 0)
    if address(x) % _ROW_BYTES or any(n > 1 and step % _ROW_BYTES for n, step in steps[:-1]):
        return False
    if is_flat and x.ndim == 4 and x.shape[0] > 1 and x.shape[1] > 1:
        return bool(x.strides[0] == x.shape[1] * x.strides[1])
    return True


def copy(library: ArrayLibrary, x: Array) -> Array:
    """A contiguous copy of x, allocated by the library."""
    fresh: Any = library.view(library.empty(tuple(x.shape), x.dtype))
    fresh[...] = x
    return fresh
