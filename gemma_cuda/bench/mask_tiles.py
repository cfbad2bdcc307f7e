"""One layer's attention as the kernel cuts it: which tiles of queries and keys it skips, tests, or takes whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import LayerConfig, ModelConfig
from ..device.dry_run import DryRunDevice
from ..engine.batch import Batch, Prompt, make_batch
from ..errors import InputError
from ..model.masks import IMAGE, Int32, key_range
from ..ops.attention_plan import BLOCK_K, HEAD_DIMS, plan_attention, tiles_of

SKIPPED, EDGE, FULL = 0, 1, 2


@dataclass(frozen=True)
class MaskTiles:
    """The attention of a prompt of N tokens over itself.

    states int8 [query tiles, key tiles]: SKIPPED, EDGE (some element is hidden, or may be) or FULL. first_tokens int64
    [query tiles]: of each tile; neighbouring tiles share a token whose heads they split. Query n sees the keys
    key_begin[n] <= t < key_end[n]. spans: of images, as [begin, end).
    """

    states: NDArray[np.int8]
    first_tokens: NDArray[np.int64]
    key_begin: Int32
    key_end: Int32
    spans: list[tuple[int, int]]

    def count(self, state: int) -> int:
        """Tiles in this state, of one KV head."""
        return int((self.states == state).sum())

    def visible(self) -> NDArray[np.bool_]:
        """bool [N, N]: whether query n sees key t."""
        keys = np.arange(len(self.key_begin))
        return np.asarray((self.key_begin[:, None] <= keys) & (keys < self.key_end[:, None]))


def mask_tiles(
    config: ModelConfig, layer: LayerConfig, tokens: int, images: Sequence[tuple[int, int]], shared_bytes: int
) -> MaskTiles:
    """The tiles of a layer for a prompt of `tokens` tokens with images at [begin, end), on a GPU with shared_bytes.

    Raises InputError for images that the model does not see as spans, and for head sizes without a kernel.
    """
    if layer.head_dim not in HEAD_DIMS:
        raise InputError(f"mask: there is no attention kernel for head_dim {layer.head_dim}")
    batch = _batch(config, tokens, images)
    begin, end = key_range(config, layer, batch.queries)
    group = config.num_attention_heads // layer.num_key_value_heads
    plan = plan_attention(
        begin, end, np.array([0, tokens], np.int32), group=group, head_dim=layer.head_dim,
        is_plain=config.attn_logit_softcapping is None, device=DryRunDevice(shared_bytes),
    )  # fmt: skip
    table = np.sort(tiles_of(plan.table), order="first_row")  # the plan has the longest first
    states = np.zeros((len(table), -(-tokens // BLOCK_K)), np.int8)
    for tile, work in enumerate(table):
        first, last = work["first_row"] // group, (work["first_row"] + work["rows"] - 1) // group
        for j in range(work["key_begin"] // BLOCK_K, -(-work["key_end"] // BLOCK_K)):
            is_full = begin[last] <= j * BLOCK_K and (j + 1) * BLOCK_K <= end[first]
            states[tile, j] = FULL if is_full else EDGE
    return MaskTiles(states, table["first_row"].astype(np.int64) // group, begin, end, batch.spans[0])


def _batch(config: ModelConfig, tokens: int, images: Sequence[tuple[int, int]]) -> Batch:
    types = np.zeros((1, tokens), np.int64)
    if images and not (config.bidirectional or "").startswith("vision"):
        raise InputError("mask: this model has no spans of images, each token sees what is before it")
    for begin, end in images:
        if not 0 <= begin < end <= tokens:
            raise InputError(f"mask: image {begin}:{end} does not lie within {tokens} tokens")
        types[0, begin:end] = IMAGE
    return make_batch(config, Prompt(np.zeros((1, tokens), np.int64), token_type_ids=types if images else None))
