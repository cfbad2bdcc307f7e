"""A batch of ids alone, which is kept for the next prompt of its length, is the one of the general way."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from gemma_cuda.engine.batch import Batch, Prompt, make_batch
from gemma_cuda.model.kv_cache import KVCache
from gemma_cuda.model.kv_storage import HostMemory
from tests.support.hf_models import build
from tests.support.kernel_models import SIZE, load


def fields(batch: Batch) -> dict[str, Any]:
    """All but text_key, arrays as (dtype, values)."""
    found = dataclasses.asdict(batch) | {"text_key": None}
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
    ids_alone = make_batch(config, Prompt(ids), past=past)
    assert ids_alone.text_key == (tokens, begin, end)
    in_general = make_batch(config, Prompt(ids, attention_mask=np.ones((1, tokens), np.int64)), past=past)
    assert in_general.text_key is None
    assert fields(ids_alone) == fields(in_general)


def test_prompts_of_one_length_share_nothing_that_a_caller_can_change() -> None:
    model = load("gemma2", "numpy")
    ids = build("gemma2", SIZE).ids()[0, :5]
    first = model.prefill(ids)
    first.past_key_values.starts[:], first.past_key_values.ends[:] = 7, 7
    second = model.prefill(ids)
    assert (second.past_key_values.starts.tolist(), second.past_key_values.ends.tolist()) == ([0], [5])
    assert np.array_equal(first.logits, second.logits)
    batch = make_batch(model.config, Prompt(ids))
    arrays = [value for value in vars(batch).values() if isinstance(value, np.ndarray) and value is not batch.input_ids]
    arrays += vars(batch.queries).values()
    assert not any(array.flags.writeable for array in arrays)
