"""The ops for JAX's arrays on the CPU: called directly, or as a host callback under jit, vmap and the like.

Arrays on a GPU are refused: kernels would have to be launched on XLA's stream, which takes a compiled FFI handler, and
a callback would move every array to the host and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import DeviceError, InputError
from . import attention, layers, qk_norm_rope
from .attention_shapes import check_shapes
from .options import AttentionOptions
from .qk_norm_rope import QkNormRopeArguments

_WAY_OUT = "move the arrays with jax.device_put(x, jax.devices('cpu')[0]), or hand them to CuPy by DLPack"


def attend(q: Any, k: Any, v: Any, options: AttentionOptions, out: Any = None) -> tuple[Any, Any]:
    """(o, lse) of `gemma_cuda.attention`; options may be tracers, too."""
    _refuse_out("attention", out)
    sizes = check_shapes(options.layout, *(tuple(x.shape) for x in (q, k, v)))
    later = {n: x for n, x in vars(options).items() if n == "attn_bias" or isinstance(x, jax.core.Tracer)}

    def function(q: Any, k: Any, v: Any, *values: Any) -> tuple[Any, Any]:
        return attention.attend(q, k, v, replace(options, **dict(zip(later, values, strict=True))))

    lse_shape = (*sizes.queries[:-1], sizes.heads, sizes.query_count)
    results = (_like((*q.shape[:-1], sizes.value_dim), q.dtype), _like(lse_shape, jnp.float32))
    o, lse = _call("attention", function, {"q": q, "k": k, "v": v, **later}, results)
    return o, lse


def rms_norm(x: Any, weight: Any, *, out: Any, **options: Any) -> Any:
    """y of `gemma_cuda.rms_norm`."""
    _refuse_out("rms_norm", out)
    return _call("rms_norm", partial(layers.rms_norm, **options), {"x": x, "weight": weight}, _like(x.shape, x.dtype))


def geglu(gate: Any, up: Any, *, out: Any, **options: Any) -> Any:
    """y of `gemma_cuda.geglu`."""
    _refuse_out("geglu", out)
    return _call("geglu", partial(layers.geglu, **options), {"gate": gate, "up": up}, _like(gate.shape, gate.dtype))


def apply_qk_norm_rope(given: QkNormRopeArguments) -> Any:
    """q of `gemma_cuda.qk_norm_rope`; caches are refused, and arguments of K and V are ignored."""
    if given.k_cache is not None or given.v_cache is not None:
        raise InputError("qk_norm_rope: k_cache and v_cache are written in place, which JAX's arrays do not allow")
    arrays = {name: getattr(given, name) for name in ("x", "cos", "sin", "q_weight", "positions")}
    options = {name: getattr(given, name) for name in ("heads", "eps", "plus_one", "pairs", "device")}

    def function(*values: Any) -> Any:
        return qk_norm_rope.apply_qk_norm_rope(QkNormRopeArguments(**dict(zip(arrays, values, strict=True)), **options))

    shape = (given.x.shape[0], given.heads, 2 * given.cos.shape[1])
    return _call("qk_norm_rope", function, arrays, _like(shape, given.x.dtype))


def _refuse_out(op: str, out: Any) -> None:
    if out is not None:
        raise InputError(f"{op}: out: JAX's arrays cannot be written; use what {op} returns")


def _like(shape: tuple[int, ...], dtype: Any) -> Any:
    make: Any = jax.ShapeDtypeStruct  # has no annotations
    return make(shape, dtype)


def _call(op: str, function: Callable[..., Any], arrays: dict[str, Any], results: Any) -> Any:
    """function(*arrays) with NumPy arrays in place of JAX's (None stays None); results: shapes and dtypes."""
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
    """Platforms of the array's devices: "cpu", "gpu", "tpu"."""
    return {device.platform for device in x.devices()}
