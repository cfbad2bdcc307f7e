"""Modules `flash_attn` and `flash_attn_interface` whose attention is ours, for FlashAttention's own tests on a CPU.

Ours has no backward pass, but the tests ask for gradients before they look at the output: they get torch's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from benchmarks.peers.plain_attention import plain_attention
from gemma_cuda.errors import InputError
from gemma_cuda.interop import torch as interop


class _OnTheCpu(TorchFunctionMode):
    """Has "cuda" mean the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if str(options.get("device")).startswith("cuda"):
            options["device"] = "cpu"
        return function(*(["cpu" if isinstance(x, str) and x == "cuda" else x for x in args]), **options)


def install(is_ours: bool) -> None:
    """Puts the modules into their places, with our attention or a plain one, and has torch pretend to see a GPU."""
    functions = _Functions(is_ours)
    torch.set_num_threads(1)
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(total_memory=16 << 30)  # type: ignore[assignment]
    torch.cuda.synchronize = lambda *_: None
    _OnTheCpu().__enter__()
    _module(
        "flash_attn",
        flash_attn_func=functions.func,
        flash_attn_kvpacked_func=functions.kvpacked,
        flash_attn_qkvpacked_func=functions.qkvpacked,
        flash_attn_varlen_func=functions.varlen,
        flash_attn_varlen_kvpacked_func=functions.varlen_kvpacked,
        flash_attn_varlen_qkvpacked_func=functions.varlen_qkvpacked,
        flash_attn_with_kvcache=_lacks("flash_attn_with_kvcache"),
    )
    _module("flash_attn.bert_padding", pad_input=_pad_input, unpad_input=_unpad_input)
    _module(
        "flash_attn.flash_attn_interface",
        _get_block_size_n=_lacks("_get_block_size_n"),
        USE_TRITON_ROCM=False,
        _flash_attn_varlen_forward=_lacks("_flash_attn_varlen_forward"),
        flash_attn_gpu=SimpleNamespace(fwd=_lacks("flash_attn_gpu")),
    )
    _module("flash_attn.layers")
    _module("flash_attn.layers.rotary", apply_rotary_emb=_lacks("apply_rotary_emb"))
    _module(
        "flash_attn_interface",
        flash_attn_func=functions.func_3,
        flash_attn_varlen_func=functions.varlen_3,
        flash_attn_combine=_lacks("flash_attn_combine"),
        flash_attn_with_kvcache=_lacks("flash_attn_with_kvcache"),
        get_scheduler_metadata=_lacks("get_scheduler_metadata"),
    )


def _module(name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(members, __path__=[])
    sys.modules[name] = module


def _lacks(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise InputError(f"{name} has no counterpart in gemma_cuda")

    return refuse


class _Function(torch.autograd.Function):
    """A forward of ours or a plain one; backward is that of plain attention in float32."""

    @staticmethod
    def forward(ctx: Any, attention: Any, plain: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.plain = plain
        ctx.save_for_backward(*tensors)
        o, lse = attention(*(x.detach() for x in tensors))
        ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            o, _ = ctx.plain(*leaves)
            return (None, None, *torch.autograd.grad(o, leaves, gradient))


class _Functions:
    """flash_attn's functions, by our attention or by a plain one."""

    def __init__(self, is_ours: bool) -> None:
        self._is_ours = is_ours

    def attend(
        self,
        tensors: Sequence[Tensor],
        cu_seqlens: Sequence[Tensor],
        scale: float | None = None,
        causal: bool = False,
        window_size: Any = (-1, -1),
        softcap: float = 0.0,
        probs: bool = False,
        **refused: Any,
    ) -> Any:
        """What flash_attn's functions give, of [B, S, H, D], or [S, H, D] with cu_seqlens of queries and keys."""
        name = "flash_attn_varlen_func" if cu_seqlens else "flash_attn_func"
        function: Callable[..., Any] = getattr(interop, name)

        def ours(*qkv: Tensor) -> tuple[Tensor, Tensor]:
            lengths = [int(x.diff().max()) for x in cu_seqlens]
            o, lse, _ = function(
                *qkv, *cu_seqlens, *lengths, softmax_scale=scale, causal=causal, window_size=window_size,
                softcap=softcap, return_attn_probs=True, **refused,
            )  # fmt: skip
            return o, lse

        def plain(*qkv: Tensor) -> tuple[Tensor, Tensor]:
            left, right = (int(bound) for bound in window_size)
            return plain_attention(
                *qkv, cu_seqlens=cu_seqlens, scale=scale, left=left, right=0 if causal else right, softcap=softcap
            )

        if not self._is_ours and any(x is not None and x != 0 for x in refused.values()):
            raise InputError("the plain attention has neither dropout nor alibi_slopes")
        o, lse = _Function.apply(ours if self._is_ours else plain, plain, *tensors)  # type: ignore[no-untyped-call]
        return (o, lse, o.new_empty(0)) if probs else o

    def func(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Any = None,
        causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
        deterministic: bool = False, return_attn_probs: bool = False,
    ) -> Any:  # fmt: skip
        return self.attend(
            (q, k, v), (), softmax_scale, causal, window_size, softcap, return_attn_probs, dropout_p=dropout_p,
            alibi_slopes=alibi_slopes,
        )  # fmt: skip

    def kvpacked(self, q: Tensor, kv: Tensor, *arguments: Any, **options: Any) -> Any:
        return self.func(q, *kv.unbind(2), *arguments, **options)

    def qkvpacked(self, qkv: Tensor, *arguments: Any, **options: Any) -> Any:
        return self.func(*qkv.unbind(2), *arguments, **options)

    def varlen(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False,
        window_size: Any = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None, deterministic: bool = False,
        return_attn_probs: bool = False, block_table: Any = None,
    ) -> Any:  # fmt: skip
        options = {} if block_table is None else {"block_table": block_table}
        return self.attend(
            (q, k, v), (cu_seqlens_q, cu_seqlens_k), softmax_scale, causal, window_size, softcap, return_attn_probs,
            dropout_p=dropout_p, alibi_slopes=alibi_slopes, **options,
        )  # fmt: skip

    def varlen_kvpacked(self, q: Tensor, kv: Tensor, *arguments: Any, **options: Any) -> Any:
        return self.varlen(q, *kv.unbind(1), *arguments, **options)

    def varlen_qkvpacked(
        self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *arguments: Any, **options: Any
    ) -> Any:
        return self.varlen(*qkv.unbind(1), cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, *arguments, **options)

    def func_3(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        return self.func(q, k, v, **_version_3(options))

    def varlen_3(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, seqused_q: Tensor | None = None, seqused_k: Tensor | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        for used, offsets in ((seqused_q, cu_seqlens_q), (seqused_k, cu_seqlens_k)):
            if used is not None and not torch.equal(used, offsets.diff()):
                raise InputError("seqused has no counterpart in gemma_cuda")
        return self.varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **_version_3(options))


def _version_3(options: dict[str, Any]) -> dict[str, Any]:
    """Options as flash-attn 2 has them, without those that change no result."""
    for name in ("qv", "q_descale", "k_descale", "v_descale", "attention_chunk"):
        if options.pop(name, None) not in (None, 0):
            raise InputError(f"{name} has no counterpart in gemma_cuda")
    return {name: value for name, value in options.items() if name not in ("num_splits", "pack_gqa", "sm_margin")}


def _unpad_input(x: Tensor, mask: Tensor, unused_mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """x [B, S, ...] at the true tokens of mask [B, S]; their places; cu_seqlens; longest; lengths."""
    taken = mask if unused_mask is None else mask | unused_mask
    places = taken.flatten().nonzero().flatten()
    lengths = taken.sum(-1, dtype=torch.int32)
    offsets = pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return x.flatten(0, 1)[places], places, offsets, lengths.max().item(), mask.sum(-1, dtype=torch.int32)


def _pad_input(x: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
    """[B, S, ...] with zeros where unpad_input took nothing."""
    zeros = x.new_zeros(batch * length, *x.shape[1:])
    return zeros.index_put((places,), x).unflatten(0, (batch, length))
