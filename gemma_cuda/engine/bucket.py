"""One prepared length of a prefill: its launches, and the block of int32 that tells them of a prompt."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import LayerConfig, ModelConfig, RopeConfig
from ..device.cuda.launch_plan import LaunchPlan
from ..model.decoder import Decoder
from ..model.kv_storage import LayerKV
from ..model.masks import Int32, key_range
from ..model.ops import Mask
from ..model.rope import Rope
from ..ops import attention_plan
from ..ops.attention_plan import SHORT_ROWS, AttentionPlan, PlanRoom, Tiling, choose_tiling, plan_room, work_tables
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from .batch import Batch
from .kv_pool import KVPool

RopeTables = dict[tuple[RopeConfig, int], tuple[Array, Array]]
"""(cos, sin) [P, D/2] of each rotary embedding and head_dim of a model."""


@dataclass(frozen=True)
class _MaskKind:
    """Layers whose queries see the same keys, in the same tiles."""

    layer_type: str
    head_dim: int
    group: int


class Fields:
    """Named arrays of int32 in one block, each at a multiple of 256 bytes."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        self.size = 0

    def add(self, name: str, *shape: int) -> None:
        self._places[name] = self.size, self.size + math.prod(shape), shape
        self.size += -(-math.prod(shape) // 64) * 64

    def of(self, block: Array) -> dict[str, Array]:
        """The arrays in a block [size]."""
        return {
            name: block[begin:end] if len(shape) == 1 else block[begin:end].reshape(shape)
            for name, (begin, end, shape) in self._places.items()
        }


class GraphContext:
    """The `ForwardContext` of every prompt of a bucket: arrays at fixed addresses, with contents of the last prompt."""

    prunes = True

    def __init__(self, bucket: Bucket, ops: KernelOps, arrays: dict[str, Array], tables: RopeTables) -> None:
        self._bucket, self._ops, self._arrays, self._tables = bucket, ops, arrays, tables

    def rope(self, layer: LayerConfig, *, pruned: bool) -> Rope:
        cos, sin = self._tables[layer.rope, layer.head_dim]
        return Rope(cos, sin, self._arrays["output_positions" if pruned else "positions"])

    def slot_mapping(self, kv: LayerKV) -> Array:
        return self._arrays["slot_mapping"]

    def mask(self, layer: LayerConfig, kv: LayerKV, *, pruned: bool) -> Mask:
        kind = self._bucket.kind_of(layer)
        name = self._bucket.name_of(kind, pruned)
        begin, end, table = (self._arrays[f"{name}.{part}"] for part in ("begin", "end", "table"))
        return AttentionPlan(
            begin, end, table, self._arrays.get(f"{name}.merges"), self._bucket.rooms[name].partials,
            self._bucket.tiling_of(kind, pruned), kind.group, kind.head_dim, tokens=len(begin), sequences=len(kv.k),
        )  # fmt: skip

    def bias(self, layer: LayerConfig, kv: LayerKV, *, pruned: bool) -> None:
        return None

    def prune_to_outputs(self, x: Array) -> Array:
        outputs: Array = self._ops.take(x, self._arrays["output_rows"])
        return outputs


class Bucket:
    """Launches of prefills of up to `tokens` tokens in up to `batch_size` sequences, whose last tokens are output."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: int,
        shortest: int,
        batch_size: int,
        capacity: int,
        shared_bytes: int,
    ) -> None:
        self.config: ModelConfig = decoder.config
        self.tokens, self.shortest, self.batch_size = tokens, shortest, batch_size
        self.capacity, self._shared_bytes = capacity, shared_bytes
        self.fields = Fields()
        for name in ("ids", "positions", "slot_mapping", "feature_index"):
            self.fields.add(name, tokens)
        for name in ("output_rows", "output_positions"):
            self.fields.add(name, batch_size)
        self.kinds: dict[str, tuple[_MaskKind, LayerConfig, bool]] = {}
        self.rooms: dict[str, PlanRoom] = {}
        for i, layer in enumerate(self.config.layers):
            self._add_mask(layer, pruned=i >= decoder.last_kv_layer)
        self.plan: LaunchPlan
        self.graph: Any = None
        self.block: Array
        self.outputs: list[tuple[Array, Array]]  # (hidden [b, E], logits [b, V]) of b = 1, 2, ... prompts

    def kind_of(self, layer: LayerConfig) -> _MaskKind:
        group = self.config.num_attention_heads // layer.num_key_value_heads
        return _MaskKind(layer.layer_type, layer.head_dim, group)

    def name_of(self, kind: _MaskKind, pruned: bool) -> str:
        return f"{kind.layer_type}.{kind.head_dim}.{kind.group}{'.output' if pruned else ''}"

    def tiling_of(self, kind: _MaskKind, pruned: bool) -> Tiling:
        rows = kind.group * (1 if pruned else self.tokens)
        is_plain = self.config.attn_logit_softcapping is None
        return choose_tiling(kind.head_dim, rows, self._shared_bytes, is_plain=is_plain)

    def _add_mask(self, layer: LayerConfig, *, pruned: bool) -> None:
        kind = self.kind_of(layer)
        name = self.name_of(kind, pruned)
        if name in self.kinds:
            return
        self.kinds[name] = kind, layer, pruned
        queries = self.batch_size if pruned else self.tokens
        keys = min(self.capacity, _most_keys(layer))
        short = pruned or self.batch_size > 1 or self.shortest * kind.group <= SHORT_ROWS
        tiling = self.tiling_of(kind, pruned)
        room = plan_room(queries, self.batch_size, keys, group=kind.group, tiling=tiling, short=short)
        self.rooms[name] = room
        self.fields.add(f"{name}.begin", queries)
        self.fields.add(f"{name}.end", queries)
        self.fields.add(f"{name}.table", *attention_plan.int32_shape("WorkTile", room.blocks))
        if room.merges:
            self.fields.add(f"{name}.merges", *attention_plan.int32_shape("MergeTile", room.merges))

    def launch_all(
        self,
        decoder: Decoder,
        ops: KernelOps,
        arrays: dict[str, Array],
        features: Array,
        tables: RopeTables,
        pool: KVPool,
    ) -> tuple[Array, Array]:
        """(hidden [B, E], logits [B, V]) of the bucket's forward pass, launched on the device of `ops`, the decoder's.

        features [tokens or more, E]: the layer-0 input of those tokens whose feature_index is not -1.
        """
        context = GraphContext(self, ops, arrays, tables)
        x = ops.embed(
            arrays["ids"], decoder.weights.embed_tokens, scale=self.config.hidden_size**0.5, features=features,
            feature_index=arrays["feature_index"],
        )  # fmt: skip
        hidden = decoder.forward(x, None, context, pool.layers, None)
        return hidden, decoder.logits(hidden)

    @cached_property
    def empty_block(self) -> NDArray[np.int32]:
        """The block [size] of no tokens at all."""
        block = np.zeros(self.fields.size, np.int32)
        arrays = self.fields.of(block)
        arrays["slot_mapping"][:] = -1  # rows without a token write no K and V
        arrays["feature_index"][:] = -1
        return block

    def describe(self, batch: Batch, pool_entry: int) -> NDArray[np.int32]:
        """The block [size], without ids, for a batch whose caches are the pool's entries from pool_entry on.

        Of a batch with inputs_embeds [B, S, E], features are to hold them as [B S, E].
        """
        block = self.empty_block.copy()
        arrays = self.fields.of(block)
        n, lengths = len(batch.sequence), batch.cu_seqlens
        arrays["slot_mapping"][:n] = (batch.sequence + pool_entry) * self.capacity + batch.slots
        arrays["positions"][:n] = batch.position_ids
        if batch.inputs_embeds is not None:
            arrays["feature_index"][:n] = batch.embed_rows
        last = lengths[1:] - 1
        arrays["output_rows"][: len(last)] = last
        arrays["output_positions"][: len(last)] = batch.position_ids[last]
        entries = np.arange(batch.batch_size) + pool_entry
        ranges: dict[str, tuple[Int32, Int32]] = {}
        for name, (kind, layer, pruned) in self.kinds.items():
            if kind.layer_type not in ranges:
                ranges[kind.layer_type] = key_range(self.config, layer, batch.queries)
            begin, end = ranges[kind.layer_type]
            sequences = lengths
            if pruned:
                begin, end, sequences = begin[last], end[last], np.arange(len(last) + 1, dtype=np.int32)
            arrays[f"{name}.begin"][: len(begin)], arrays[f"{name}.end"][: len(end)] = begin, end
            table, merges = work_tables(begin, end, sequences, entries, kind.group, self.tiling_of(kind, pruned))
            arrays[f"{name}.table"][: len(table)] = table
            if len(merges):
                arrays[f"{name}.merges"][: len(merges)] = merges
        return block


def _most_keys(layer: LayerConfig) -> int:
    """How many keys the queries of a short sequence see at most."""
    return sys.maxsize if layer.sliding_window is None else layer.sliding_window + SHORT_ROWS
