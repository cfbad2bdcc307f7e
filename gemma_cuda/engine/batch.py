"""Turns the arguments of a prefill into packed tokens, or refuses them in the caller's words.

Padding never reaches a kernel: the real tokens of all rows stand one after another, [N], and know the row and cache
slot they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments
from ..config import LayerType, ModelConfig
from ..errors import CacheError, InputError
from ..model.kv_cache import KVCache
from ..model.masks import AUDIO, Queries, spans
from ..precision import Array
from . import embeddings

Ids = ArrayLike | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """N real tokens of B rows, row b at cu_seqlens[b] : cu_seqlens[b + 1]."""

    batch_size: int
    seq_len: int  # S: columns of the caller's layout
    column: NDArray[np.int64]  # [N] of the caller's layout
    row: NDArray[np.int64]  # [N]
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    slots: NDArray[np.int32]  # [N] in the cache row
    position_ids: NDArray[np.int64]  # [N]
    queries: Queries  # slots again, with what the masks need
    spans: list[list[tuple[int, int]]]  # bidirectional spans [begin, end) of each row, in slots
    input_ids: NDArray[np.int64] | None  # [N]
    inputs_embeds: Any | None  # [B, S, E] in the caller's layout; see embeddings.packed
    attn_bias: Mapping[LayerType, Array]  # [B or 1, H or 1, S, T], replaces the layer type's mask

    def unpack(self, packed: Array) -> Array:
        """[B, S, …] in the caller's layout from packed [N, …]; padding is 0."""
        out = np.zeros((self.batch_size, self.seq_len, *packed.shape[1:]), packed.dtype)
        out[self.row, self.column] = packed
        return out


def make_batch(
    config: ModelConfig,
    *,
    input_ids: Ids | None,
    inputs_embeds: Any | None,
    attention_mask: ArrayLike | None,
    position_ids: ArrayLike | None,
    token_type_ids: ArrayLike | None,
    attn_bias: ArrayLike | Mapping[LayerType, ArrayLike] | None,
    past: KVCache | None,
) -> Batch:
    """The packed form of a prefill's arguments (see `Gemma.prefill` for their shapes).

    inputs_embeds: as of `embeddings.view`.

    InputError or CacheError for what cannot be run.
    """
    ids, real = _ids(input_ids, config) if input_ids is not None else (None, None)
    embeds = inputs_embeds
    if embeds is not None:
        embeds = embeddings.check(embeds, config, None if ids is None else ids.shape)
    if ids is None and embeds is None:
        raise InputError("give input_ids or inputs_embeds")
    if embeds is not None and ids is None and config.hidden_size_per_layer_input:
        raise InputError(
            "inputs_embeds: this model has per-layer embeddings, which are looked up by token; give input_ids as well"
        )
    shape = ids.shape if ids is not None else tuple(embeds.shape[:2])  # type: ignore[union-attr]
    batch_size, seq_len = shape
    if past is not None and past.batch_size != batch_size:
        raise CacheError(f"past_key_values has {past.batch_size} rows, the prompt has {batch_size}")

    first_seen = None if past is None else past.starts
    if attention_mask is not None:
        if real is not None and not real.all():
            raise InputError(
                "attention_mask: rows of different lengths already say which tokens are real; give one or the other"
            )
        real, cached = _padding(attention_mask, shape, past)
        if past is not None and cached is not None:
            first_seen = _first_seen(cached, past)
    elif real is None:
        real = np.ones(shape, bool)
    if isinstance(embeds, np.ndarray) and not np.isfinite(embeds[real]).all():
        raise InputError("inputs_embeds: a token's embedding holds NaN or infinity")
    row, column = np.nonzero(real)
    counts = real.sum(axis=1)
    cu_seqlens = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    index = np.arange(len(row)) - cu_seqlens[row]  # of the token within its row's new tokens

    if past is None:  # the first chunk keeps the caller's columns, so that the cache looks as HuggingFace's does
        starts, before = real.argmax(axis=1), np.zeros(batch_size, np.int64)
    else:
        starts, before = past.ends, (past.ends - past.starts).astype(np.int64)
    slots = (starts[row] + index).astype(np.int32)

    positions = before[row] + index + config.position_offset
    packed = np.zeros(len(row), np.int64)  # which packed sequence of its row a token belongs to
    if position_ids is not None:
        given = _per_token(position_ids, "position_ids", shape, past=None)
        if given.min() < 0:
            raise InputError(f"position_ids: {int(given.min())} is negative")
        positions = given[real]
        if attention_mask is None and past is None:
            packed = np.cumsum(given == given[:, :1], axis=1)[real]

    types = None if token_type_ids is None else _per_token(token_type_ids, "token_type_ids", shape, past)[real]
    if types is not None and (types.min() < 0 or types.max() > AUDIO):
        raise InputError("token_type_ids: expected 0 text, 1 image, 2 video or 3 audio")
    row_spans = _spans(config, past, cu_seqlens, slots, types)
    queries = _queries(past, first_seen, cu_seqlens, slots, packed, row_spans)

    total = int(slots.max()) + 1 if past is None else max(past.seq_length, int(slots.max()) + 1)
    bias = _biases(attn_bias, config, batch_size, seq_len, total)
    hides = past is not None and first_seen is not None and bool((first_seen != past.starts).any())
    if bias and (hides or not real.all()):
        raise InputError(
            "attn_bias: a row has padding, or hides cached tokens; put it into the bias as -inf and give neither "
            "attention_mask nor ragged rows"
        )
    return Batch(
        batch_size, seq_len, column, row, cu_seqlens, slots, positions, queries, row_spans,
        None if ids is None else ids[real], embeds, bias,
    )  # fmt: skip


def text_batch(config: ModelConfig, tokens: int, begin: int, end: int) -> Batch:
    """What `make_batch` makes of so many text tokens of one prompt, but for their ids.

    Slots begin : end of its cache hold the tokens before them.
    """
    column = np.arange(tokens)
    slots = (column + end).astype(np.int32)
    first, last = np.full_like(slots, begin), np.full_like(slots, end + tokens)
    return Batch(
        1, tokens, column, np.zeros_like(column), np.array([0, tokens], np.int32), slots,
        column + (end - begin + config.position_offset), Queries(slots, first, last, slots, slots + np.int32(1)), [[]],
        None, None, {},
    )  # fmt: skip


def _ids(value: Ids, config: ModelConfig) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(ids [B, S], real [B, S]) of [S], [B, S] or a list of lists of different lengths."""
    if isinstance(value, list | tuple) and value and all(map(arguments.has_axes, value)):
        rows = [arguments.integers("input_ids", r) for r in value]
        if any(r.ndim != 1 for r in rows):
            raise InputError("input_ids: expected [S], [B, S] or a list of lists of token ids")
    else:
        array = arguments.integers("input_ids", value)
        if array.ndim not in (1, 2):
            raise InputError(f"input_ids is {list(array.shape)}, expected [S] or [B, S]")
        rows = list(array[None] if array.ndim == 1 else array)
    if not rows or any(len(r) == 0 for r in rows):
        raise InputError("input_ids: empty prompt; every row needs at least one token")
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    real = np.zeros(ids.shape, bool)
    for i, r in enumerate(rows):
        ids[i, : len(r)], real[i, : len(r)] = r, True
    # Multimodal placeholders may lie outside the vocabulary; `Gemma.embed` replaces them.
    placeholders = [t for t in (config.image_token_id, config.video_token_id, config.audio_token_id) if t is not None]
    bad = (ids < 0) | ((ids >= config.vocab_size) & ~np.isin(ids, placeholders))
    if bad.any():
        raise InputError(f"input_ids: {int(ids[bad][0])} is outside the vocabulary of {config.vocab_size} tokens")
    return ids, real


def _per_token(value: ArrayLike, name: str, shape: tuple[int, int], past: KVCache | None) -> NDArray[np.int64]:
    """int64 [B, S] of [S], [1, S] or [B, S]; with a past also of [B, T + S], as HuggingFace's generate() passes it."""
    given = arguments.integers(name, value)
    array = given[None] if given.ndim == 1 else given
    total = shape[1] + (past.seq_length if past is not None else 0)
    if array.ndim == 2 and array.shape[1] == total:
        array = array[:, total - shape[1] :]
    if array.ndim != 2 or array.shape[1] != shape[1] or array.shape[0] not in (1, shape[0]):
        raise InputError(f"{name} is {list(given.shape)}, expected [B, S] = {list(shape)}")
    return np.broadcast_to(array, shape)


def _padding(
    value: ArrayLike, shape: tuple[int, int], past: KVCache | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """(real [B, S], what a mask [B, T + S] says of the T cached slots, None where it is [B, S])."""
    array = arguments.host_array("attention_mask", value)
    if array.ndim == 4:
        raise InputError("attention_mask is 4-D: give a ready-made mask as attn_bias (0 where visible, -inf where not)")
    if array.dtype.kind not in "iub" or not np.isin(array, (0, 1)).all():
        raise InputError(f"attention_mask is {array.dtype}, expected 0 (padding) and 1 (token)")
    real = _per_token(array.astype(np.int64), "attention_mask", shape, past).astype(bool)
    for i, r in enumerate(real):
        tokens = np.flatnonzero(r)
        if len(tokens) == 0:
            raise InputError(f"attention_mask: row {i} has no token")
        if len(tokens) != tokens[-1] - tokens[0] + 1:
            raise InputError(f"attention_mask: row {i} has padding between tokens; give such a mask as attn_bias")
    cached = np.atleast_2d(array)[:, : -shape[1]].astype(bool)
    return real, np.broadcast_to(cached, (shape[0], cached.shape[1])) if cached.size else None


def _first_seen(cached: NDArray[np.bool_], past: KVCache) -> NDArray[np.int32]:
    """[B]: the first slot that new tokens see, where a mask shows these of the T cached slots; InputError for gaps."""
    first: NDArray[np.int32] = past.starts.copy()
    for b, shown in enumerate(cached):
        begin, end, seen = int(past.starts[b]), int(past.ends[b]), np.flatnonzero(shown)
        where = f"attention_mask: row {b}"
        if np.array_equal(seen, np.arange(begin, end)):
            continue
        if len(seen) == 0:
            first[b] = end
            continue
        if end < past.seq_length:
            if len(seen) == end - begin:
                continue  # every token: behind padding on the right the caller's columns are no slots
            raise InputError(
                f"{where} shows {len(seen)} of {end - begin} cached tokens, but was padded on the right, so that the "
                "mask does not tell which; pad left"
            )
        if seen[0] < begin:
            raise InputError(f"{where} shows cached column {seen[0]}, where the cache has padding")
        if len(seen) != end - seen[0]:
            raise InputError(f"{where} hides cached tokens behind some that it shows; give such a mask as attn_bias")
        first[b] = seen[0]
    return first


def _spans(
    config: ModelConfig,
    past: KVCache | None,
    cu_seqlens: NDArray[np.int32],
    slots: NDArray[np.int32],
    types: NDArray[np.int64] | None,
) -> list[list[tuple[int, int]]]:
    """Each row's bidirectional spans, or a refusal if the cached tokens cannot be followed by these."""
    if past is not None and past.seq_length and config.bidirectional == "text":
        raise CacheError(
            "past_key_values: in a bidirectional model earlier tokens see later ones; give the whole text at once"
        )
    found: list[list[tuple[int, int]]] = []
    for b in range(len(cu_seqlens) - 1):
        rows = slice(int(cu_seqlens[b]), int(cu_seqlens[b + 1]))
        found.append(spans(config, None if types is None else types[rows], slots[rows]))
        cached = past.spans[b] if past is not None else []
        if found[b] and cached and found[b][0][0] == cached[-1][1]:
            raise InputError(
                f"token_type_ids: row {b} goes on with the image span that the cached tokens end with; "
                "the tokens of a span see one another, so it must be given in one chunk"
            )
    return found


def _queries(
    past: KVCache | None,
    first_seen: NDArray[np.int32] | None,
    cu_seqlens: NDArray[np.int32],
    slots: NDArray[np.int32],
    packed: NDArray[np.int64],
    row_spans: list[list[tuple[int, int]]],
) -> Queries:
    first, last = np.empty_like(slots), np.empty_like(slots)
    span_begin, span_end = slots.copy(), slots + np.int32(1)
    for b in range(len(cu_seqlens) - 1):
        rows = slice(int(cu_seqlens[b]), int(cu_seqlens[b + 1]))
        start = slots[rows.start]
        _, begin, which, size = np.unique(packed[rows], return_index=True, return_inverse=True, return_counts=True)
        has_past = past is not None and past.ends[b] > past.starts[b]
        first[rows] = first_seen[b] if first_seen is not None and has_past else start + begin[which]
        last[rows] = start + (begin + size)[which]
        for begin_slot, end_slot in row_spans[b]:
            tokens = slice(rows.start + begin_slot - start, rows.start + end_slot - start)
            span_begin[tokens], span_end[tokens] = begin_slot, end_slot
    return Queries(slots, first, last, np.maximum(span_begin, first), np.minimum(span_end, last))


def _biases(
    value: ArrayLike | Mapping[LayerType, ArrayLike] | None,
    config: ModelConfig,
    batch_size: int,
    seq_len: int,
    total: int,
) -> dict[LayerType, Array]:
    if value is None:
        return {}
    types: dict[LayerType, Any] = (
        dict(value)
        if isinstance(value, Mapping)
        else dict.fromkeys(("full_attention", "sliding_attention"), arguments.host_array("attn_bias", value))
    )
    biases: dict[LayerType, Array] = {}
    for layer_type, given in types.items():
        if layer_type not in ("full_attention", "sliding_attention"):
            raise InputError(
                f"attn_bias: unknown layer type {arguments.shown(layer_type)}, expected full_attention or "
                "sliding_attention"
            )
        bias: Array = arguments.host_array("attn_bias", given)
        if bias.dtype.kind == "b":
            raise InputError("attn_bias is boolean; it is added to the scores: 0 where visible, -inf where not")
        if bias.dtype.kind != "f" and bias.dtype.name != "bfloat16":
            raise InputError(f"attn_bias is {bias.dtype}, expected floating point")
        expected = (batch_size, config.num_attention_heads, seq_len, total)
        fits = (
            bias.ndim == 4
            and bias.shape[2:] == expected[2:]
            and all(n in (1, e) for n, e in zip(bias.shape, expected, strict=True))
        )
        if not fits:
            raise InputError(f"attn_bias is {list(bias.shape)}, expected [B or 1, H or 1, S, T] = {list(expected)}")
        if not (bias < np.inf).all():
            raise InputError("attn_bias holds NaN or +inf; it is added to the scores: 0 where visible, -inf where not")
        biases[layer_type] = bias
    return biases
