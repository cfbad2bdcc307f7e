"""RMSNorm and GeGLU over the memory of the caller's arrays; checks and copies shared with QK-norm + RoPE."""

from __future__ import annotations

from typing import Any

from .. import arguments
from ..device.foreign import ArrayLibrary, address, common_library, device_for, overlap
from ..device.protocol import Array, Device
from ..errors import InputError
from ..ops.geglu import geglu as geglu_kernel
from ..ops.rms_norm import rms_norm as rms_norm_kernel
from ..precision import PRECISIONS
from ..reference.geglu import geglu as reference_geglu
from ..reference.rms_norm import rms_norm as reference_rms_norm
from .attention_run import copy


def rms_norm(x: Any, weight: Any, *, eps: float, plus_one: bool, device: str | Device | None, out: Any = None) -> Any:
    """`gemma_cuda.rms_norm` of arrays whose values can be read."""
    op = "rms_norm"
    library = common_library(op, {"x": x, "weight": weight, "out": out})
    target = device_for(op, device, library)
    with library.stream():
        view, w = library.view(x), None if weight is None else library.view(weight)
        check_float(op, "x", view, target)
        if view.ndim == 0 or view.shape[-1] == 0:
            raise InputError(f"{op}: x is {list(view.shape)}, expected [..., E]")
        eps, plus_one = checked_eps(op, eps), arguments.flag(f"{op}: plus_one", plus_one)
        if w is not None:
            check_like(op, "weight", w, (view.shape[-1],), view, "E")
        result, y = _result(op, library, out, view)
        if target is None:
            precision = PRECISIONS[view.dtype.name]
            w = None if w is None else w.astype(precision.compute)
            exact = view.astype(precision.compute, copy=False)
            y[...] = reference_rms_norm(exact, w, eps=eps, precision=precision, plus_one=plus_one)
        else:
            w = None if w is None else contiguous(library, w)
            flat, into = contiguous(library, view).reshape(-1, view.shape[-1]), _output(library, y, [view, w])
            rms_norm_kernel(flat, w, eps=eps, device=target, plus_one=plus_one, out=into.reshape(flat.shape))
            if into is not y:
                y[...] = into
    return result


def geglu(gate: Any, up: Any, *, device: str | Device | None, out: Any = None) -> Any:
    """`gemma_cuda.geglu` of arrays whose values can be read."""
    op = "geglu"
    library = common_library(op, {"gate": gate, "up": up, "out": out})
    target = device_for(op, device, library)
    with library.stream():
        g, u = library.view(gate), library.view(up)
        check_float(op, "gate", g, target, kernels="16 bit")
        if g.ndim == 0 or g.shape[-1] == 0:
            raise InputError(f"{op}: gate is {list(g.shape)}, expected [..., F]")
        check_like(op, "up", u, tuple(g.shape), g, "..., F")
        result, y = _result(op, library, out, g)
        if target is None:
            precision = PRECISIONS[g.dtype.name]
            flat = [x.reshape(-1, x.shape[-1]).astype(precision.compute, copy=False) for x in (g, u)]
            y[...] = reference_geglu(*flat, precision=precision).reshape(y.shape)
        else:
            pair = [rows(library, x) for x in (g, u)]
            into = _output(library, y, [g, u])
            geglu_kernel(*pair, device=target, out=into.reshape(pair[0].shape))
            if into is not y:
                y[...] = into
    return result


def check_float(op: str, name: str, x: Array, target: Device | None, *, kernels: str = "float") -> None:
    if x.dtype.name not in PRECISIONS:
        raise InputError(f"{op}: {name} is {x.dtype.name}, expected one of {', '.join(PRECISIONS)}")
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


def _result(op: str, library: ArrayLibrary, out: Any, like: Array) -> tuple[Any, Array]:
    """(`out` or a new array, its view)."""
    if out is None:
        out = library.empty(tuple(like.shape), like.dtype)
        return out, library.view(out)
    view = library.view(out)
    check_like(op, "out", view, tuple(like.shape), like, "as the first argument")
    return out, view


def _output(library: ArrayLibrary, y: Array, inputs: list[Array | None]) -> Array:
    """The array that a kernel writes: y, or a new one if y is not contiguous or overlaps an input."""
    if y.flags.c_contiguous and not any(x is not None and overlap(y, x) for x in inputs):
        return y
    return library.view(library.empty(tuple(y.shape), y.dtype))


def contiguous(library: ArrayLibrary, x: Array, *, alignment: int = 1) -> Array:
    """x if it is contiguous and starts at a multiple of `alignment` bytes, else a contiguous copy."""
    return x if x.flags.c_contiguous and address(x) % alignment == 0 else copy(library, x)


def rows(library: ArrayLibrary, x: Array, *, alignment: int = 1) -> Array:
    """[N, E] of [..., E], copied unless x is contiguous and aligned; a 2-D x may have an aligned row stride, too."""
    size = x.dtype.itemsize
    apart = x.ndim == 2 and x.strides[1] == size and x.strides[0] >= x.shape[1] * size
    if apart and address(x) % alignment == 0 and x.strides[0] % alignment == 0:
        return x
    return contiguous(library, x, alignment=alignment).reshape(-1, x.shape[-1])
