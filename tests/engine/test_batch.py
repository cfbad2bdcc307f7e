"""The two ways to a batch of text agree."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from gemma_cuda.engine.batch import Batch, make_batch, text_batch
from gemma_cuda.model.kv_cache import HostMemory, KVCache
from tests.support.hf_models import build
from tests.support.kernel_models import SIZE, load


def fields(batch: Batch) -> dict[str, Any]:
    """All but input_ids, arrays as (dtype, values)."""
    found = dataclasses.asdict(batch) | {"input_ids": None}
    found |= {f"queries.{name}": value for name, value in found.pop("queries").items()}
    return {name: (v.dtype.kind, v.tolist()) if isinstance(v, np.ndarray) else v for name, v in found.items()}


@pytest.mark.parametrize("name", ["gemma2", "paligemma2"])  # whose positions begin at 1
@pytest.mark.parametrize(("begin", "end", "tokens"), [(0, 0, 1), (0, 0, 9), (0, 7, 1), (3, 8, 5)])
def test_a_batch_of_text_is_that_of_its_ids(name: str, begin: int, end: int, tokens: int) -> None:
    config = load(name, "numpy").config
    past = None
    if end:
        past = KVCache.empty(config, 1, "", "float32", np.dtype(np.float32), HostMemory())
        past.starts, past.ends = np.array([begin], np.int32), np.array([end], np.int32)
    ids = build(name, SIZE).ids()[0, :tokens]
    expected = make_batch(
        config, input_ids=ids, inputs_embeds=None, attention_mask=None, position_ids=None, token_type_ids=None,
        attn_bias=None, past=past,
    )  # fmt: skip
    assert fields(text_batch(config, tokens, begin, end)) == fields(expected)
