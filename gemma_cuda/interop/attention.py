"""Attention over the memory of the caller's arrays: checks all arguments, then runs it on views."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import arguments
from ..device.foreign import ArrayLibrary, broadcast_to, common_library, device_for, is_torch
from ..device.protocol import Array, Device
from ..errors import InputError
from ..ops.attention_plan import HEAD_DIMS
from ..precision import PRECISIONS
from .attention_mask import make_mask, mask_of_ranges
from .attention_run import AttentionCall, run
from .attention_shapes import AXES, Sizes, check_shapes
from .causal_bias import as_bias, is_causal_bias
from .options import AttentionOptions

_OP = "attention"


def attend(q: Any, k: Any, v: Any, options: AttentionOptions, out: Any = None) -> tuple[Any, Any]:
    """(o, lse) of `gemma_cuda.attention`, of arrays whose values can be read."""
    attn_bias, layout = options.attn_bias, options.layout
    is_causal = is_causal_bias(attn_bias) and is_torch(q)
    library = common_library(_OP, {"q": q, "k": k, "v": v, "attn_bias": None if is_causal else attn_bias, "out": out})
    target = device_for(_OP, options.device, library)
    with library.stream():
        sizes = check_shapes(layout, *(tuple(x.shape) for x in (q, k, v)))
        if is_causal:
            attn_bias = as_bias(attn_bias, sizes.query_count, sizes.key_count, q)
        views = [library.view(x) for x in (q, k, v)]
        _check_dtypes(views)
        scale, softcap = _factors(options, sizes)
        if target is not None:
            _check_kernels(views[0], sizes, scale, target)
        bias = None if attn_bias is None else _bias(library, attn_bias, sizes)
        if bias is not None and target is not None and bias.dtype.name == "float64":
            raise InputError(f"{_OP}: attn_bias is float64, kernels take float32, bfloat16 or float16")
        mask = make_mask(sizes, options) if options.key_range is None else mask_of_ranges(options.key_range, sizes)
        result = _result(library, out, (*q.shape[:-1], sizes.value_dim), views[0], layout)
        lse = library.empty((*sizes.queries, sizes.heads), np.dtype(np.float32))
        arrays = [*(_tokens_first(x, layout) for x in (*views, library.view(result))), library.view(lse)]
        if bias is not None and sizes.batch is None:  # [H, S, T] over all packed tokens: run as one sequence
            arrays, mask = [x[None] for x in arrays], mask.joined()
        run(library, target, AttentionCall(bias, mask, scale, softcap, *arrays))
    return result, lse.swapaxes(-1, -2)


def _tokens_first(x: Array, layout: str) -> Array:
    """The view [B, S, H, D] of x, or [S, H, D] in layout SHD."""
    return x.transpose(0, 2, 1, 3) if layout == "BHSD" else x


def _check_dtypes(views: list[Array]) -> None:
    q = views[0]
    if q.dtype.name not in PRECISIONS:
        raise InputError(f"{_OP}: q is {q.dtype.name}, expected one of {', '.join(PRECISIONS)}")
    for name, array in zip("kv", views[1:], strict=True):
        if array.dtype != q.dtype:
            raise InputError(f"{_OP}: {name} is {array.dtype.name}, expected {q.dtype.name} as q")


def _factors(options: AttentionOptions, sizes: Sizes) -> tuple[float, float | None]:
    """(scale, softcap) as finite numbers."""
    scale, softcap = options.scale, options.softcap
    if softcap is not None:
        softcap = arguments.number(f"{_OP}: softcap", softcap, above=0, otherwise=", or None for no cap")
    if scale is None:
        return (sizes.head_dim**-0.5 if sizes.head_dim else 1.0), softcap  # D = 0: every score is 0 for any scale
    return arguments.number(f"{_OP}: scale", scale, otherwise=", or None for D ** -0.5"), softcap


def _check_kernels(q: Array, sizes: Sizes, scale: float, target: Device) -> None:
    way_out = "use device=None, the NumPy reference" if target.name == "emulator" else "move the arrays to the CPU"
    if q.dtype.name not in ("bfloat16", "float16"):
        raise InputError(f"{_OP}: q is {q.dtype.name}, kernels take bfloat16 or float16; {way_out}")
    if sizes.head_dim not in HEAD_DIMS:
        dims = ", ".join(map(str, HEAD_DIMS))
        raise InputError(f"{_OP}: D is {sizes.head_dim}, kernels take {dims}; {way_out}")
    if sizes.value_dim != sizes.head_dim:
        raise InputError(
            f"{_OP}: D of v is {sizes.value_dim} and D of q and k {sizes.head_dim}, kernels take one; {way_out}"
        )
    if scale <= 0:
        raise InputError(f"{_OP}: scale is {scale}, kernels take a positive one; {way_out}")


def _bias(library: ArrayLibrary, attn_bias: Any, sizes: Sizes) -> Array:
    """View [B or 1, H or 1, S, T] of a bias that broadcasts to [B, H, S, T]; S and T of stride 0 where it repeats."""
    shape = tuple(attn_bias.shape)
    full = (sizes.heads, *sizes.queries[-1:], sizes.key_count)
    full = full if sizes.batch is None else (sizes.batch, *full)
    padded = (1,) * (len(full) - len(shape)) + shape
    if len(padded) > len(full) or any(own not in (1, n) for own, n in zip(padded, full, strict=True)):
        axes = "H, S, T" if sizes.batch is None else "B, H, S, T"
        raise InputError(
            f"{_OP}: attn_bias is {list(shape)}, which does not broadcast to [{axes}] = {list(full)} "
            f"(layout {sizes.layout})"
        )
    view = library.view(attn_bias)
    if view.dtype.name not in PRECISIONS:
        raise InputError(
            f"{_OP}: attn_bias is {view.dtype.name}, expected a float that is added to the logits: 0 shows, -inf hides"
        )
    view = view.reshape((1,) * (4 - len(full)) + padded)
    if padded[-2:] == full[-2:]:
        return view
    return broadcast_to(view, (*view.shape[:2], *full[-2:]))


def _result(library: ArrayLibrary, out: Any, shape: Any, q: Array, layout: str) -> Any:
    """The array for o: `out`, or a new array whose memory has tokens before heads in every layout."""
    if out is None:
        b, *middle, d = tuple(shape)
        fresh = library.empty((b, *reversed(middle), d) if layout == "BHSD" else tuple(shape), q.dtype)
        return fresh.swapaxes(1, 2) if layout == "BHSD" else fresh
    view = library.view(out)
    if tuple(out.shape) != tuple(shape) or view.dtype != q.dtype:
        raise InputError(
            f"{_OP}: out is {view.dtype.name} {list(out.shape)}, expected {q.dtype.name} [{AXES[layout][0]}] = "
            f"{list(shape)} (layout {layout})"
        )
    if isinstance(view, np.ndarray) and not view.flags.writeable:
        raise InputError(f"{_OP}: out cannot be written")
    return out
