"""JAX's arrays on the CPU: directly, and under jit, vmap and the like by a host callback.

Arrays on a GPU are refused: kernels would have to be launched on XLA's stream, which takes a compiled FFI handler, and
a callback would move every array to the host and back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import DeviceError, InputError
from .attention import attend
from .attention_shapes import check_shapes

_WAY_OUT = "move the arrays with jax.device_put(x, jax.devices('cpu')[0]), or hand them to CuPy by DLPack"


def attend_jax(q: Any, k: Any, v: Any, *, attn_bias: Any, layout: str, **options: Any) -> tuple[Any, Any]:
    """(o, lse) of JAX arrays, as `attention.attend`; integers among the options may be traced, too."""
    check_shapes(layout, *(tuple(x.shape) for x in (q, k, v)))
    traced = {name: x for name, x in options.items() if isinstance(x, jax.core.Tracer)}
    fixed = {name: x for name, x in options.items() if name not in traced}

    def function(q: Any, k: Any, v: Any, attn_bias: Any, *values: Any) -> tuple[Any, Any]:
        later = dict(zip(traced, values, strict=True))
        return attend(q, k, v, attn_bias=attn_bias, layout=layout, **fixed, **later)

    tokens, heads = {"BSHD": (1, 2), "BHSD": (2, 1), "SHD": (0, 1)}[layout]
    lse = (*q.shape[: len(layout) - 3], q.shape[heads], q.shape[tokens])
    results = (_like((*q.shape[:-1], v.shape[-1]), q.dtype), _like(lse, jnp.float32))
    arrays = {"q": q, "k": k, "v": v, "attn_bias": attn_bias, **traced}
    o, lse = _call("attention", function, arrays, results)
    return o, lse


def call(
    op: str, function: Callable[..., Any], arrays: dict[str, Any], out: Any, *, shape: tuple[int, ...] | None = None
) -> Any:
    """function(*arrays) of NumPy arrays for JAX's (None: not given); the result is as the first, or of `shape`."""
    if out is not None:
        raise InputError(f"{op}: out: JAX's arrays cannot be written; use what {op} returns")
    first = next(iter(arrays.values()))
    return _call(op, function, arrays, _like(first.shape if shape is None else shape, first.dtype))


def _like(shape: tuple[int, ...], dtype: Any) -> Any:
    make: Any = jax.ShapeDtypeStruct  # which has no annotations
    return make(shape, dtype)


def _call(op: str, function: Callable[..., Any], arrays: dict[str, Any], results: Any) -> Any:
    for name, x in arrays.items():
        if x is not None and not isinstance(x, jax.Array):
            raise InputError(
                f"{op}: {name} is a {type(x).__name__}, the first array is of JAX; bring all arrays of one library"
            )
    given = [x for x in arrays.values() if x is not None]
    is_given = [x is not None for x in arrays.values()]

    def on_host(*values: Any) -> Any:
        rest = iter(np.asarray(x) for x in values)
        return function(*(next(rest) if there else None for there in is_given))

    _refuse_gpus(op, given)
    if not any(isinstance(x, jax.core.Tracer) for x in given):
        return jax.tree.map(jnp.asarray, on_host(*given))
    later = jax.custom_jvp(lambda *values: jax.pure_callback(on_host, results, *values, vmap_method="sequential"))

    def refuse(primals: Any, tangents: Any) -> Any:
        raise InputError(f"{op}: there is no backward pass; keep JAX's own function where you differentiate")

    later.defjvp(refuse)
    return later(*given)


def _refuse_gpus(op: str, arrays: list[Any]) -> None:
    for x in arrays:
        if isinstance(x, jax.core.Tracer):
            if jax.default_backend() != "cpu":
                raise DeviceError(
                    f"{op}: it is traced for {jax.default_backend()}, and only JAX on the CPU is served; "
                    "set JAX_PLATFORMS=cpu, or call it outside of jit on arrays of the CPU"
                )
        elif others := platforms_of(x) - {"cpu"}:
            raise DeviceError(f"{op}: JAX's arrays on a {others.pop()} are not served; {_WAY_OUT}")


def platforms_of(x: jax.Array) -> set[str]:
    """Where the array lies: "cpu", "gpu", "tpu"."""
    return {device.platform for device in x.devices()}
