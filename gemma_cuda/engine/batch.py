"""From the arguments of a prefill to packed tokens, or to a refusal in the caller's words.

Padding never reaches a kernel: the tokens of all sequences stand one after another, [N], each with its sequence and its
slot in that sequence's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments
from ..config import LayerType, ModelConfig
from ..errors import CacheError, InputError
from ..model.kv_cache import KVCache
from ..model.kv_storage import HostMemory, Memory
from ..model.masks import AUDIO, Queries, spans
from ..model.ops import Ops
from ..precision import Array
from . import embeddings

_LONGEST_CACHED = 8192  # tokens of a prompt whose batch is worth 400 KB

Ids = ArrayLike | Sequence[Sequence[int]]
Spans = list[list[tuple[int, int]]]
"""Bidirectional spans [begin, end) of each sequence, in slots."""


@dataclass(frozen=True)
class Prompt:
    """The arguments of `Gemma.prefill` that describe tokens, as the caller gave them."""

    input_ids: Ids | None = None
    inputs_embeds: Any | None = None
    attention_mask: ArrayLike | None = None
    position_ids: ArrayLike | None = None
    token_type_ids: ArrayLike | None = None
    attn_bias: ArrayLike | Mapping[LayerType, ArrayLike] | None = None

    @property
    def is_ids_only(self) -> bool:
        """Whether there is nothing besides ids."""
        return (
            self.inputs_embeds is None
            and self.attention_mask is None
            and self.position_ids is None
            and self.token_type_ids is None
            and self.attn_bias is None
        )


@dataclass(frozen=True)
class Batch:
    """N tokens of B sequences; sequence b is cu_seqlens[b] : cu_seqlens[b + 1]."""

    seq_len: int  # S: columns of the caller's layout
    column: NDArray[np.int64]  # [N] of the caller's layout
    sequence: NDArray[np.int64]  # [N]
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    slots: NDArray[np.int32]  # [N] in the sequence's cache; those of sequence b are starts[b] : ends[b]
    starts: NDArray[np.int32]  # [B]
    ends: NDArray[np.int32]  # [B]
    end: int  # the largest of them
    position_ids: NDArray[np.int64]  # [N]
    queries: Queries  # slots again, with what the masks need
    spans: Spans
    input_ids: NDArray[np.int64] | None  # [N]
    inputs_embeds: Any | None  # [B, S, E] in the caller's layout, on the host or on the model's GPU
    attn_bias: Mapping[LayerType, Array]  # [B or 1, H or 1, S, T], replaces the layer type's mask
    # (tokens, first slot that they see, first slot of theirs) where these decide everything but input_ids.
    text_key: tuple[int, int, int] | None = None

    @property
    def batch_size(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def embed_rows(self) -> NDArray[np.int64]:
        """[N]: the row of each token among the caller's B · S."""
        return self.sequence * self.seq_len + self.column

    def packed_embeds(self, ops: Ops) -> Array:
        """inputs_embeds [N, E] of the tokens, as the ops take activations."""
        embeds = self.inputs_embeds
        assert embeds is not None
        flat = embeds.reshape(-1, embeds.shape[-1])
        if isinstance(embeds, np.ndarray):
            return ops.from_host(flat[self.embed_rows])
        return ops.take(flat, ops.index(self.embed_rows))

    def unpack(self, packed: Array) -> Array:
        """[B, S, …] in the caller's layout from packed [N, …]; padding is 0."""
        out = np.zeros((self.batch_size, self.seq_len, *packed.shape[1:]), packed.dtype)
        out[self.sequence, self.column] = packed
        return out


def make_batch(
    config: ModelConfig, prompt: Prompt, *, past: KVCache | None = None, memory: Memory | None = None
) -> Batch:
    """The packed tokens of a prompt that continues `past`; memory: of the model, where inputs_embeds may lie.

    InputError or CacheError for what cannot be run.
    """
    ids, real = _ids(prompt.input_ids, config) if prompt.input_ids is not None else (None, None)
    embeds = prompt.inputs_embeds
    if embeds is not None:
        embeds = embeddings.view(embeds, memory or HostMemory())
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
    if past is not None and past.seq_length and config.bidirectional == "text":
        raise CacheError(
            "past_key_values: in a bidirectional model earlier tokens see later ones; give the whole text at once"
        )
    if batch_size == 1 and prompt.is_ids_only:
        assert ids is not None
        begin, end = (0, 0) if past is None else (int(past.starts[0]), int(past.ends[0]))
        text = _text if seq_len <= _LONGEST_CACHED else _text.__wrapped__
        batch = copy(text(seq_len, begin, end, config.position_offset))
        object.__setattr__(batch, "input_ids", ids[0])  # dataclasses.replace takes longer than all the rest
        return batch

    first_seen = None if past is None else past.starts
    if prompt.attention_mask is not None:
        if real is not None:
            raise InputError(
                "attention_mask: rows of different lengths already say which tokens are real; give one or the other"
            )
        real, cached = _padding(prompt.attention_mask, shape, past)
        if past is not None and cached is not None:
            first_seen = _first_seen(cached, past)
    elif real is None:
        real = np.ones(shape, bool)
    if isinstance(embeds, np.ndarray) and not np.isfinite(embeds[real]).all():
        raise InputError("inputs_embeds: a token's embedding holds NaN or infinity")
    sequence, column = np.nonzero(real)
    counts = real.sum(axis=1)
    cu_seqlens = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    index = np.arange(len(sequence)) - cu_seqlens[sequence]  # of the token within its sequence's new tokens

    if past is None:  # the first chunk keeps the caller's columns, so that the cache looks as HuggingFace's does
        starts, before = real.argmax(axis=1), np.zeros(batch_size, np.int64)
    else:
        starts, before = past.ends, (past.ends - past.starts).astype(np.int64)
    slots = (starts[sequence] + index).astype(np.int32)

    positions = before[sequence] + index + config.position_offset
    packed = np.zeros(len(sequence), np.int64)  # the packed sequence within its row that a token belongs to
    if prompt.position_ids is not None:
        given = _per_token(prompt.position_ids, "position_ids", shape, past=None)
        if given.min() < 0:
            raise InputError(f"position_ids: {int(given.min())} is negative")
        positions = given[real]
        if prompt.attention_mask is None and past is None:
            packed = np.cumsum(given == given[:, :1], axis=1)[real]

    types = prompt.token_type_ids
    types = None if types is None else _per_token(types, "token_type_ids", shape, past)[real]
    if types is not None and (types.min() < 0 or types.max() > AUDIO):
        raise InputError("token_type_ids: expected 0 text, 1 image, 2 video or 3 audio")
    row_spans = _spans(config, past, cu_seqlens, slots, types)
    queries = _queries(past, first_seen, cu_seqlens, slots, packed, row_spans)

    ends = slots[cu_seqlens[1:] - 1] + np.int32(1)
    end = int(ends.max())
    total = end if past is None else max(past.seq_length, end)
    bias = _biases(prompt.attn_bias, config, batch_size, seq_len, total)
    hides = past is not None and first_seen is not None and bool((first_seen != past.starts).any())
    if bias and (hides or not real.all()):
        raise InputError(
            "attn_bias: a row has padding, or hides cached tokens; put it into the bias as -inf and give neither "
            "attention_mask nor ragged rows"
        )
    return Batch(
        seq_len, column, sequence, cu_seqlens, slots, slots[cu_seqlens[:-1]], ends, end, positions, queries, row_spans,
        None if ids is None else ids[real], embeds, bias,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _text(tokens: int, begin: int, end: int, position_offset: int) -> Batch:
    """A batch of so many text tokens of one sequence, but for their ids; its slots begin : end hold earlier tokens."""
    column = np.arange(tokens)
    sequence, positions = np.zeros_like(column), column + (end - begin + position_offset)
    slots, cu_seqlens = (column + end).astype(np.int32), np.array([0, tokens], np.int32)
    first, last, behind = np.full_like(slots, begin), np.full_like(slots, end + tokens), slots + np.int32(1)
    for array in (column, sequence, positions, slots, cu_seqlens, first, last, behind):
        array.setflags(write=False)  # prompts share them
    return Batch(
        seq_len=tokens, column=column, sequence=sequence, cu_seqlens=cu_seqlens, slots=slots, starts=slots[:1],
        ends=last[:1], end=end + tokens, position_ids=positions, queries=Queries(slots, first, last, slots, behind),
        spans=[[]], input_ids=None, inputs_embeds=None, attn_bias={}, text_key=(tokens, begin, end),
    )  # fmt: skip


def _ids(value: Ids, config: ModelConfig) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """(ids [B, S], real [B, S]) of [S], [B, S] or a list of lists; real is None where all have one length."""
    real: NDArray[np.bool_] | None = None
    if isinstance(value, list | tuple) and value and all(map(arguments.has_axes, value)):
        rows = [arguments.integers("input_ids", r) for r in value]
        if any(r.ndim != 1 for r in rows):
            raise InputError("input_ids: expected [S], [B, S] or a list of lists of token ids")
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for i, r in enumerate(rows):
            ids[i, : len(r)] = r
        lengths = np.array([len(r) for r in rows])
        if (lengths != ids.shape[1]).any():
            real = np.arange(ids.shape[1]) < lengths[:, None]
        empty = not lengths.all()
    else:
        ids = arguments.integers("input_ids", value)
        if ids.ndim not in (1, 2):
            raise InputError(f"input_ids is {list(ids.shape)}, expected [S] or [B, S]")
        ids = ids[None] if ids.ndim == 1 else ids
        empty = ids.size == 0
    if empty:
        raise InputError("input_ids: empty prompt; every row needs at least one token")
    # Multimodal placeholders may lie outside the vocabulary; `Gemma.embed` replaces them.
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        placeholders = (config.image_token_id, config.video_token_id, config.audio_token_id)
        bad = (ids < 0) | ((ids >= config.vocab_size) & ~np.isin(ids, [t for t in placeholders if t is not None]))
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
) -> Spans:
    """Each sequence's bidirectional spans, or a refusal if the cached tokens cannot be followed by these."""
    found: Spans = []
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
    row_spans: Spans,
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
