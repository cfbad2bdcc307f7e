"""Dispatcher rules of the custom ops: derivatives are refused, and autocast casts floats to its dtype."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention.bias import CausalBias

from ..arguments import shown
from ..device.foreign import check_memory
from ..errors import InputError

_GRADIENTS = ("AutogradCPU", "AutogradCUDA", "AutogradMeta", "AutogradNestedTensor", "AutogradOther")
_library: Any = torch.library.Library("gemma_cuda", "FRAGMENT")  # type: ignore[no-untyped-call]
_unpack_dual: Any = forward_ad.unpack_dual


def check_tensors(op: str, required: Sequence[str], /, **tensors: Any) -> None:
    """Raises InputError for a nested or sparse tensor, one that requires gradients, and None if required."""
    for name, x in tensors.items():
        if x is None and name not in required:
            continue
        if not isinstance(x, Tensor):
            raise InputError(f"{op}: {name} is {shown(x)}, expected a tensor as the others are")
        check_memory(op, name, x)
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{op}: an input requires gradients and there is no backward pass; call it inside torch.no_grad() or "
                "torch.inference_mode(), or keep torch's own function where you train"
            )


def register_rules(op: str, cast: Sequence[str]) -> None:
    """Registers the rules of one custom op; cast: the arguments that autocast casts to its dtype."""
    overload = getattr(torch.ops.gemma_cuda, op).default
    names = [argument.name for argument in overload._schema.arguments]
    for key in _GRADIENTS:
        _library.impl(op, partial(_refuse_derivatives, op, overload, names), key, with_keyset=True)
    for device_type in ("cpu", "cuda"):
        key = f"Autocast{device_type.upper()}"
        _library.impl(op, partial(_call_in_autocast_dtype, overload, names, cast, device_type, key), key)


def _refuse_derivatives(op: str, overload: Any, names: list[str], keyset: Any, *args: Any) -> Any:
    """The op's result below autograd. Without this rule torch would return zero tangents for a custom op."""
    tensors = {name: x for name, x in zip(names, args, strict=False) if isinstance(x, Tensor)}
    check_tensors(op, (), **tensors)
    if any(_unpack_dual(x).tangent is not None for x in tensors.values()):
        raise InputError(
            f"{op}: an input has a tangent and there is no forward-mode derivative; keep torch's own function where "
            "you differentiate by torch.func.jvp or torch.autograd.forward_ad"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _call_in_autocast_dtype(
    overload: Any, names: list[str], cast: Sequence[str], device_type: str, key: str, *args: Any
) -> Any:
    """The op's result for arguments cast as autocast casts those of scaled_dot_product_attention.

    Caches are written in place and cannot be cast, so where there are caches their dtype is used instead.
    """
    named = dict(zip(names, args, strict=False))
    cache = named.get("k_cache")
    dtype = torch.get_autocast_dtype(device_type) if cache is None else cache.dtype
    for name in cast:
        if _is_cast(named.get(name), device_type):
            named[name] = named[name].to(dtype)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
        return overload(*named.values())


def _is_cast(x: Any, device_type: str) -> bool:
    is_float = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return is_float and x.device.type == device_type and not isinstance(x, CausalBias)
