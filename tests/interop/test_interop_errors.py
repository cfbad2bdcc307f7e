"""Refused calls of the functions for the caller's arrays: one clear error each, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gemma_cuda
from gemma_cuda.errors import InputError
from gemma_cuda.interop import torch as ours

Q, K = np.zeros((2, 5, 4, 64), np.float32), np.zeros((2, 7, 2, 64), np.float32)
PACKED_Q, PACKED_K = np.zeros((5, 4, 64), np.float32), np.zeros((7, 2, 64), np.float32)
TENSOR = torch.zeros(2, 5, 4, 64)


def attend(**changes: Any) -> Any:
    arguments = {"q": Q, "k": K, "v": K} | changes
    return gemma_cuda.attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def attend_packed(**changes: Any) -> Any:
    return attend(**({"q": PACKED_Q, "k": PACKED_K, "v": PACKED_K, "layout": "SHD"} | changes))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no array": (
        lambda: attend(q=[[1.0]]),
        "attention: q is [[1.0]], expected an array of NumPy, torch, CuPy or JAX",
    ),
    "two libraries": (
        lambda: attend(k=torch.zeros(2, 7, 2, 64)),
        "attention: k is of torch, q of NumPy; bring all arrays of one library",
    ),
    "meta tensor": (
        lambda: attend(q=TENSOR.to("meta")),
        "attention: q is on meta, expected a tensor on the CPU or a CUDA GPU",
    ),
    "complex tensor": (
        lambda: attend(q=TENSOR.to(torch.complex64)),
        "attention: q is torch.complex64, expected one of",
    ),
    "byte order": (lambda: attend(q=Q.astype(">f4")), "its bytes are in another order than this machine's"),
    "layout": (lambda: attend(layout="BDHS"), "attention: layout is 'BDHS', expected one of BSHD, BHSD, SHD"),
    "rank of q": (lambda: attend(q=PACKED_Q), "attention: q is [5, 4, 64], expected [B, S, H, D] (layout BSHD)"),
    "rank of k": (
        lambda: attend(k=PACKED_K, layout="BHSD"),
        "attention: k is [7, 2, 64], expected [B, KH, T, D] (layout BHSD)",
    ),
    "rank in SHD": (lambda: attend(layout="SHD"), "attention: q is [2, 5, 4, 64], expected [S, H, D] (layout SHD)"),
    "batch of k": (
        lambda: attend(k=K[:1]),
        "attention: k is [1, 7, 2, 64], expected [B, T, KH, D] = [2, 7, 2, 64] (layout BSHD, q [2, 5, 4, 64])",
    ),
    "shape of v": (
        lambda: attend(v=K[:, :6]),
        "attention: v is [2, 6, 2, 64], expected [B, T, KH, D] = [2, 7, 2, 64] (layout BSHD, q [2, 5, 4, 64], "
        "k [2, 7, 2, 64])",
    ),
    "head_dim of k": (
        lambda: attend(k=K[..., :32]),
        "attention: k is [2, 7, 2, 32], expected [B, T, KH, D] = [2, 7, 2, 64]",
    ),
    "heads": (
        lambda: attend(q=Q[:, :, :3]),
        "attention: 3 query heads do not divide among 2 KV heads (layout BSHD)",
    ),
    "no KV heads": (
        lambda: attend(k=K[:, :, :0], v=K[:, :, :0]),
        "attention: 4 query heads do not divide among 0 KV heads",
    ),
    "integer q": (lambda: attend(q=Q.astype(int)), "attention: q is int64, expected one of float32, float64"),
    "dtype of k": (lambda: attend(k=K.astype(np.float16)), "attention: k is float16, expected float32 as q"),
    "scale": (
        lambda: attend(scale=float("inf")),
        "attention: scale is inf, expected a finite number, or None for D ** -0.5",
    ),
    "softcap": (
        lambda: attend(softcap=0.0),
        "attention: softcap is 0.0, expected a positive number, or None for no cap",
    ),
    "softcap nan": (lambda: attend(softcap=float("nan")), "attention: softcap is nan, expected a positive number"),
    "window": (
        lambda: attend(sliding_window=0),
        "attention: sliding_window is 0, expected an integer of at least 1 (the query itself), or None",
    ),
    "offset below": (
        lambda: attend(q_offset=-1),
        "attention: q_offset is -1, expected 0 to T - S = 2 (layout BSHD, 5 queries",
    ),
    "offset above": (lambda: attend(q_offset=[0, 3]), "attention: q_offset is 3, expected 0 to T - S = 2"),
    "offsets": (lambda: attend(q_offset=[0, 0, 0]), "attention: q_offset is [3], expected an int or [B] = [2]"),
    "offset type": (lambda: attend(q_offset=1.5), "attention: q_offset is float64, expected integers"),
    "bias": (
        lambda: attend(attn_bias=np.zeros((4, 5, 6), np.float32)),
        "attention: attn_bias is [4, 5, 6], which does not broadcast to [B, H, S, T] = [2, 4, 5, 7] (layout BSHD)",
    ),
    "bias bool": (lambda: attend(attn_bias=np.ones((5, 7), bool)), "attention: attn_bias is bool, expected a float"),
    "bias packed": (
        lambda: attend_packed(attn_bias=np.zeros((1, 4, 5, 7), np.float32)),
        "attention: attn_bias is [1, 4, 5, 7], which does not broadcast to [H, S, T] = [4, 5, 7] (layout SHD)",
    ),
    "block ids": (
        lambda: attend(block_ids=[0, 0, 0]),
        "attention: block_ids is [3], expected [T] or [B, T] = [7] or [2, 7] (layout BSHD)",
    ),
    "block id twice": (
        lambda: attend(block_ids=[[0, 0, 1, 1, 2, 2, 2], [3, 3, -1, 3, 4, 4, -1]]),
        "attention: block_ids: id 3 stands in two places, from tokens 0 and 3; a block is one run of tokens",
    ),
    "cu_seqlens": (
        lambda: attend(cu_seqlens_q=[0, 5]),
        "attention: cu_seqlens are of packed sequences: layout SHD, not BSHD",
    ),
    "cu_seqlens fall": (
        lambda: attend_packed(cu_seqlens_q=[0, 3, 2, 5], cu_seqlens_k=[0, 1, 2, 7]),
        "attention: cu_seqlens_q is [0, 3, 2, 5], expected [B + 1] rising from 0 to S = 5 (layout SHD)",
    ),
    "cu_seqlens end": (
        lambda: attend_packed(cu_seqlens_q=[0, 5], cu_seqlens_k=[0, 6]),
        "attention: cu_seqlens_k is [0, 6], expected [B + 1] rising from 0 to T = 7 (layout SHD)",
    ),
    "cu_seqlens_k missing": (
        lambda: attend_packed(cu_seqlens_q=[0, 5]),
        "attention: cu_seqlens_k (as cu_seqlens_q) is [0, 5], expected [B + 1] rising from 0 to T = 7",
    ),
    "cu_seqlens_q missing": (
        lambda: attend_packed(cu_seqlens_k=[0, 7]),
        "attention: cu_seqlens_k is given without cu_seqlens_q",
    ),
    "cu_seqlens differ": (
        lambda: attend_packed(cu_seqlens_q=[0, 2, 5], cu_seqlens_k=[0, 7]),
        "attention: cu_seqlens_q has 3 entries, cu_seqlens_k 2",
    ),
    "max_seqlen": (
        lambda: attend_packed(cu_seqlens_q=[0, 1, 5], cu_seqlens_k=[0, 3, 7], max_seqlen_q=3),
        "attention: max_seqlen_q is 3, but a sequence has 4 tokens",
    ),
    "max_seqlen alone": (
        lambda: attend(max_seqlen_k=7),
        "attention: max_seqlen_k is given without cu_seqlens_k (layout BSHD)",
    ),
    "out shape": (
        lambda: attend(out=Q[:1].copy()),
        "attention: out is float32 [1, 5, 4, 64], expected float32 [B, S, H, D] = [2, 5, 4, 64] (layout BSHD)",
    ),
    "out read-only": (lambda: attend(out=np.broadcast_to(Q[:1], Q.shape)), "attention: out cannot be written"),
    "device": (
        lambda: attend(device="cuda"),
        "attention: device is 'cuda', but the arrays are on cpu: expected None, 'numpy' or 'emulator'",
    ),
    "kernel dtype": (
        lambda: attend(device="emulator"),
        "attention: q is float32, kernels take bfloat16 or float16; use device=None, the NumPy reference",
    ),
    "kernel bias": (
        lambda: attend(
            **{x: np.zeros((1, 2, 1, 64), np.float16) for x in "qkv"}, attn_bias=np.zeros(2), device="emulator"
        ),
        "attention: attn_bias is float64, kernels take float32, bfloat16 or float16",
    ),
    "kernel head_dim": (
        lambda: attend(**dict.fromkeys("qkv", np.zeros((1, 2, 1, 80), np.float16)), device="emulator"),
        "attention: D is 80, kernels take 64, 128, 256; use device=None, the NumPy reference",
    ),
    "gradients": (
        lambda: gemma_cuda.attention(TENSOR.clone().requires_grad_(), TENSOR, TENSOR),
        "attention: q requires gradients and there is no backward pass; call it inside torch.no_grad()",
    ),
    "gradients of the op": (
        lambda: ours.attention(TENSOR.clone().requires_grad_(), TENSOR, TENSOR),
        "attention: an input requires gradients and there is no backward pass; call it inside torch.no_grad()",
    ),
    "rms_norm scalar": (lambda: gemma_cuda.rms_norm(np.array(1.0)), "rms_norm: x is [], expected [..., E]"),
    "rms_norm weight": (
        lambda: gemma_cuda.rms_norm(Q, np.ones(32, np.float32)),
        "rms_norm: weight is [32], expected [E] = [64]",
    ),
    "rms_norm dtype": (
        lambda: gemma_cuda.rms_norm(Q, np.ones(64, np.float16)),
        "rms_norm: weight is float16, expected float32 as the first argument",
    ),
    "rms_norm eps": (lambda: gemma_cuda.rms_norm(Q, eps=-1.0), "eps is -1.0, expected a finite number of at least 0"),
    "rms_norm kernel": (
        lambda: gemma_cuda.rms_norm(Q.astype(np.float64), device="emulator"),
        "rms_norm: x is float64, kernels take float32, bfloat16, float16",
    ),
    "geglu": (lambda: gemma_cuda.geglu(Q, K), "geglu: up is [2, 7, 2, 64], expected [..., F] = [2, 5, 4, 64]"),
    "geglu out": (
        lambda: gemma_cuda.geglu(Q, Q, out=K.copy()),
        "geglu: out is [2, 7, 2, 64], expected [as the first argument] = [2, 5, 4, 64]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(InputError, match=re.escape(message)):
        call()


def test_nothing_is_written_by_a_refused_call() -> None:
    out = np.full_like(Q, 7)
    with pytest.raises(InputError):
        attend(out=out, softcap=-1.0)
    assert (out == 7).all()


X = np.zeros((3, 4 * 64), np.float32)
TABLE = np.zeros((5, 32), np.float32)
CACHE = np.zeros((6, 1, 64), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cos": TABLE[0]}, "cos is [32], expected [P, D/2]"),
        ({"sin": TABLE[:4]}, "sin is float32 [4, 32], expected float32 [P, D/2] = [5, 32]"),
        ({"k_cache": None}, "k_cache and v_cache are needed together"),
        ({"k_cache": None, "v_cache": None, "slots": np.arange(3)}, "slots are given, but no k_cache and v_cache"),
        ({"k_cache": CACHE[0], "v_cache": CACHE[0]}, "k_cache is [1, 64], expected [rows, KH, D]"),
        ({"v_cache": CACHE[:5]}, "v_cache is [5, 1, 64], expected [rows, KH, D] = [6, 1, 64]"),
        ({"heads": 0, "k_cache": None, "v_cache": None}, "heads is 0 without a k_cache: there is nothing to do"),
        ({"heads": 3}, "x is [3, 256], expected [N, 320] of 3 query heads and 1 keys and values, D = 64"),
        ({"q_weight": np.ones(32, np.float32)}, "q_weight is [32], expected [D] = [64]"),
        ({"pairs": 33}, "pairs, a part of D/2, is 33, expected an integer from 0 to 32"),
        ({"positions": np.array([0, 1, 5])}, "positions holds 5, outside the 5 rows of cos"),
        ({"slots": np.array([0, 1, -1])}, "slots holds -1, outside the 6 rows of k_cache"),
        ({"slots": np.arange(2)}, "slots is [2], expected [N] = [3]"),
    ],
)
def test_qk_norm_rope_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "heads": 2, "cos": TABLE, "sin": TABLE, "k_cache": CACHE, "v_cache": CACHE}
    with pytest.raises(InputError, match=re.escape(f"qk_norm_rope: {message}")):
        gemma_cuda.qk_norm_rope(**(arguments | changes))
