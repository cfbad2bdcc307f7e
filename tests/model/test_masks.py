"""Key intervals against the rules of each Gemma, written as dense masks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cuda.config import LayerConfig
from gemma_cuda.formats.gemma_config import GemmaConfig
from gemma_cuda.model.masks import Queries, key_range, spans

TEXT = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip


@cache
def config(family: str, window: int) -> GemmaConfig:
    model_type, options = {
        "gemma2": ("gemma2", {}),
        "paligemma2": ("gemma2", {}),
        "gemma3": ("gemma3_text", {}),
        "embedding": ("gemma3_text", {"use_bidirectional_attention": True}),
        "gemma4": ("gemma4_text", {"use_bidirectional_attention": "vision"}),
        "gemma4_all": ("gemma4_text", {"use_bidirectional_attention": "all"}),
    }[family]
    d: dict[str, Any] = {**TEXT, **options, "model_type": model_type, "sliding_window": window}
    composite = {"gemma3": "gemma3", "gemma4": "gemma4", "paligemma2": "paligemma"}.get(family)
    if composite is not None:
        d = {"model_type": composite, "text_config": d}
    return GemmaConfig.from_dict(d, source="config.json")


def layer(c: GemmaConfig, kind: str) -> LayerConfig:
    return next(x for x in c.layers if x.layer_type == kind)


def intervals(c: GemmaConfig, kind: str, types: np.ndarray, start: int, past: int) -> np.ndarray:
    """bool [n, start + past + n]: the mask that key_range means for n new tokens after `past`."""
    n = len(types)
    slots = np.arange(start + past, start + past + n, dtype=np.int32)
    begin, end = slots.copy(), slots + np.int32(1)
    for a, b in spans(c, types.astype(np.int64), slots):
        begin[a - slots[0] : b - slots[0]], end[a - slots[0] : b - slots[0]] = a, b
    queries = Queries(slots, np.full_like(slots, start), np.full_like(slots, slots[-1] + 1), begin, end)
    lo, hi = key_range(c, layer(c, kind), queries)
    assert (np.diff(lo) >= 0).all() and (np.diff(hi) >= 0).all(), "both ends rise with the query"
    t = np.arange(start + past + n)
    return (t >= lo[:, None]) & (t < hi[:, None])


def blocks_of(inside: np.ndarray) -> np.ndarray:
    """Number of the run a token belongs to; -1 outside."""
    edges = np.diff(np.concatenate(([0], inside.astype(int))))
    return np.where(inside, np.cumsum(edges == 1), -1)


def rule(family: str, kind: str, w: int, types: np.ndarray, start: int, past: int) -> np.ndarray:
    """The same mask by gemma-spec's sentences: q, k absolute slots, visible iff true."""
    n = len(types)
    all_types = np.concatenate((np.full(start + past, 1 if family == "paligemma2" else 0), types))
    q, k = np.arange(start + past, start + past + n)[:, None], np.arange(start + past + n)[None]
    image = {"gemma3": all_types == 1, "gemma4": (all_types == 1) | (all_types == 2), "paligemma2": all_types == 0}
    block = blocks_of(image.get(family, np.zeros(len(all_types), bool)))
    same = (block[q] == block[k]) & (block[q] >= 0)
    causal, window, sliding = k <= q, k > q - w, kind == "sliding_attention"
    if family == "gemma3":
        visible = (causal | same) & (window if sliding else True)
    elif family == "gemma4":
        visible = (causal | same) & window if sliding else causal
    elif family == "paligemma2":
        visible = (causal & (window if sliding else True)) | same
    elif family == "embedding":
        # transformers halves the stored window on load (w // 2 + 1) and then sees |q - k| < that
        visible = np.abs(q - k) < w // 2 + 1 if sliding else np.ones_like(causal)
    elif family == "gemma4_all":
        visible = np.abs(q - k) <= w // 2 + 1 if sliding else np.ones_like(causal)
    else:
        visible = causal & (window if sliding else True)
    return np.broadcast_to(visible & (k >= start), (n, start + past + n))


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gemma4", "paligemma2", "embedding", "gemma4_all"])
@given(data=st.data())
def test_key_range_is_the_rule(family: str, kind: str, data: st.DataObject) -> None:
    n, w = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 12))
    start = data.draw(st.integers(0, 4))
    past = 0 if family in ("embedding", "gemma4_all") else data.draw(st.integers(0, 10))
    if family == "paligemma2":
        past = 0
        prefix = data.draw(st.integers(0, n))
        types = np.concatenate((np.zeros(prefix), np.ones(n - prefix))).astype(int)
    else:
        types = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    c = config(family, w)
    np.testing.assert_array_equal(intervals(c, kind, types, start, past), rule(family, kind, w, types, start, past))


def test_window_counts_the_query_itself() -> None:
    seen = intervals(config("gemma2", 4), "sliding_attention", np.zeros(10, int), 0, 0)
    assert seen.sum(axis=1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]


def test_a_long_image_sees_its_future_but_not_beyond_the_window_in_the_past() -> None:
    types = np.ones(12, int)
    seen = intervals(config("gemma3", 4), "sliding_attention", types, 0, 0)
    assert seen[8].tolist() == [False] * 5 + [True] * 7
