"""What torch's dispatcher does before a custom op: derivatives are refused, autocast's dtype is taken."""

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
    """Raises InputError for a tensor that has no plain memory or that requires gradients, and for None if required."""
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
    """Gives the custom op its rules; cast: the arguments that autocast rounds to its dtype."""
    overload = getattr(torch.ops.gemma_cuda, op).default
    names = [argument.name for argument in overload._schema.arguments]
    for key in _GRADIENTS:
        _library.impl(op, partial(_below_gradients, op, overload, names), key, with_keyset=True)
    for device_type in ("cpu", "cuda"):
        key = f"Autocast{device_type.upper()}"
        _library.impl(op, partial(_below_autocast, overload, names, cast, device_type, key), key)


def _below_gradients(op: str, overload: Any, names: list[str], keyset: Any, *args: Any) -> Any:
    """The op without the part of torch that differentiates: without a rule of ours it would make tangents zero."""
    tensors = {name: x for name, x in zip(names, args, strict=False) if isinstance(x, Tensor)}
    check_tensors(op, (), **tensors)
    if any(_unpack_dual(x).tangent is not None for x in tensors.values()):
        raise InputError(
            f"{op}: an input has a tangent and there is no forward-mode derivative; keep torch's own function where "
            "you differentiate by torch.func.jvp or torch.autograd.forward_ad"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _below_autocast(
    overload: Any, names: list[str], cast: Sequence[str], device_type: str, key: str, *args: Any
) -> Any:
    """The op on arguments that are cast as autocast casts those of scaled_dot_product_attention.

    Caches are written in place and keep their dtype, which then is that of all.
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
