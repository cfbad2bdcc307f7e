"""RMSNorm and GeGLU for the arrays of NumPy, torch, CuPy and JAX."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import arguments
from ..device.foreign import Caller, address, caller_of, device_for, is_jax, is_observed, overlap
from ..device.protocol import Array, Device
from ..errors import InputError
from ..ops.geglu import geglu as geglu_kernel
from ..ops.rms_norm import rms_norm as rms_norm_kernel
from ..reference.geglu import geglu as reference_geglu
from ..reference.rms_norm import rms_norm as reference_rms_norm
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
    if is_observed(x, weight):
        from .torch import rms_norm as custom_op

        return custom_op(x, weight, eps=eps, plus_one=plus_one, out=out, device=device)
    return apply_rms_norm(x, weight, eps=eps, plus_one=plus_one, out=out, device=device)


def apply_rms_norm(
    x: Any, weight: Any, *, eps: float, plus_one: bool, device: str | Device | None, out: Any = None
) -> Any:
    """`rms_norm` of arrays whose memory can be read now."""
    op = "rms_norm"
    caller = caller_of(op, {"x": x, "weight": weight, "out": out})
    target = device_for(op, device, caller)
    with caller.stream():
        view, w = caller.view(x), None if weight is None else caller.view(weight)
        check_float(op, "x", view, target)
        if view.ndim == 0 or view.shape[-1] == 0:
            raise InputError(f"{op}: x is {list(view.shape)}, expected [..., E]")
        eps, plus_one = checked_eps(op, eps), arguments.flag(f"{op}: plus_one", plus_one)
        if w is not None:
            check_like(op, "weight", w, (view.shape[-1],), view, "E")
        result, y = _result(op, caller, out, view)
        if target is None:
            precision = PRECISIONS[view.dtype.name]
            w = None if w is None else w.astype(precision.compute)
            exact = view.astype(precision.compute, copy=False)
            y[...] = reference_rms_norm(exact, w, eps=eps, precision=precision, plus_one=plus_one)
        else:
            w = None if w is None else contiguous(caller, w)
            flat, into = contiguous(caller, view).reshape(-1, view.shape[-1]), _written(caller, y, [view, w])
            rms_norm_kernel(flat, w, eps=eps, device=target, plus_one=plus_one, out=into.reshape(flat.shape))
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
    if is_observed(gate, up):
        from .torch import geglu as custom_op

        return custom_op(gate, up, out=out, device=device)
    return apply_geglu(gate, up, out=out, device=device)


def apply_geglu(gate: Any, up: Any, *, device: str | Device | None, out: Any = None) -> Any:
    """`geglu` of arrays whose memory can be read now."""
    op = "geglu"
    caller = caller_of(op, {"gate": gate, "up": up, "out": out})
    target = device_for(op, device, caller)
    with caller.stream():
        g, u = caller.view(gate), caller.view(up)
        check_float(op, "gate", g, target, kernels="16 bit")
        if g.ndim == 0 or g.shape[-1] == 0:
            raise InputError(f"{op}: gate is {list(g.shape)}, expected [..., F]")
        check_like(op, "up", u, tuple(g.shape), g, "..., F")
        result, y = _result(op, caller, out, g)
        if target is None:
            precision = PRECISIONS[g.dtype.name]
            flat = [x.reshape(-1, x.shape[-1]).astype(precision.compute, copy=False) for x in (g, u)]
            y[...] = reference_geglu(*flat, precision=precision).reshape(y.shape)
        else:
            pair = [rows(caller, x) for x in (g, u)]
            into = _written(caller, y, [g, u])
            geglu_kernel(*pair, device=target, out=into.reshape(pair[0].shape))
            if into is not y:
                y[...] = into
    return result


def check_float(op: str, name: str, x: Array, target: Device | None, *, kernels: str = "float") -> None:
    allowed = ("float32", "float64", "bfloat16", "float16")
    if x.dtype.name not in allowed:
        raise InputError(f"{op}: {name} is {x.dtype.name}, expected one of {', '.join(allowed)}")
    taken = ("bfloat16", "float16") if kernels == "16 bit" else ("float32", "bfloat16", "float16")
    if target is not None and x.dtype.name not in taken:
        raise InputError(f"{op}: {name} is {x.dtype.name}, kernels take {', '.join(taken)}")


def checked_eps(op: str, eps: float) -> float:
    return arguments.number(f"{op}: eps", eps, least=0)


def check_like(op: str, name: str, x: Array, shape: tuple[int, ...], first: Array, axes: str) -> None:
    if tuple(x.shape) != shape:
        raise InputError(f"{op}: {name} is {list(x.shape)}, expected [{axes}] = {list(shape)}")
    if x.dtype != first.dtype:
        raise InputError(f"{op}: {name} is {x.dtype.name}, expected {first.dtype.name} as the first argument")


def _result(op: str, caller: Caller, out: Any, like: Array) -> tuple[Any, Array]:
    """(memory for a result as the caller has it, its view)."""
    if out is None:
        out = caller.empty(tuple(like.shape), like.dtype)
        return out, caller.view(out)
    view = caller.view(out)
    check_like(op, "out", view, tuple(like.shape), like, "as the first argument")
    return out, view


def _is_plain(x: Array) -> bool:
    return bool(x.flags.c_contiguous)


def _written(caller: Caller, y: Array, inputs: list[Array | None]) -> Array:
    """What a kernel may write: y, or other memory where y is not contiguous or overlaps what is still to be read."""
    if _is_plain(y) and not any(x is not None and overlap(y, x) for x in inputs):
        return y
    return caller.view(caller.empty(tuple(y.shape), y.dtype))


def contiguous(caller: Caller, x: Array, *, alignment: int = 1) -> Array:
    """x, or a contiguous copy of it where x is not, or does not start at a multiple of `alignment` bytes."""
    return x if _is_plain(x) and address(x) % alignment == 0 else copy(caller, x)


def rows(caller: Caller, x: Array, *, alignment: int = 1) -> Array:
    """[N, E] of [..., E]; rows of a 2-D x may lie apart, and each starts at a multiple of `alignment` bytes."""
    size = x.dtype.itemsize
    apart = x.ndim == 2 and x.strides[1] == size and x.strides[0] >= x.shape[1] * size
    if apart and address(x) % alignment == 0 and x.strides[0] % alignment == 0:
        return x
    return contiguous(caller, x, alignment=alignment).reshape(-1, x.shape[-1])
