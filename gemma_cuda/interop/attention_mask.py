"""Checks of q_offset, cu_seqlens, block_ids and key_range, and the Mask of an attention call."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..device.foreign import host_integers
from ..errors import InputError
from .attention_shapes import Sizes
from .key_ranges import Mask
from .options import AttentionOptions, integer

_OP = "attention"


def make_mask(sizes: Sizes, options: AttentionOptions) -> Mask:
    """The Mask of a call; raises InputError for offsets, lengths and ids that do not fit."""
    queries, keys = _cu_seqlens(sizes, options.cu_seqlens_q, options.cu_seqlens_k)
    lengths, own = np.diff(keys).astype(np.int64), np.diff(queries).astype(np.int64)
    offsets = lengths - own
    if options.q_offset is not None:
        given = host_integers(_OP, "q_offset", options.q_offset)
        if given.shape not in ((), (1,), offsets.shape):
            raise InputError(f"{_OP}: q_offset is {list(given.shape)}, expected an int or [B] = {list(offsets.shape)}")
        given = np.broadcast_to(given, offsets.shape)
        outside = (given < 0) | (given > np.maximum(offsets, 0))
        if outside.any():
            b = int(np.argmax(outside))
            raise InputError(
                f"{_OP}: q_offset is {given[b]}, expected 0 to T - S = {offsets[b]} (layout {sizes.layout}, "
                f"{own[b]} queries, {lengths[b]} keys)"
            )
        offsets = given
    ids = None if options.block_ids is None else _block_ids(options.block_ids, sizes)
    packed_offsets = np.ascontiguousarray(offsets).tobytes()
    return Mask(queries.tobytes(), keys.tobytes(), packed_offsets, options.left, options.right, ids)


def _cu_seqlens(sizes: Sizes, cu_seqlens_q: Any, cu_seqlens_k: Any) -> tuple[Any, Any]:
    """int32 [B + 1] of queries and of keys."""
    if sizes.batch is not None:
        if cu_seqlens_q is not None or cu_seqlens_k is not None:
            raise InputError(f"{_OP}: cu_seqlens are of packed sequences: layout SHD, not {sizes.layout}")
        rows = np.arange(sizes.batch + 1)
        return (rows * sizes.query_count).astype(np.int32), (rows * sizes.key_count).astype(np.int32)
    if cu_seqlens_q is None:
        if cu_seqlens_k is not None:
            raise InputError(f"{_OP}: cu_seqlens_k is given without cu_seqlens_q")
        return np.array([0, sizes.query_count], np.int32), np.array([0, sizes.key_count], np.int32)
    queries = _check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, "S", sizes.query_count)
    if cu_seqlens_k is None:
        keys = _check_cu_seqlens("cu_seqlens_k (as cu_seqlens_q)", cu_seqlens_q, "T", sizes.key_count)
    else:
        keys = _check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, "T", sizes.key_count)
    if len(queries) != len(keys):
        raise InputError(f"{_OP}: cu_seqlens_q has {len(queries)} entries, cu_seqlens_k {len(keys)}")
    return queries, keys


def _check_cu_seqlens(name: str, given: Any, letter: str, total: int) -> Any:
    """int32 [B + 1] of ascending prefix sums; raises InputError unless they go from 0 to `total`."""
    array = host_integers(_OP, name, given)
    if array.ndim != 1 or len(array) == 0 or array[0] != 0 or array[-1] != total or np.any(np.diff(array) < 0):
        shown = np.array2string(array, threshold=8, separator=", ")
        raise InputError(f"{_OP}: {name} is {shown}, expected [B + 1] rising from 0 to {letter} = {total} (layout SHD)")
    return array.astype(np.int32)


def check_max_seqlens(options: AttentionOptions, max_seqlen_q: int | None, max_seqlen_k: int | None) -> None:
    """Raises InputError where a sequence is longer than max_seqlen_q or max_seqlen_k."""
    given = (("q", options.cu_seqlens_q, max_seqlen_q), ("k", options.cu_seqlens_k, max_seqlen_k))
    for letter, cu_seqlens, most in given:
        if most is None:
            continue
        most = integer(_OP, f"max_seqlen_{letter}", most, least=0)
        if cu_seqlens is None:
            raise InputError(
                f"{_OP}: max_seqlen_{letter} is given without cu_seqlens_{letter} (layout {options.layout})"
            )
        longest = int(np.diff(np.atleast_1d(host_integers(_OP, f"cu_seqlens_{letter}", cu_seqlens))).max(initial=0))
        if longest > most:
            raise InputError(f"{_OP}: max_seqlen_{letter} is {most}, but a sequence has {longest} tokens")


def _block_ids(block_ids: Any, sizes: Sizes) -> bytes:
    """int64 [keys of all sequences] as bytes."""
    ids = host_integers(_OP, "block_ids", block_ids)
    total = (sizes.key_count,)
    allowed = [total] if sizes.batch is None else [total, (sizes.batch, *total)]
    if ids.shape not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        axes = "[T]" if sizes.batch is None else "[T] or [B, T]"
        raise InputError(f"{_OP}: block_ids is {list(ids.shape)}, expected {axes} = {shapes} (layout {sizes.layout})")
    if sizes.batch is not None:
        ids = np.broadcast_to(ids, (sizes.batch, *total))
    return np.ascontiguousarray(ids).tobytes()


def mask_of_ranges(key_range: Any, sizes: Sizes) -> Mask:
    """The Mask of key_range int [B or 1, 1, S, 2]; raises InputError unless 0 <= key_begin <= key_end <= T."""
    ranges = host_integers(_OP, "key_range", key_range)
    if sizes.batch is None or ranges.shape not in [(b, 1, sizes.query_count, 2) for b in (1, sizes.batch)]:
        expected = [sizes.batch, 1, sizes.query_count, 2]
        raise InputError(f"{_OP}: key_range is {list(ranges.shape)}, expected [B, 1, S, 2] = {expected}")
    queries, keys = _cu_seqlens(sizes, None, None)
    if ranges.size and (ranges.min() < 0 or ranges.max() > sizes.key_count):
        raise InputError(
            f"{_OP}: key_range reaches from {ranges.min()} to {ranges.max()}, there are keys 0 to T = {sizes.key_count}"
        )
    if (falls := ranges[..., 0] > ranges[..., 1]).any():
        b, _, i = (int(n) for n in np.argwhere(falls)[0])
        begin, end = ranges[b, 0, i]
        raise InputError(
            f"{_OP}: key_range: query {i} of sequence {b} begins at key {begin} and ends before key {end}; a mask of "
            "intervals holds two numbers for each query and cannot be flipped: use attn_implementation='sdpa' for a "
            "model that does so"
        )
    packed = np.broadcast_to(ranges[:, 0], (sizes.batch, sizes.query_count, 2)).astype(np.int32)
    return Mask(queries.tobytes(), keys.tobytes(), ranges=np.ascontiguousarray(packed).tobytes())
