"""`attn_implementation="gemma_cuda"` with a dense mask of large negative numbers, where every row must stay finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.interop.transformers import register
from tests.support import hf_forward
from tests.support.compare import assert_within_rule
from tests.support.hf_models import TINY, build
from tests.support.parity import is_capped, padded, replaced

register()
register("gemma_cuda_emulator", device="emulator")
SIZES = {"gemma_cuda": TINY, "gemma_cuda_emulator": dataclasses.replace(TINY, head_dim=64)}
LOWEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).min)


def dense(mask: np.ndarray[Any, Any], hidden: float) -> np.ndarray[Any, Any]:
    """float32 [B, 1, S, S]: 0 where a query sees a key of its prompt, else `hidden`; padding has rows of it alone."""
    seen = np.tril(np.ones((mask.shape[1],) * 2, bool)) & mask.astype(bool)[:, None, None, :]
    return np.where(seen, 0, hidden).astype(np.float32)


@pytest.mark.parametrize("hidden", [-1e9, LOWEST])
@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("implementation", SIZES)
def test_a_left_padded_batch(implementation: str, name: str, hidden: float) -> None:
    size = SIZES[implementation]
    model, dtype = build(name, size), "float32" if size is TINY else "bfloat16"
    ids, mask = padded(model, [40, 23, 1])
    arguments = {"input_ids": ids, "attention_mask": dense(mask, hidden), "position_ids": mask.cumsum(1).clip(1) - 1}
    exact = model.float64 if dtype == "float32" else model.float64_bf16_scale
    own = replaced(name, dtype, size, implementation)
    y, r, b = (hf_forward.forward(m, **arguments).logits for m in (own, exact, getattr(model, dtype)))
    assert np.isfinite(y.astype(np.float32)).all()  # rows of padding, too: the next layer's keys come from them
    real = mask.astype(bool)
    assert_within_rule(y[real], r[real], b[real], dtype=dtype, softcap=is_capped(model), what=name)
