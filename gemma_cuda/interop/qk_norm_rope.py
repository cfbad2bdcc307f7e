"""Per-head norms, RoPE and the KV write over the memory of the caller's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import arguments
from ..device.foreign import common_library, device_for, host_integers
from ..device.protocol import Array, Device
from ..errors import InputError
from ..ops.qk_norm_rope import qk_norm_rope as qk_norm_rope_kernel
from ..precision import PRECISIONS
from ..reference.qk_norm_rope import qk_norm_rope as reference_qk_norm_rope
from .layers import check_float, check_like, checked_eps, contiguous, rows

_ROW_BYTES = 16  # one vector load of the kernel
_ARRAYS = ("x", "cos", "sin", "q_weight", "k_weight", "k_cache", "v_cache", "slots", "positions")
FLAGS = ("plus_one", "v_norm", "k_eq_v")
MOST_HEADS = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class QkNormRopeArguments:
    """The arguments of `gemma_cuda.qk_norm_rope`, in the order of the custom op's schema."""

    x: Any
    cos: Any
    sin: Any
    q_weight: Any = None
    k_weight: Any = None
    k_cache: Any = None
    v_cache: Any = None
    slots: Any = None
    positions: Any = None
    heads: int
    eps: float = 1e-6
    plus_one: bool = False
    v_norm: bool = False
    pairs: int | None = None
    k_eq_v: bool = False
    device: str | Device | None = None

    def arrays(self) -> dict[str, Any]:
        """The arguments that are arrays, by name."""
        return {name: getattr(self, name) for name in _ARRAYS}


def apply_qk_norm_rope(given: QkNormRopeArguments) -> Any:
    """`gemma_cuda.qk_norm_rope` of arrays whose values can be read."""
    op, pairs = "qk_norm_rope", given.pairs
    library = common_library(op, given.arrays())
    target = device_for(op, given.device, library)
    with library.stream():
        views: dict[str, Any] = {name: None if x is None else library.view(x) for name, x in given.arrays().items()}
        own, tables, caches = views["x"], (views["cos"], views["sin"]), (views["k_cache"], views["v_cache"])
        check_float(op, "x", own, target, kernels="16 bit")
        options: dict[str, Any] = {
            "eps": checked_eps(op, given.eps),
            "heads": arguments.integer(f"{op}: heads", given.heads, least=0, most=MOST_HEADS),
            **{name: arguments.flag(f"{op}: {name}", getattr(given, name)) for name in FLAGS},
        }
        heads = options["heads"]
        head_dim, kv_heads = _check_qk(views, heads, options["k_eq_v"])
        if pairs is not None:
            pairs = arguments.integer(f"{op}: pairs, a part of D/2,", pairs, least=0, most=head_dim // 2)
        result = library.empty((own.shape[0], heads, head_dim), own.dtype)
        weights = (views["q_weight"], views["k_weight"])
        if target is not None:
            read = partial(contiguous, library, alignment=_ROW_BYTES)
            q_weight, k_weight = (None if w is None else read(w) for w in weights)
            qk_norm_rope_kernel(
                rows(library, own, alignment=_ROW_BYTES), cos=read(tables[0]), sin=read(tables[1]), q_weight=q_weight,
                k_weight=k_weight, k_cache=caches[0], v_cache=caches[1], slots=views["slots"],
                positions=views["positions"], pairs=pairs, device=target, out=library.view(result), **options,
            )  # fmt: skip
            return result
        n = own.shape[0]
        row = _index(op, "positions", views["positions"], n, tables[0].shape[0], "cos")
        slot = None if caches[0] is None else _index(op, "slots", views["slots"], n, caches[0].shape[0], "k_cache")
        _on_reference(own, tables, row, weights, caches, slot, pairs, kv_heads, library.view(result), options)
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


def _check_qk(views: dict[str, Any], heads: int, k_eq_v: bool) -> tuple[int, int]:
    """(D, KH); raises InputError for shapes that do not match."""
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
            check_like(op, name, views[name], (k_cache.shape[0], kv_heads, head_dim), x, "rows, KH, D")
    elif views["slots"] is not None:
        raise InputError(f"{op}: slots are given, but no k_cache and v_cache")
    if heads + kv_heads == 0:
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
            check_like(op, name, views[name], (head_dim,), x, "D")
    return head_dim, kv_heads


def _index(op: str, name: str, given: Array | None, n: int, rows: int, target: str) -> Array:
    """int64 [n] of `given`, or 0 : n for None; raises InputError for an index outside 0 : rows."""
    index = np.arange(n) if given is None else host_integers(op, name, given)
    if index.shape != (n,):
        raise InputError(f"{op}: {name} is {list(index.shape)}, expected [N] = [{n}]")
    if n and (index.min() < 0 or index.max() >= rows):
        outside = index[(index < 0) | (index >= rows)][0]
        raise InputError(f"{op}: {name} holds {outside}, outside the {rows} rows of {target}")
    return index
