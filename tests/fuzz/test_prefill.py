"""Random batches over caches: what whole prompts and Transformers give, and no call that fails leaves a trace.

All in float64, where two ways of computing the same thing differ by 1e-13, and another mask by far more than MOST.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemma_cuda
from gemma_cuda import KVCache
from gemma_cuda.errors import GemmaError
from tests.support import hf_forward
from tests.support.cache_state import state
from tests.support.fuzz import examples
from tests.support.hf_models import BOI, FIRST_TEXT_ID, build
from tests.support.parity import ours

NAMES = ("gemma_mqa", "gemma2", "gemma3_text", "gemma4_e2b")
Array = np.ndarray[Any, Any]
MOST = 1e-8


@dataclass
class Row:
    """A row of a batch as its caller knows it: all tokens so far, and their positions."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def logits(self, gemma: gemma_cuda.Gemma) -> Array:
        """[tokens, V] of one whole prefill of this row alone."""
        return gemma.prefill(self.ids, position_ids=self.positions, logits_to_keep=0).logits[0]  # type: ignore[no-any-return]


def draw_rows(draw: Any, rows: list[Row], gaps: bool) -> list[list[int]]:
    """Each row's next tokens, which the rows take up; gaps: positions may leave some out."""
    new = []
    for row in rows:
        ids = draw(st.lists(st.integers(FIRST_TEXT_ID, BOI - 1), min_size=1, max_size=6))
        for token in ids:
            step = draw(st.integers(1, 9)) if gaps else 1
            row.positions.append(row.positions[-1] + step if row.positions else step - 1)
            row.ids.append(token)
        new.append(ids)
    return new


def laid_out(draw: Any, new: list[list[int]], rows: list[Row], gaps: bool) -> dict[str, Any]:
    """Arguments of a prefill of these tokens: ragged rows, or padded ones with a mask; with positions or without."""
    width = max(map(len, new)) + draw(st.integers(0, 2))
    arguments: dict[str, Any] = {"input_ids": new}
    begins = [0] * len(new)
    if draw(st.booleans()):
        begins = [draw(st.integers(0, width - len(ids))) for ids in new]
        arguments = {"input_ids": np.zeros((len(new), width), int), "attention_mask": np.zeros((len(new), width), int)}
        for b, (ids, begin) in enumerate(zip(new, begins, strict=True)):
            arguments["input_ids"][b, begin : begin + len(ids)] = ids
            arguments["attention_mask"][b, begin : begin + len(ids)] = 1
    if gaps:
        columns = width if "attention_mask" in arguments else max(map(len, new))
        arguments["position_ids"] = np.full((len(new), columns), 3)
        for b, (ids, begin, row) in enumerate(zip(new, begins, rows, strict=True)):
            arguments["position_ids"][b, begin : begin + len(ids)] = row.positions[-len(ids) :]
    return arguments


def fail(draw: Any, gemma: gemma_cuda.Gemma, cache: KVCache, new: list[list[int]], folder: Path) -> None:
    """One of the calls that fail, over a cache."""

    def stop(layer: int, x: Array) -> None:
        if layer == at:
            raise KeyboardInterrupt

    at = draw(st.integers(0, gemma.config.num_hidden_layers - 1))
    hole = np.ones((len(new), cache.seq_length + 3), int)
    hole[-1, -2] = 0
    padding = np.ones((len(new), cache.seq_length + 1), int)
    padding[0, -2:] = 2, 1
    calls = {
        "interrupt": lambda: gemma.prefill(new, past_key_values=cache, layer_hook=stop),
        "wrong hook": lambda: gemma.prefill(new, past_key_values=cache, layer_hook=lambda layer, x: x[:, :0]),
        "hole": lambda: gemma.prefill([[5] * 3] * len(new), attention_mask=hole, past_key_values=cache),
        "mask": lambda: gemma.prefill([[5]] * len(new), attention_mask=padding, past_key_values=cache),
        "ids": lambda: gemma.prefill([[-1]] * len(new), past_key_values=cache),
        "batch": lambda: gemma.prefill([[5]] * (len(new) + 1), past_key_values=cache),
        "keep": lambda: gemma.prefill(new, past_key_values=cache, logits_to_keep=-at - 1),
        "crop": lambda: cache.crop(draw(st.sampled_from([1.5, float("nan"), None, 99, -99, "1"]))),
        "reserve": lambda: cache.reserve(draw(st.sampled_from([1.5, float("nan"), -1, 1 << 40]))),
        "save": lambda: cache.save(folder),
        "second user": lambda: gemma.prefill(new, past_key_values=cache, layer_hook=lambda layer, x: cache.crop(0)),
    }
    before = state(cache)
    with pytest.raises((GemmaError, KeyboardInterrupt)):
        calls[draw(st.sampled_from(sorted(calls)))]()
    assert state(cache) == before


def assert_kept(
    gemma: gemma_cuda.Gemma, out: Any, new: list[list[int]], mask: Array | None, keep: int, rows: list[Row]
) -> None:
    """The logits that were kept stand where they belong, and are those of each row's whole prompt alone."""
    width = max(map(len, new)) if mask is None else mask.shape[1]
    kept = width if keep == 0 else min(keep, width)
    assert out.logits.shape[:2] == out.last_hidden_state.shape[:2] == (len(rows), kept)
    for b, (ids, row) in enumerate(zip(new, rows, strict=True)):
        if keep == 0:
            columns = np.arange(len(ids)) if mask is None else np.flatnonzero(mask[b])
        else:
            shown = min(keep, len(ids))
            columns = np.arange(out.logits.shape[1] - shown, out.logits.shape[1])
        empty = np.delete(out.logits[b], columns, axis=0)
        assert np.isnan(empty).all() and np.isfinite(out.logits[b, columns]).all()
        assert np.abs(out.logits[b, columns] - row.logits(gemma)[-len(columns) :]).max() < MOST


@pytest.mark.parametrize("name", NAMES)
@examples(12)
@given(data=st.data())
def test_chunks_crops_and_failures(name: str, data: st.DataObject, tmp_path: Path) -> None:
    """A batch that grows chunk by chunk equals each of its rows alone, whatever fails or is forgotten in between."""
    draw, gemma = data.draw, ours(name, "float64")
    rows = [Row() for _ in range(draw(st.integers(1, 3), label="rows"))]
    gaps = draw(st.booleans(), label="gaps")
    cache: KVCache | None = None
    for _ in range(draw(st.integers(1, 4), label="chunks")):
        if cache is not None and draw(st.booleans(), label="fail"):
            fail(draw, gemma, cache, [[7, 8]] * len(rows), tmp_path)
        if cache is not None and draw(st.booleans(), label="crop"):
            keep = draw(st.integers(int(cache.starts.max()) + 1, cache.seq_length))
            try:
                cache.crop(keep)
            except GemmaError as error:
                assert "was trimmed to its sliding window" in str(error)
            for b, row in enumerate(rows):
                left = int(cache.ends[b] - cache.starts[b])
                row.ids, row.positions = row.ids[:left], row.positions[:left]
        positions = gaps or any(row.positions != list(range(len(row.positions))) for row in rows)
        new = draw_rows(draw, rows, gaps)
        arguments = laid_out(draw, new, rows, positions)
        keep = draw(st.integers(0, 8), label="keep")
        out = gemma.prefill(
            **arguments, past_key_values=cache, logits_to_keep=keep, trim_sliding=draw(st.booleans(), label="trim")
        )
        cache = out.past_key_values
        assert_kept(gemma, out, new, arguments.get("attention_mask"), keep, rows)


@pytest.mark.parametrize("name", NAMES)
@examples(8)
@given(data=st.data())
def test_masks_over_caches_equal_transformers(name: str, data: st.DataObject) -> None:
    """Rows that are padded left, in two chunks, of which the second does not see the first tokens of each row."""
    draw, model, gemma = data.draw, build(name), ours(name, "float64")
    batch, cached, new = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 8))
    ids = model.ids(cached + new, batch=batch, seed=draw(st.integers(0, 99)))
    pads = np.array([draw(st.integers(0, cached - 1)) for _ in range(batch)])
    hidden = np.array([draw(st.integers(pad, cached)) for pad in pads])
    columns = np.arange(cached + new)
    mask, shown = ((columns >= begins[:, None]).astype(np.int64) for begins in (pads, hidden))
    positions = np.maximum(columns - pads[:, None], 0) * draw(st.sampled_from([1, 3]))
    first = {"attention_mask": mask[:, :cached], "position_ids": positions[:, :cached]}
    second = {"attention_mask": shown, "position_ids": positions[:, cached:]}
    past = hf_forward.forward(model.float64, ids[:, :cached], **first).cache
    expected = hf_forward.forward(model.float64, ids[:, cached:], cache=past, **second)
    cache = gemma.prefill(ids[:, :cached], **first).past_key_values
    out = gemma.prefill(ids[:, cached:], past_key_values=cache, logits_to_keep=0, **second)
    assert np.abs(out.logits - expected.logits).max() < MOST


@pytest.mark.parametrize("name", NAMES)
@examples(8)
@given(steps=st.lists(st.integers(1, 12), max_size=20), first=st.integers(0, 30))
def test_positions_with_gaps_equal_transformers(name: str, steps: list[int], first: int) -> None:
    model = build(name)
    positions = np.array([list(itertools.accumulate(steps, initial=first))])
    ids = model.ids(positions.size)
    expected = hf_forward.forward(model.float64, ids, position_ids=positions)
    out = ours(name, "float64").prefill(ids, position_ids=positions, logits_to_keep=0)
    assert np.abs(out.logits - expected.logits).max() < MOST
