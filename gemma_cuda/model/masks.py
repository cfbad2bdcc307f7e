"""Which keys a query sees.

For every rule of every Gemma the visible keys of a query are one interval, and both of its ends rise with the query.
So a mask is two int32 arrays, `key_begin` and `key_end`: no dense mask exists, a tile of queries reads its key range
from its first and last row, and a tile inside [last key_begin, first key_end) needs no element test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import LayerConfig, ModelConfig
from ..errors import InputError

Int32 = NDArray[np.int32]

# token_type_ids of HuggingFace's processors
TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3


@dataclass(frozen=True)
class Queries:
    """Consecutive queries of one batch row as the masks see them; all int32 [n], in cache slots of that row."""

    slots: Int32
    # of the query's sequence: [first, last) are its slots, so far; slots below are padding or another packed sequence
    first: Int32
    last: Int32
    span_begin: Int32  # the bidirectional span that holds the query, or the query alone: [span_begin, span_end)
    span_end: Int32


def key_range(config: ModelConfig, layer: LayerConfig, queries: Queries) -> tuple[Int32, Int32]:
    """(key_begin, key_end), int32 [n]: query i sees the slots key_begin[i] <= t < key_end[i] of its batch row."""
    q, begin, end = queries.slots, queries.first, queries.slots + 1
    sliding = layer.sliding_window is not None
    if config.bidirectional == "text":
        end = queries.last
        if sliding:
            assert config.bidirectional_radius is not None
            begin = np.maximum(begin, q - config.bidirectional_radius)
            end = np.minimum(end, q + config.bidirectional_radius + 1)
        return begin, end
    if layer.sliding_window is not None:
        begin = np.maximum(begin, q - layer.sliding_window + 1)
    if config.bidirectional == "vision_all_layers" or (config.bidirectional == "vision_sliding_layers" and sliding):
        end = np.maximum(end, queries.span_end)  # the window still cuts the past, inside a span too
    elif config.bidirectional == "prefix":
        begin, end = np.minimum(begin, queries.span_begin), np.maximum(end, queries.span_end)
    return begin, end


def spans(config: ModelConfig, token_type_ids: NDArray[np.int64] | None, slots: Int32) -> list[tuple[int, int]]:
    """The bidirectional spans [begin, end), in slots, of the tokens in `slots` (rising by 1).

    Gemma 3: maximal runs of image tokens; Gemma 4: of image and video tokens; PaliGemma: the prefix (type 0).
    """
    inside = _in_span(config, token_type_ids)
    if inside is None:
        return []
    edges = np.diff(np.concatenate(([0], inside.astype(np.int8), [0])))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(slots[begin]), int(slots[end - 1]) + 1) for begin, end in zip(begins, ends, strict=True)]


def _in_span(config: ModelConfig, token_type_ids: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
    """bool [n], true for tokens inside a bidirectional span; None where the model or the prompt has none."""
    if token_type_ids is None or config.bidirectional in (None, "text"):
        return None
    if config.bidirectional == "prefix":
        prefix = token_type_ids == TEXT
        if np.any(prefix[1:] & ~prefix[:-1]):
            raise InputError(
                "token_type_ids: a prefix token (0) follows a suffix token (1); PaliGemma's prefix comes first"
            )
        return np.asarray(prefix)
    if config.bidirectional == "vision_all_layers":
        return np.asarray(token_type_ids == IMAGE)
    return np.asarray((token_type_ids == IMAGE) | (token_type_ids == VIDEO))
