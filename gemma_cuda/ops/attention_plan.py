"""How the work of an attention launch is cut into blocks: from key ranges on the host, once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..device.protocol import Array, Device
from ..device.structs import struct_type
from ..errors import InputError

Int32 = NDArray[np.int32]
Tiles = NDArray[Any]
"""Records WorkTile or MergeTile of kernels/attention.cu [tiles]. On the device they are int32 [tiles, members]."""
SplitKeys = int | Literal["auto"] | None
"""See plan_attention."""

BLOCK_K = 64
"""Keys of a tile, the same in every instance: a row's bits depend on it, and on no other tile size."""


@dataclass(frozen=True)
class Tiling:
    """Rows of a tile, and how many pairs of K and V tiles a block holds in shared memory."""

    block_q: int
    pairs: int

    def threads(self, head_dim: int) -> int:
        """Threads of a block; as attention_threads of the kernel."""
        return 2 * self.block_q if head_dim > 128 else 128

    def shared_bytes(self, head_dim: int) -> int:
        """Dynamic shared memory of a block: rows of q, pairs of k and v, and the description of the rows."""
        row_bytes = struct_type("attention", "TileRow").itemsize
        return (self.block_q + 2 * self.pairs * BLOCK_K) * head_dim * 2 + self.block_q * row_bytes


# By shared memory of a block (largest first), then by head_dim. Two blocks fit a multiprocessor, except of head_dim 256
# below 227 KiB. At 128 rows each fragment of K and V that a warp reads serves 32 rows (16 of head_dim 256).
_TILINGS = (
    (227 * 1024, {64: Tiling(128, 2), 128: Tiling(128, 2), 256: Tiling(64, 1)}),
    (163 * 1024, {64: Tiling(128, 2), 128: Tiling(128, 1), 256: Tiling(128, 1)}),
    (99 * 1024, {64: Tiling(128, 1), 128: Tiling(64, 1), 256: Tiling(64, 1)}),
)
HEAD_DIMS = tuple(_TILINGS[0][1])
SHORT_ROWS = 64
"""Rows (queries · group) of a tile where a sequence has no more: those sequences "auto" splits, over many keys."""
# "auto": what fills one small tile of rows, as a decoding step does, has too few blocks for a GPU. From so many keys on
# they are spread over several; each still takes 8 tiles of keys, so that a partial result costs little beside them.
_LONG, _PART = 1024, 512
_NEVER = 1 << 31  # keys, more than there are
_MOST_INT = 2**31 - 1  # rows (queries · group) of a sequence
_MOST_KEYS = _MOST_INT - 4 * BLOCK_K  # a block looks so far ahead, in int


def choose_tiling(head_dim: int, max_rows: int, shared_bytes: int, *, is_plain: bool) -> Tiling:
    """The tiling for sequences of up to max_rows (query, head of a group) rows; the result's bits do not depend on it.

    is_plain: neither softcap nor bias, which take registers that a warp with 32 rows does not have.
    """
    for limit, tilings in _TILINGS:
        if shared_bytes >= limit:
            chosen = tilings[head_dim]
            is_small = max_rows <= SHORT_ROWS or (head_dim <= 128 and not is_plain)
            return Tiling(SHORT_ROWS, chosen.pairs) if is_small else chosen
    raise InputError(
        f"attention: the device gives a block {shared_bytes} bytes of shared memory, {_TILINGS[-1][0]} are needed"
    )


@dataclass(frozen=True)
class AttentionPlan:
    """The blocks of an attention launch over N packed tokens and the key ranges they need, on a device.

    table: WorkTile [blocks per KV head], merges: MergeTile of the tiles of rows whose keys are spread over several
    blocks, each as int32 [tiles, members]. partials: blocks that leave a part of a result.
    """

    key_begin: Array
    key_end: Array
    table: Array
    merges: Array | None
    partials: int
    tiling: Tiling
    group: int
    head_dim: int
    tokens: int
    sequences: int
    keys: int = 0  # the largest key_end; of packed keys, counted from the first key of all
    packed_keys: bool = False  # all sequences' keys lie in one cache row
    equal_queries: int | None = None  # of every sequence, where they have as many


def plan_attention(
    key_begin: Int32, key_end: Int32, cu_seqlens: Int32, *, group: int, head_dim: int, is_plain: bool, device: Device,
    split_keys: SplitKeys = "auto", cu_seqlens_k: Int32 | None = None,
) -> AttentionPlan:  # fmt: skip
    """The plan for key ranges [N] and cu_seqlens [B + 1] (int32, on the host), group query heads per KV head.

    is_plain: neither a softcap nor a bias will come.
    split_keys: keys that one block takes of a tile of rows, a multiple of 64; None: all. "auto": 512 of a sequence of
    up to 64 rows (queries · group) over more than 1024 keys, all of any other. A sequence has the same bits alone and
    in any batch with each of them. A query also has the same bits in any chunk of its prompt, but for "auto" where
    one chunk is split and another is not. cu_seqlens_k: as of `attention`.
    Raises InputError where ranges fall or are negative, or cu_seqlens does not rise from 0 to N.
    """
    _check_ranges(key_begin, key_end, cu_seqlens)
    if cu_seqlens_k is not None:
        _check_packed_keys(key_end, cu_seqlens, cu_seqlens_k)
    _check_split(split_keys)
    queries = np.diff(cu_seqlens)
    _check_sizes(int(key_end.max(initial=0)), int(queries.max(initial=0)), group)
    tiling = choose_tiling(head_dim, int(queries.max(initial=0)) * group, device.shared_bytes, is_plain=is_plain)
    tiles = _tiles(key_begin, key_end, cu_seqlens, group, tiling.block_q)
    table, merges, partials = _split(tiles, _part_sizes(tiles, queries * group, split_keys))
    table = _longest_first(table)
    keys = int(key_end.max(initial=0))
    if cu_seqlens_k is not None:  # a sequence's "row" is then its first key, and rows lie one key apart
        keys = int((key_end + np.repeat(cu_seqlens_k[:-1], queries)).max(initial=0))
        table["batch"] = cu_seqlens_k[table["batch"]]
    return AttentionPlan(
        device.from_host(key_begin), device.from_host(key_end), device.from_host(_as_int32(table)),
        device.from_host(_as_int32(merges)) if len(merges) else None, partials, tiling, group, head_dim,
        tokens=len(key_begin), sequences=len(queries), keys=keys, packed_keys=cu_seqlens_k is not None,
        equal_queries=int(queries[0]) if len(queries) and (queries == queries[0]).all() else None,
    )  # fmt: skip


@dataclass(frozen=True)
class PlanRoom:
    """How long the tables of any plan of some size can be: blocks, merges, and blocks that leave a part of a result."""

    blocks: int
    merges: int
    partials: int


def plan_room(tokens: int, sequences: int, keys: int, *, group: int, tiling: Tiling, short: bool) -> PlanRoom:
    """The room that so many tokens of so many sequences need, each of which sees up to `keys` keys.

    short: some of the sequences may be as short as "auto" splits.
    """
    tiles = -(-tokens * group // tiling.block_q) + sequences - 1
    if not short or keys <= _LONG:
        return PlanRoom(tiles, 0, 0)
    parts = -(-keys // _PART)
    return PlanRoom(tiles + sequences * (parts - 1), sequences, sequences * parts)


def int32_shape(record: str, tiles: int) -> tuple[int, int]:
    """[tiles, members] of that many WorkTile or MergeTile on the device."""
    return tiles, struct_type("attention", record).itemsize // 4


def work_tables(
    key_begin: Int32, key_end: Int32, cu_seqlens: Int32, cache_rows: NDArray[np.int64], group: int, tiling: Tiling
) -> tuple[Int32, Int32]:
    """(table, merges) of a plan of split_keys "auto"; cache_rows [B]: where each sequence has its keys."""
    tiles = _tiles(key_begin, key_end, cu_seqlens, group, tiling.block_q)
    table, merges, _ = _split(tiles, _part_sizes(tiles, (cu_seqlens[1:] - cu_seqlens[:-1]) * group, "auto"))
    table["batch"] = cache_rows[table["batch"]]
    return _as_int32(_longest_first(table)), _as_int32(merges)


def tiles_of(table: Int32, record: str = "WorkTile") -> Tiles:
    """Records [tiles] of a table [tiles, members] of a plan, on the host."""
    return np.ascontiguousarray(table).view(struct_type("attention", record))[:, 0]


def key_tiles(tiles: Tiles) -> NDArray[np.int32]:
    """int32 [blocks]: tiles of keys that each block goes through."""
    spans: NDArray[np.int32] = -(-tiles["key_end"] // BLOCK_K) - tiles["key_begin"] // BLOCK_K
    return spans


def _as_int32(tiles: Tiles) -> Int32:
    """[tiles, members] of the same memory."""
    return tiles.view(np.int32).reshape(len(tiles), tiles.itemsize // 4)


def _longest_first(table: Tiles) -> Tiles:
    """Blocks with the most keys first: short ones fill the gaps at the end."""
    return table if len(table) < 2 else table[np.argsort(-key_tiles(table), kind="stable")]


def _check_split(split_keys: SplitKeys) -> None:
    if split_keys is None or split_keys == "auto":
        return
    if not isinstance(split_keys, (int, np.integer)) or split_keys < BLOCK_K or split_keys % BLOCK_K:
        raise InputError(f"attention: split_keys is {split_keys!r}, expected a multiple of {BLOCK_K}, 'auto' or None")


def _check_ranges(key_begin: Int32, key_end: Int32, cu_seqlens: Int32) -> None:
    for name, array in (("key_begin", key_begin), ("key_end", key_end), ("cu_seqlens", cu_seqlens)):
        if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.ndim != 1:
            kind = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"attention: {name} is {kind}, expected a NumPy array, int32, of one axis")
    if len(key_begin) != len(key_end):
        raise InputError(
            f"attention: key_begin has {len(key_begin)} entries and key_end {len(key_end)}, expected one per query"
        )
    tokens = len(key_begin)
    if len(cu_seqlens) == 0 or cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or np.any(np.diff(cu_seqlens) < 0):
        raise InputError(f"attention: cu_seqlens is {_short(cu_seqlens)}, expected to rise from 0 to N = {tokens}")
    starts = np.zeros(tokens + 1, bool)
    starts[cu_seqlens] = True
    for name, array in (("key_begin", key_begin), ("key_end", key_end)):
        if np.any(array < 0):
            raise InputError(f"attention: {name}[{int(np.argmax(array < 0))}] is negative")
        falls = (np.diff(array) < 0) & ~starts[1:-1]
        if falls.any():
            n = int(np.argmax(falls)) + 1
            raise InputError(
                f"attention: {name}[{n}] = {array[n]} is below that of the query before; ranges rise within a sequence"
            )


def _check_sizes(keys: int, queries: int, group: int) -> None:
    if keys > _MOST_KEYS:
        raise InputError(f"attention: key_end reaches {keys}, at most {_MOST_KEYS} keys are possible")
    if queries * group > _MOST_INT:
        raise InputError(f"attention: {queries} queries of {group} heads per KV head are more than {_MOST_INT} rows")


def _check_packed_keys(key_end: Int32, cu_seqlens: Int32, cu_seqlens_k: Int32) -> None:
    if cu_seqlens_k.dtype != np.int32 or cu_seqlens_k.shape != cu_seqlens.shape:
        raise InputError(
            f"attention: cu_seqlens_k is {cu_seqlens_k.dtype} {list(cu_seqlens_k.shape)}, expected int32 [B + 1] = "
            f"{list(cu_seqlens.shape)} as cu_seqlens"
        )
    if cu_seqlens_k[0] < 0 or np.any(np.diff(cu_seqlens_k) < 0):
        raise InputError(f"attention: cu_seqlens_k is {_short(cu_seqlens_k)}, expected to rise from 0")
    beyond = key_end > np.repeat(np.diff(cu_seqlens_k), np.diff(cu_seqlens))
    if beyond.any():
        n = int(np.argmax(beyond))
        raise InputError(f"attention: key_end[{n}] = {key_end[n]} reaches into the keys of another sequence")


def _short(array: Int32) -> str:
    shown = [int(x) for x in array[:8]]
    return str(shown) if len(array) <= 8 else f"{str(shown)[:-1]}, ...]"


def _tiles(key_begin: Int32, key_end: Int32, cu_seqlens: Int32, group: int, block_q: int) -> Tiles:
    """WorkTile [tiles of rows], each with all its keys."""
    rows = (cu_seqlens[1:] - cu_seqlens[:-1]).astype(np.int64) * group
    counts = -(-rows // block_q)
    sequence = np.arange(len(rows)).repeat(counts)
    index = np.arange(len(sequence)) - (counts.cumsum() - counts).repeat(counts)
    first_token, first_row = cu_seqlens[sequence], index * block_q
    own = np.minimum(block_q, rows[sequence] - first_row)
    first, last = first_token + first_row // group, first_token + (first_row + own - 1) // group
    tiles = np.empty(len(sequence), struct_type("attention", "WorkTile"))
    tiles["batch"], tiles["first_token"], tiles["first_row"], tiles["rows"] = sequence, first_token, first_row, own
    tiles["key_begin"], tiles["partial"] = key_begin[first], -1
    tiles["key_end"] = np.maximum(key_end[last], tiles["key_begin"])
    return tiles


def _part_sizes(tiles: Tiles, rows: NDArray[np.int64], split_keys: SplitKeys) -> NDArray[np.int64] | None:
    """int64 [tiles of rows]: keys that one block takes of each; None: all. rows: of a sequence, which alone decides."""
    if split_keys != "auto":
        return None if split_keys is None else np.full(len(tiles), split_keys)
    is_split = (rows[tiles["batch"]] <= SHORT_ROWS) & (tiles["key_end"] - tiles["key_begin"] > _LONG)
    return np.where(is_split, _PART, _NEVER) if is_split.any() else None


def _split(tiles: Tiles, part_sizes: NDArray[np.int64] | None) -> tuple[Tiles, Tiles, int]:
    """(WorkTile, MergeTile, partial results): each tile of rows cut at the multiples of its part size."""
    merge_type = struct_type("attention", "MergeTile")
    if part_sizes is None:
        return tiles, np.empty(0, merge_type), 0
    begin, end = tiles["key_begin"], tiles["key_end"]
    first, last = begin // part_sizes, np.maximum(end - 1, begin) // part_sizes
    counts = last - first + 1
    table = np.repeat(tiles, counts, axis=0)
    part, size = np.arange(len(table)) - np.repeat(np.cumsum(counts) - counts, counts), np.repeat(part_sizes, counts)
    cut = (np.repeat(first, counts) + part) * size
    table["key_begin"], table["key_end"] = np.maximum(table["key_begin"], cut), np.minimum(table["key_end"], cut + size)
    is_cut = counts > 1
    cut_tiles, parts = tiles[is_cut], counts[is_cut]
    table["partial"][np.repeat(is_cut, counts)] = np.arange(parts.sum())
    merges = np.empty(len(parts), merge_type)
    for name in ("first_token", "first_row", "rows"):
        merges[name] = cut_tiles[name]
    merges["first_partial"], merges["partials"] = parts.cumsum() - parts, parts
    return table, merges, int(parts.sum())
